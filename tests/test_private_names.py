# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the source uses of other packages without their promise: each name with the reason, and what would replace it.

A private name may vanish in any release. The list says where that would hurt; it names no more than is used.
"""

import ast
import importlib
import inspect
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from test_house import MODEL_FILES

import transformers_valley


SRC = Path(transformers_valley.__file__).parents[1]
PACKAGES = ("transformers_valley", "valley_cli")
MOST = 15  # names in ALLOWED

# name -> (files, why, what would replace it)
ALLOWED = {
    "transformers.models.auto.modeling_auto": (
        {"__init__"},
        "`transformers serve` and the pipelines look a model up by its type in tables of this module",
        "lookups through the Auto classes, in which Valley is registered",
    ),
    "transformers.integrations.get_reporting_integration_callbacks": (
        {"training/prepare"},
        "reporters have to be called after what adds values to a log entry, and the trainer puts them first",
        "a hook of TrainerCallback that adds values to a log entry",
    ),
    "transformers.quantizers.AutoQuantizationConfig": (
        {"training/stages"},
        "a quantization_config may be a dict, whose class depends on its quant_method",
        "from_pretrained that leaves modules out by an argument of its own",
    ),
    "transformers.trainer_callback.ExportableState": (
        {"training/checkpoints"},
        "the list of a checkpoint's files goes into trainer_state.json, the file that is written last",
        "an event between the last file of a checkpoint and its state",
    ),
    "transformers.processing_utils.ProcessingKwargs": (
        {"processing_valley"},
        "engines read from the signature of a processor which keyword arguments it takes, and this is their type",
        "its export by transformers",
    ),
    "transformers.models.auto.video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES": (
        {"vllm_plugin/media"},
        "vLLM looks a video processor up by its type in this table",
        "a lookup by vLLM through AutoVideoProcessor, in which Valley's is registered",
    ),
    "_get_expected_hidden_size": (
        {"vllm_plugin/processing"},
        "vLLM checks features that a client computed by the sizes of the language model",
        "a check by what the model says of its own features",
    ),
    "transformers.video_utils.VideoMetadata": (
        {"video_processing_valley", "vllm_plugin/processing"},
        "the base class of video processors takes and gives it, and exports it nowhere else",
        "its export by transformers",
    ),
    "_weight_conversions": (
        {"training/stages"},
        "under ZeRO-3 a model remembers conversions of names that its checkpoint did not need, and saves by them",
        "the fix in transformers, which without ZeRO-3 remembers those only that it used",
    ),
    "_commit_hash": (
        {"evaluation/bertscore", "evaluation/judge"},
        "the revision of a model is recorded with its scores",
        "a documented way to the revision that from_pretrained found",
    ),
    "ds_numel": (
        {"training/parameters"},
        "ZeRO-3 leaves a weight with no values of its own, and its size here",
        "a count of parameters by DeepSpeed",
    ),
    "quant_state": (
        {"training/parameters"},
        "four bits of bitsandbytes are stored as bytes in another shape, and the true one is here",
        "num_parameters of transformers that counts by part",
    ),
}

# What the documentation tells the author of a model or a pipeline to define.
CONVENTIONS = {
    # transformers, "Contributing a new model" and the docstrings of PreTrainedModel's class attributes
    "_can_compile_fullgraph",
    "_init_weights",
    "_no_split_modules",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
    "_tied_weights_keys",
    "_tp_plan",  # "Tensor parallelism"
    "_forward",  # "Adding a new pipeline"
    *("_compute", "_info"),  # evaluate, "Creating and sharing a new evaluation"
}

# What vLLM's page "Multi-Modal Support" tells the author of a model to call.
CALLED = {"_get_dummy_images", "_get_dummy_videos", "_mark_language_model", "_mark_tower_model"}

# Modules below the top of a package that its documentation names as the place to import from.
DOCUMENTED = {
    *("PIL.Image", "PIL.ImageFont", "accelerate.utils", "av.filter", "av.sidedata.sidedata", "av.stream"),
    *("fastapi.exceptions", "fastapi.responses", "google.protobuf", "gradio.themes", "huggingface_hub.dataclasses"),
    *("huggingface_hub.utils", "matplotlib.figure", "matplotlib.ticker", "packaging.version", "pyarrow.parquet"),
    *("safetensors.torch", "starlette.datastructures", "starlette.exceptions", "starlette.middleware"),
    *("starlette.requests", "starlette.responses", "torch.nn.functional", "torch.nn.utils.rnn", "torch.utils.data"),
    *("torchcodec.decoders", "tqdm.auto", "typer.core", "typer.main"),
    *("transformers.generation", "transformers.integrations", "transformers.modeling_outputs"),
    *("transformers.pipelines", "transformers.quantizers", "transformers.utils"),
}
# Their documentation of models out of the tree names interfaces one by one; the plugins have tests of their own.
ELSEWHERE = ("vllm", "lmms_eval")
# Names without an underscore, in or on what is documented, that are nevertheless not.
UNDOCUMENTED = {
    *("transformers.integrations.get_reporting_integration_callbacks",),
    *("transformers.quantizers.AutoQuantizationConfig", "torch.utils.cpp_extension.get_cxx_compiler"),
    *("ds_id", "ds_numel", "ds_shape", "ds_status", "quant_state", "callback_handler", "_modules"),
}


def sources():
    """(file without its suffix, in its package; syntax tree) of all source files."""
    for package in PACKAGES:
        for path in sorted((SRC / package).rglob("*.py")):
            yield path.relative_to(SRC / package).with_suffix("").as_posix(), ast.parse(path.read_text())


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """What the source itself defines: functions, classes, attributes and names."""
    names = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def imported(tree):
    """Full names of what is imported from other packages, but for the standard library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in found:
            if module.split(".")[0] not in (*sys.stdlib_module_names, *PACKAGES, *ELSEWHERE):
                yield module, name


def attributes(tree):
    """Names behind a dot, and those that getattr and its like ask for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "os"):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr") and isinstance(node.args[1], ast.Constant):
                yield str(node.args[1].value)


def uses() -> dict[str, set[str]]:
    """Private and undocumented names of other packages, and the files that use them."""
    own, found = own_names(), defaultdict(set)
    for file, tree in sources():
        for module, name in imported(tree):
            full = f"{module}.{name}" if name else module
            is_deep = "." in module and module not in DOCUMENTED
            if is_deep or full in UNDOCUMENTED or any(map(is_private, full.split("."))):
                found[full].add(file)
        for name in attributes(tree):
            if name in UNDOCUMENTED or (is_private(name) and name not in own):
                found[name].add(file)
    return dict(found)


def overridden() -> dict[str, set[str]]:
    """Private names that a class of ours defines anew and a class of another package has."""
    found = defaultdict(set)
    for file, tree in sources():
        if not any(is_private(name) for node in ast.walk(tree) for name in defined_in(node)):
            continue
        path = file.removesuffix("/__init__").replace("/", ".")
        package = next(name for name in PACKAGES if (SRC / name / f"{file}.py").exists())
        try:
            module = importlib.import_module(package if path == "__init__" else f"{package}.{path}")
        except ModuleNotFoundError as error:  # a package that is not installed
            if (error.name or "").split(".")[0] in PACKAGES:
                raise
            continue
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                written = next(
                    (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == kind.__name__), None
                )
                for name in filter(is_private, defined_in(written)):
                    others = (base for base in kind.__mro__[1:] if base.__module__.split(".")[0] not in PACKAGES)
                    if any(name in vars(base) for base in others):
                        found[name].add(file)
    return dict(found)


def defined_in(node) -> set[str]:
    """Names of methods and attributes in the body of a class."""
    if not isinstance(node, ast.ClassDef):
        return set()
    names = {part.name for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for part in node.body:
        targets = (
            part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    found = uses()
    for name, files in overridden().items():
        if name not in CONVENTIONS:
            found.setdefault(name, set()).update(files)
    return {name: files for name, files in found.items() if name not in CONVENTIONS | CALLED}


def test_every_private_or_undocumented_name_is_listed(found):
    new = {name: files for name, files in found.items() if not files <= ALLOWED.get(name, (set(),))[0]}
    assert not new, "Use a documented name instead, or list it in ALLOWED with its reason."


def test_the_list_names_what_is_used_only(found):
    gone = {name: files - found.get(name, set()) for name, (files, _, _) in ALLOWED.items()}
    assert not {name: files for name, files in gone.items() if files}, "These are no longer used: shorten ALLOWED."


def test_the_conventions_are_followed_somewhere():
    assert overridden().keys() >= CONVENTIONS


def test_every_entry_has_a_reason_and_a_replacement():
    assert len(ALLOWED) <= MOST
    assert all(why and instead for _, why, instead in ALLOWED.values())


def test_files_that_travel_with_a_checkpoint_use_documented_names(found):
    """What is saved today is read by releases to come."""
    used = {name for name, files in found.items() if files & set(MODEL_FILES)}
    assert used == {"transformers.processing_utils.ProcessingKwargs", "transformers.video_utils.VideoMetadata"}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from torch._dynamo import reset", "torch._dynamo.reset"),
        ("import torch.utils._pytree", "torch.utils._pytree"),
        ("from transformers.masking_utils import sdpa_mask", "transformers.masking_utils.sdpa_mask"),
        ("from transformers import _is_here", "transformers._is_here"),
        ("model.config._attn_implementation", "_attn_implementation"),
        ("hasattr(weight, 'ds_numel')", "ds_numel"),
        ("from transformers import AutoModel\nself._mine = os._exit", None),
        ("from transformers.utils import logging", None),
    ],
)
def test_the_scan_finds_private_names(code, name, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "sources", lambda: [("file", ast.parse(code))])
    assert uses() == ({name: {"file"}} if name else {})
