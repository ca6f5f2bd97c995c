# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The house rules of CONTRIBUTING.md that code can check."""

import ast
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import transformers

import transformers_valley


PACKAGE = Path(transformers_valley.__file__).parent
# A module imports only from lower floors, and never a neighbour on its own.
FLOORS = [
    {"video_interrupts"},
    {
        "endpoint",
        "paper_data",
        "plots",
        "request_checks",
        "string_match",
        "tables",
        "video_cropping",
        "video_sources",
        "whole_files",
    },
    {"configuration_valley", "video_packets"},
    {"modeling_valley", "video_files"},
    {"video_decoding"},
    {"video_processing_valley"},
    {"processing_valley"},
    {"answer_text", "pipeline_valley", "data", "contact_sheet", "hub", "checkpoint"},
    {"training", "evaluation", "chat", "serving", "vllm_plugin"},
    {"demo", "lmms_eval_plugin"},
    {"__init__"},
]
MODEL_FILES = [
    "configuration_valley",
    "modeling_valley",
    "video_interrupts",
    "video_sources",
    "video_cropping",
    "video_packets",
    "video_files",
    "video_decoding",
    "video_processing_valley",
    "processing_valley",
]
NEED_OPTIONAL = ("data", "training", "evaluation", "lmms_eval_plugin")
OPTIONAL = {"trl", "datasets", "peft", "gradio", "deepspeed", "accelerate", "openai"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(line, level, module, at the top of the file) of every import."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", id(node) in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, 0, alias.name, id(node) in top


def test_imports_run_downward_only():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for path, name in modules():
        depth = len(path.relative_to(PACKAGE).parts)
        for line, level, module, _ in imports(path):
            if level == depth:  # relative to the package itself
                target = module.split(".")[0]
                assert floor[target] < floor[name], f"{path.name}:{line} imports {target} from below"
            if "metrics" in path.parts:  # `evaluate.load` copies these files elsewhere
                continue
            assert not module.startswith("transformers_valley"), f"{path.name}:{line} imports the package by name"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_can_travel_with_a_checkpoint(name):
    """Remote code is copied file by file into one folder: only siblings, and only installed packages at the top."""
    for line, level, module, _ in imports(PACKAGE / f"{name}.py"):
        assert level <= 1 and (level == 0 or module in MODEL_FILES), f"{name}.py:{line} imports {module}"


def test_optional_packages_are_imported_where_they_are_needed():
    for path, name in modules():
        for line, level, module, top in imports(path):
            if level == 0 and module.split(".")[0] in OPTIONAL and name not in NEED_OPTIONAL:
                assert not top, f"{path.name}:{line} imports {module} at the top"


def test_import_is_light():
    code = (
        "import sys, transformers.pipelines, transformers.video_processing_utils\n"  # older versions import av
        "heavy = {'trl', 'datasets', 'peft', 'gradio', 'av', 'deepspeed', 'transformers_valley.contact_sheet'}\n"
        "heavy |= {'fastapi', 'uvicorn', 'openai'}\n"
        "heavy -= set(sys.modules)\n"
        "import transformers_valley\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tree_in_contributing_is_the_real_one():
    tree = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text().partition("src/transformers_valley/\n")[2]
    listed = {
        name
        for line in tree.partition("src/valley_cli")[0].splitlines()
        for name in re.findall(r"[\w.]+\.py|\w+/", line[:30])
    }
    there = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir()}
    there = {name for name in there if name.endswith((".py", "/")) and not name.startswith("__")}
    assert listed == there


def test_public_names():
    assert transformers_valley.__all__ == [
        "ValleyConfig",
        "ValleyForConditionalGeneration",
        "ValleyModel",
        "ValleyProcessor",
        "ValleyVideoProcessor",
        "VideoTextToTextPipeline",
    ]


def test_model_type_is_free():
    """transformers may one day ship a `valley` of its own; then this package has to step aside."""
    assert not (Path(transformers.__file__).parent / "models" / "valley").exists()


def test_every_file_says_its_license():
    for path, _ in modules():
        assert path.read_text().startswith(
            "# Copyright 2026 The transformers_valley authors. Apache-2.0 license.\n"
        ), path


@pytest.mark.parametrize("kind", [FutureWarning, DeprecationWarning])
def test_what_we_call_is_not_deprecated(kind):
    """Such a warning in our own code is an error in every test."""
    with pytest.raises(kind):
        warnings.warn_explicit("it goes", kind, "chat.py", 1, module="transformers_valley.chat")
