# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The pages about data, walked by their own commands: from captions and clips to a trained tiny model, twice."""

import contextlib
import io
import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from clips import write_clip
from launching import arguments
from openai_server import openai_server, said
from test_docs import ROOT, blocks
from typer.testing import CliRunner

from transformers_valley.data import card, mixtures
from transformers_valley.data.build import hallucinations, phrases, valley_instruct
from valley_cli.app import app


pytestmark = pytest.mark.slow

REBUILD, PACK = ROOT / "docs/how-to/rebuild_the_data.md", ROOT / "docs/how-to/pack_your_data.md"
ANSWERS = {
    "conversation": '{"question": "What is it?", "answer": "A shape."}\n{"question": "And?", "answer": "It moves."}',
    "complex_reasoning": '{"question": "Why does it move?", "answer": "Nothing holds it."}',
    "detailed_description": " ".join(["shape"] * 160),
}


class Words:
    """Takes every word for a noun phrase, in the place of a pipeline that would have to be downloaded."""

    name = "words"

    def __init__(self, model, workers):
        pass

    def __call__(self, texts):
        yield from (text.split() for text in texts)


def answer(request, count):
    """As a writer and as a judge, who marks the answers about every fifth clip."""
    system = request["messages"][0]["content"]
    if system == hallucinations.SYSTEM:
        return json.dumps({"objects": ["shape"] if "green" in said(request) and "shape" in said(request) else []})
    kinds = valley_instruct._prompts().items()
    return ANSWERS[next(kind for kind, described in kinds if described["system"] == system)]


@pytest.fixture
def place(checkpoint, tmp_path, monkeypatch):
    """A folder with a tiny checkpoint in `path/to/valley`, to work in."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(phrases, "NounPhrases", Words)
    folder = tmp_path / "work"
    shutil.copytree(checkpoint, folder / "path/to/valley")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What is put on the Hub, in order."""
    asked = []
    hub = SimpleNamespace(
        create_repo=lambda repo, **options: asked.append(repo) or "page",
        repo_info=lambda repo, **options: SimpleNamespace(private=True),
        create_commit=lambda repo, operations, **options: asked.extend(one.path_in_repo for one in operations),
        upload_folder=lambda **options: asked.append(options["folder_path"].name),
    )
    monkeypatch.setattr(card, "HfApi", lambda: hub)
    return asked


def walk(page: Path, url: str = "", mixture: str = "mixture.yaml"):
    """Do what a page says, block by block; commands run in this process, training on its CPU and for four steps."""
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python", "bash", "yaml"):
        if block.info == "yaml":
            Path(mixture).write_text(block.code)
        elif block.info == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.code, page, "exec"), namespace)
        else:
            printed = [run(line.replace("http://localhost:8000/v1", url)) for line in block.code.splitlines()]
            if block.output is not None:
                assert printed[-1].splitlines()[-1] == block.output.strip(), f"{page.name}:{block.line}"


def run(line: str) -> str:
    words = shlex.split(os.path.expandvars(line))
    if words[0] != "valley":
        assert words[0] in ("pip", "python"), line  # what the tests have, or take the place of
        return ""
    if words[1] == "train":
        flags = arguments("stage2_instruct.yaml", "path/to/valley", "none", "none", max_steps=4, preview_steps=0)[2:]
        given = {word for word in words if word.startswith("--")} | {"--data"}
        for name, value in zip(flags[::2], flags[1::2], strict=True):
            words += [] if name.replace("_", "-") in given else [name, value]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, (line, result.output, result.exception)
    return result.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    """All but what tells times and folders, and the checkpoint that was there before."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    left_out = (".sqlite", ".json", ".bin", "training_args.bin", ".png", ".csv")
    return {
        name: data
        for name, data in files.items()
        if not name.startswith("path/")
        and (not name.startswith("outputs/") or name.endswith(".safetensors"))
        and not name.endswith(left_out)
    }


def test_the_way_from_captions_to_a_trained_model_gives_the_same_bytes_twice(place, asked, tmp_path):
    made = []
    with openai_server(answer) as server:
        for turn in range(2):
            walk(REBUILD, server.url)
            shutil.rmtree(tmp_path / "cache")
            made.append(files_of(place))
            for entry in place.iterdir():  # the second time everything is made anew, in the same place
                if entry.name != "path":
                    entry.rename(tmp_path / f"{turn}-{entry.name}")
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    assert {
        "chosen.jsonl.card.md",
        "clean.jsonl.marked.jsonl",
        "instruct.html",
        "packed/README.md",
        "packed/train-00000-of-00001.parquet",
        "outputs/rebuilt/model.safetensors",
    } <= made[0].keys()
    assert asked == ["owner/name", "README.md", "clean.jsonl"] * 2
    assert made[0]["clean.jsonl.marked.jsonl"] and made[0]["clean.jsonl"]


def test_the_page_about_packing(place, asked, monkeypatch):
    (place / "clips").mkdir()
    for name in ("clips/clip.mp4", "clip.mp4"):
        write_clip(place / name, 30, fps=10)
    row = {"video": "clip.mp4", "question": "What happens?", "answer": "It moves."}
    (place / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    (place / "big.jsonl").write_text("\n".join([json.dumps(row | {"video": str(place / "clip.mp4")})] * 64))
    monkeypatch.setattr(mixtures, "hf_hub_download", lambda repo, name, **options: str(place / "packed" / name))
    monkeypatch.setattr(mixtures, "snapshot_download", lambda *args, **options: str(place / "packed"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    walk(PACK)
    assert asked == ["owner/name", "README.md", "packed", "owner/name", "README.md", "llava.json"]
    assert len(list((place / "packed_big").glob("*.parquet"))) == 4
    for task in range(1, 16):  # the other machines of the array
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        run(next(line for block in blocks(PACK, "bash") for line in block.code.splitlines() if "SLURM" in line))
    assert len(list((place / "packed_big").glob("*.parquet"))) == 64 and (place / "packed_big/README.md").exists()
