# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What README and docs say is so: code runs, commands parse, links lead to files, tables agree with the code.

- A `python` block runs after those above it on its page, in a folder with a tiny checkpoint and a few small files
  (`workplace`). `python no-run` marks one that cannot.
- A `text` block right below one, on a page of docs/, is what it prints.
- `bash` blocks are parsed, not run; keys of `yaml` blocks are arguments of `examples/sft.py`; `json` blocks are rows.
"""

import ast
import contextlib
import dataclasses
import doctest
import inspect
import io
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from clips import write_clip
from peft import LoraConfig, get_peft_model
from test_house import FLOORS
from tiny import IMAGE_SIZE, tiny_text, tiny_tokenizer, tiny_vision
from transformers import AutoModelForImageTextToText, CLIPImageProcessor
from trl import ModelConfig, SFTConfig, TrlParser

from transformers_valley import ValleyConfig, ValleyVideoProcessor
from transformers_valley.data import Source, to_row
from transformers_valley.training import ValleyArguments
from transformers_valley.video_decoding import sample_video


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
CONFIGS = ROOT / "examples" / "configs"
ARGUMENTS = (ValleyArguments, SFTConfig, ModelConfig)

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""\]\(([^)\s]+)\)|(?:src|href)="([^"]+)\"""")
REPOSITORY_PATH = re.compile(r"(?:examples|src|tests|docs|benchmarks|\.ci)/\S*")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclasses.dataclass
class Block:
    """A fenced block: what follows the fence's backticks, the line it begins in, and the output printed below it."""

    info: str
    code: str
    line: int
    output: str | None


def blocks(page: Path, *infos: str) -> list[Block]:
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    found = []
    for fence, following in zip(fences, [*fences[1:], None], strict=False):
        below = following if following and not text[fence.end() : following.start()].strip() else None
        output = below[2] if below and below[1] == "text" and ROOT / "docs" in page.parents else None
        found.append(Block(fence[1].strip(), fence[2], text.count("\n", 0, fence.start()) + 1, output))
    return [block for block in found if block.info in infos]


def commands(page: Path) -> list[list[str]]:
    """The words of every command, without comments and variables before it."""
    lines = []
    for block in blocks(page, "bash", "sh", "shell", "console"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            lines += [words] if words else []
    return lines


def tables(page: Path) -> list[list[list[str]]]:
    """Every table as its rows, the header first, of cells without backticks."""
    found = re.findall(r"(?:^\|.*\|\n)+", FENCE.sub("", page.read_text()), re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line[1:-1]) for line in table.splitlines()] for table in found]
    return [[[cell.strip().replace("`", "") for cell in row] for row in table[:1] + table[2:]] for table in rows]


def table(page: str, *header: str) -> dict[str, list[str]]:
    """Rows of the table that begins with these column names, by name; `a`, `b` in the first column are two rows."""
    found = [rows for rows in tables(ROOT / page) if tuple(rows[0][: len(header)]) == header]
    assert len(found) == 1, f"{page} has {len(found)} tables that begin with {header}"
    return {name: row[1:] for row in found[0][1:] for name in row[0].split(", ")}


def value(cell: str):
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return yaml.safe_load(cell)


# --- Python --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _workplace(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("path/to/valley", "outputs/quickstart/checkpoint", "outputs/stage1_align", "outputs/stage2_instruct"):
        shutil.copytree(checkpoint, folder / name)
    shutil.copytree(checkpoint, folder / "outputs/stage1_align/checkpoint-3000")  # killed before it was complete

    recipe = yaml.safe_load((CONFIGS / "stage2_lora.yaml").read_text())
    lora = LoraConfig(target_modules=recipe["lora_target_modules"], modules_to_save=recipe["lora_modules_to_save"])
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(checkpoint), lora)
    shutil.copytree(
        checkpoint,
        folder / "outputs/stage2_lora",
        ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json"),
    )
    model.save_pretrained(folder / "outputs/stage2_lora")

    vision, text = folder / "openai/clip-vit-large-patch14", folder / "lmsys/vicuna-13b-v1.5"
    size, crop_size = {"shortest_edge": IMAGE_SIZE}, {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    for part in (tiny_vision(), CLIPImageProcessor(size=size, crop_size=crop_size)):
        part.save_pretrained(vision)
    for part in (tiny_text(), tiny_tokenizer()):
        part.save_pretrained(text)

    clips = folder / "outputs/quickstart/clips/test"
    clips.mkdir(parents=True)
    for clip in (clips / "00000.mp4", clips / "00001.mp4"):
        write_clip(clip, 60, fps=10)
    for name in ("clip.mp4", "picture.png"):
        shutil.copy(ROOT / "examples" / name, folder)
    return folder


@pytest.fixture
def workplace(_workplace, tmp_path, monkeypatch):
    """What a reader has: `clip.mp4`, `picture.png`, a checkpoint in `path/to/valley`, what quickstart and the recipes
    put into `outputs`, and tiny models under the names of those that the recipes join."""
    shutil.copytree(_workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page.stem == "describe_your_first_video" else page
        for page in PAGES
        if blocks(page, "python")
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_runs_and_prints_what_the_page_says(page, workplace):
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = doctest.script_from_examples(block.code) if block.code.startswith(">>>") else block.code
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + code, page, "exec"), namespace)
        assert printed.getvalue().strip(), (
            f"{page.name}:{block.line} prints nothing: its reader cannot tell that it ran"
        )
        if block.output is not None:
            assert printed.getvalue().strip() == block.output.strip(), f"{page.name}:{block.line}"


# --- Links, commands, YAML, JSON -----------------------------------------------------------------------------------


@each_page
def test_links_lead_to_files(page):
    for markdown, html in LINK.findall(FENCE.sub("", page.read_text())):
        target = (markdown or html).partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@each_page
def test_paths_of_the_repository_exist(page):
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))
    for word in [*inline, *(word for words in commands(page) for word in words)]:
        if REPOSITORY_PATH.fullmatch(word):
            assert (ROOT / word).exists(), word


@each_page
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in commands(page):
        program, *arguments = words
        if program == "make":
            for word in arguments:
                variable = word.partition("=")[0]
                known = f"$({variable})" in makefile if "=" in word else f"\n{word}:" in makefile
                assert known, f"the Makefile knows no {word}"
        elif "install" in arguments:
            for extra in re.findall(r"\[([\w,-]+)\]", " ".join(arguments)):
                assert set(extra.split(",")) <= set(extras), extra
        elif Path(program).name == "accelerate" and arguments[0] == "launch":
            launch = launch_command_parser().parse_args(arguments[1:])
            assert launch.config_file is None or Path(launch.config_file).exists()
            check_flags(launch.training_script, launch.training_script_args)
        elif Path(program).name.startswith("python") and arguments and arguments[0].endswith(".py"):
            check_flags(arguments[0], arguments[1:])


def check_flags(script: str, flags: list[str]):
    if script == "examples/sft.py":
        TrlParser(ARGUMENTS).parse_args_and_config([*flags, "--use_cpu", "true"])
    for flag in flags:
        assert script == "examples/sft.py" or not flag.startswith("--") or f'"{flag}"' in Path(script).read_text(), (
            flag
        )


@each_page
def test_yaml_keys_are_arguments(page):
    known = {field.name for arguments in ARGUMENTS for field in dataclasses.fields(arguments)}
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.code)
        if "sources" in content:  # a mixture
            assert [Source(**entry) for entry in content.pop("sources")]
        assert set(content) <= known, f"{page.name}:{block.line}"


@each_page
def test_json_blocks_are_rows(page):
    for block in blocks(page, "json"):
        to_row(json.loads(block.code))


# --- Tables --------------------------------------------------------------------------------------------------------


def test_every_field_of_the_config_is_listed_with_its_default():
    listed = table("docs/reference/model.md", "field", "default")
    assert set(listed) == set(ValleyConfig.__annotations__)
    config = ValleyConfig()
    for name in listed.keys() - {"vision_config", "text_config"}:
        assert value(listed[name][0]) == getattr(config, name), name


def test_settings_of_the_video_processor():
    processor = ValleyVideoProcessor()
    listed = table("docs/reference/processor.md", "setting", "default")
    for name in listed.keys() - {"resample", "image_mean", "image_std"}:
        found = getattr(processor, name)
        assert (dict(found) if name in ("size", "crop_size") else found) == value(listed[name][0]), name


def test_arguments_of_sft():
    listed = table("docs/reference/training.md", "key", "default")
    fields = {field.name: field for field in dataclasses.fields(ValleyArguments)}
    assert list(listed) == list(fields)
    for name, (default, _) in listed.items():
        field = fields[name]
        made = field.default_factory() if field.default is dataclasses.MISSING else field.default
        assert value(default) == made, name


def test_recipes():
    configs = [
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        for name in ("stage1_align", "stage2_instruct", "stage2_lora")
    ]
    (differing,) = (rows for rows in tables(ROOT / "docs/reference/training.md") if "LoRA" in rows[0][-1])
    for name, *cells in differing[1:]:
        assert [value(cell) for cell in cells] == [config[name] for config in configs], name
    (shared,) = (rows for rows in tables(ROOT / "docs/reference/training.md") if rows[0][0] == "in all three")
    for names, cells, _ in shared[1:]:
        names, cells = names.split(", "), cells.split(", ")
        for name, cell in zip(names, cells * len(names), strict=False):  # one value may be that of several
            assert all(config[name] == value(cell) for config in configs), name


def test_arguments_of_sample_video():
    listed = table("docs/reference/video_decoding.md", "argument", "unit")
    assert ["source", *listed] == list(inspect.signature(sample_video).parameters)


def test_costs_of_visuals():
    rows = table("docs/explanation/prompt_and_tokens.md", "visual", "T")
    assert len(rows) > 5
    for frames, features, positions in rows.values():
        assert (int(features), int(positions)) == (256 + int(frames), 260 + int(frames))


def test_floors():
    listed = table("CONTRIBUTING.md", "floor")
    for level, names in enumerate(FLOORS):
        assert set(re.sub(":.*", "", listed[str(level)][0]).split(", ")) == names
