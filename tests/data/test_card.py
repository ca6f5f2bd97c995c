# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Cards tell where data come from, and nothing is pushed that they do not allow."""

import json
from types import SimpleNamespace

import pytest
from clips import write_clip
from huggingface_hub import DatasetCard
from typer.main import get_command
from typer.testing import CliRunner

from transformers_valley.data import card as module
from transformers_valley.data.card import build_data_card, card_path, push_data, write_data_card
from valley_cli.app import app
from valley_cli.data import command_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Two clips, and rows about them in a file of one's own and in one called as a set of the paper."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for number in range(2):
        write_clip(tmp_path / "clips" / f"{number}.mp4", 5)
    lines = [json.dumps({"video": f"{i}.mp4", "question": f"What {i}?", "answer": "Bars."}) for i in (0, 1, 0)]
    for name in ("mine", "valley_instruct_65k"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


class Hub:
    """What is asked of the Hub, in order."""

    def __init__(self):
        self.calls = []
        self.private = True

    def repo_info(self, repo_id, repo_type):
        assert (repo_id, repo_type) == ("o/n", "dataset")
        return SimpleNamespace(private=self.private)

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append((name, SimpleNamespace(args=args, **options)))
            return "https://huggingface.co/datasets/o/n"

        return call


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    return hub


def run(*words):
    return CliRunner().invoke(app, ["data", *map(str, words)])


def pack(work, *files, **options):
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = run("pack", *files, "-o", work / "packed", "--media-root", work / "clips", "--num-shards", 2, *flags)
    assert result.exit_code == 0, result.output


def test_the_card_of_a_pack_counts_and_tells_the_command_without_folders(work):
    pack(work, work / "mine.jsonl", work / "valley_instruct_65k.jsonl", shard="1/2", workers=1)
    assert not (work / "packed" / "README.md").exists()  # a part is not there
    pack(work, work / "mine.jsonl", work / "valley_instruct_65k.jsonl", fps="0.5")
    card = DatasetCard.load(work / "packed" / "README.md")
    text = card.content
    assert "6 rows" in text and "| mine | 3 | 3 | 0 | not known | not known |" in text
    assert (
        "| [Valley-Instruct-65k](https://huggingface.co/datasets/luoruipu1/Valley-Instruct-65k)" in text
        and "JukinMedia" in text
    )
    assert "the frames and images may not" in text
    assert str(work) not in text
    command = "pack mine.jsonl valley_instruct_65k.jsonl --output packed --media-root clips --fps 0.5 --num-shards 2"
    assert f"\nvalley data {command}\n" in text
    assert card.data.configs == [{"config_name": "default", "data_files": "train-*.parquet"}]
    assert card.data.license is None and card.data.source_datasets == ["luoruipu1/Valley-Instruct-65k"]


def test_the_licence_of_all_is_that_of_the_set(tmp_path):
    counts = {"Valley-702k": {"rows": 2000, "clips": 2000, "images": 0}}
    card = build_data_card(tmp_path / "rows.jsonl", counts)
    assert card.data.license == "cc-by-nc-4.0" and card.data.size_categories == "1K<n<10K"
    assert "No clip and no image is in this data set" in card.text


def test_a_card_that_a_person_wrote_is_kept(work, caplog):
    pack(work, work / "mine.jsonl")
    path = card_path(work / "packed")
    written = path.read_text()
    path.write_text("# Mine\n")
    pack(work, work / "mine.jsonl")
    assert path.read_text() == "# Mine\n" and "is kept" in caplog.text
    path.write_text(written + "x")
    pack(work, work / "mine.jsonl")
    assert path.read_text() == written


def test_files_of_rows_have_a_card_beside_them(work, hub):
    assert run("export", work / "mine.jsonl", "-o", work / "llava.json").exit_code == 0
    assert "| mine | 3 | 3 | 0 |" in (work / "llava.json.card.md").read_text()
    result = run("push", work / "llava.json", "o/n", "--license", "cc-by-4.0")
    assert result.exit_code == 0 and result.stdout.strip() == "https://huggingface.co/datasets/o/n"
    (made, about), (_, commit) = hub.calls
    assert made == "create_repo" and about.repo_type == "dataset" and not about.private
    card, file = commit.args[1]
    assert (card.path_in_repo, file.path_in_repo) == ("README.md", "llava.json")
    assert "license: cc-by-4.0" in card.path_or_fileobj.decode()


def test_no_card_tells_a_folder_of_this_machine(work):
    """What is a folder becomes its last part; names on the Hub stay, also with a revision."""
    commands = get_command(app).commands["data"].commands
    words = ["/a=b/rows.jsonl", "-o", str(work / "out"), "--dataset", str(work / "clips"), "--dataset", "o/n@v1"]
    context = commands["export"].make_context("export", [*words, "--media-root", f"x={work}/clips"])
    told = "rows.jsonl --output out --dataset clips --dataset o/n@v1 --media-root x=clips"
    assert command_of(context) == f"valley data export {told}"
    context = commands["filter"].make_context("filter", ["a", "-o", "b", "--language-model", "/models/spacy"])
    assert command_of(context).endswith("--language-model spacy")


@pytest.mark.parametrize(
    ("name", "why"), [("mine", "no card says whose"), ("valley_instruct_65k", "cannot be passed")]
)
def test_frames_are_pushed_by_those_who_may(work, hub, name, why):
    pack(work, work / f"{name}.jsonl")
    refused = run("push", work / "packed", "o/n", "--private")
    assert refused.exit_code == 1 and why in refused.stderr and "--share-media" in refused.stderr and not hub.calls
    assert run("push", work / "packed", "o/n", "--private", "--share-media").exit_code == 0
    names = [call for call, _ in hub.calls]
    assert names == ["create_repo", "create_commit", "upload_folder"]  # the card before the data
    assert hub.calls[0][1].private and "*.bad.jsonl" not in hub.calls[2][1].allow_patterns


def test_a_public_data_set_is_not_taken_for_a_private_one(work, hub):
    hub.private = False
    (work / "texts.jsonl").write_text(json.dumps({"question": "A?", "answer": "B."}))
    run("export", work / "texts.jsonl", "-o", work / "llava.json")
    refused = run("push", work / "llava.json", "o/n", "--private")
    assert refused.exit_code == 1 and "o/n is a public data set, and nothing was pushed" in refused.stderr
    assert [call for call, _ in hub.calls] == ["create_repo"]
    assert run("push", work / "llava.json", "o/n").exit_code == 0


def test_rows_without_media_need_no_right(work, hub):
    (work / "texts.jsonl").write_text(json.dumps({"question": "A?", "answer": "B."}))
    pack(work, work / "texts.jsonl", num_shards=1)
    assert run("push", work / "packed", "o/n").exit_code == 0


def test_what_is_not_whole_is_not_pushed(work, hub):
    pack(work, work / "mine.jsonl")
    card_path(work / "packed").unlink()
    with pytest.raises(FileNotFoundError, match="There is no card.*README.md.*run it again"):
        push_data(work / "packed", "o/n", share_media=True)
    next((work / "packed").glob("*.parquet")).unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 shards"):
        push_data(work / "packed", "o/n", share_media=True)
    with pytest.raises(FileNotFoundError, match="neither a folder of packed rows nor a file"):
        push_data(work / "clips", "o/n")
    assert not hub.calls


def test_a_persons_card_says_nothing_of_frames(work, hub):
    pack(work, work / "mine.jsonl")
    card_path(work / "packed").write_text("# Mine\n")
    with pytest.raises(ValueError, match="no card says whose they are"):
        push_data(work / "packed", "o/n")


def test_a_card_is_the_same_each_time(tmp_path):
    counts = {"a|b": {"rows": 1, "clips": 0, "images": 1}}
    texts = [write_data_card(tmp_path / "rows.jsonl", counts, settings={"by": "x"}).read_bytes() for _ in range(2)]
    assert texts[0] == texts[1] and b"a\\|b" in texts[0]
