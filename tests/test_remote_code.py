# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A saved folder is enough: it loads where the package is not, by the code that lies in it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_house import MODEL_FILES
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

from transformers_valley import (
    ValleyConfig,
    ValleyForConditionalGeneration,
    ValleyModel,
    ValleyProcessor,
    ValleyVideoProcessor,
)


ASK = """
messages = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": "What?"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
"""

WITHOUT_THE_PACKAGE = (
    """
import importlib.util, json, sys
assert importlib.util.find_spec("transformers_valley") is None
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor,
    pipeline,
)
folder, clip, again = sys.argv[1:]
load = lambda auto: auto.from_pretrained(folder, trust_remote_code=True)
autos = (
    AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor,
)
classes = {auto.__name__: type(load(auto)).__name__ for auto in autos}
model, processor = load(AutoModelForMultimodalLM), load(AutoProcessor)
"""
    + ASK
    + """
frames = [{"role": "user", "content": [
    {"type": "video", "video": [processor.video_processor.sample(clip).frames[0]] * 2, }, {"type": "text", "text": "?"}
]}]
processor.apply_chat_template(frames, tokenize=True, return_dict=True, return_tensors="pt")
answer = pipeline("any-to-any", model=folder, trust_remote_code=True)(text=messages, max_new_tokens=5)
model.save_pretrained(again)
processor.save_pretrained(again)
print(json.dumps({"classes": classes, "tokens": tokens, "answer": answer[0]["generated_text"][-1]["role"]}))
"""
)


def run(code, *arguments, home, environment=Path(sys.prefix)):
    """Runs code in an interpreter that has all packages but this one, and gives the object that it prints."""
    # Without `site` no .pth file is read, and an editable install is one.
    packages = [sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})]
    # What an environment does not have itself is another one's, as in .venv-oldest.
    packages += [path for path in sys.path if path.endswith("site-packages")]
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PYTHONPATH": os.pathsep.join(packages),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [environment / "bin/python", "-S", "-c", code, *map(str, arguments)],
        env=variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_folder_loads_without_the_package(checkpoint, clip, tmp_path):
    found = run(WITHOUT_THE_PACKAGE, checkpoint, clip, tmp_path / "again", home=tmp_path / "home")
    assert found["classes"] == {
        "AutoConfig": "ValleyConfig",
        "AutoModel": "ValleyModel",
        "AutoModelForImageTextToText": "ValleyForConditionalGeneration",
        "AutoModelForMultimodalLM": "ValleyForConditionalGeneration",
        "AutoProcessor": "ValleyProcessor",
        "AutoVideoProcessor": "ValleyVideoProcessor",
    }
    assert found["answer"] == "assistant"
    # What it answers is what the package answers, from the folder and from one that was saved without the package.
    for folder in (checkpoint, tmp_path / "again"):
        names = {"clip": clip, "model": AutoModelForImageTextToText.from_pretrained(folder)}
        names["processor"] = AutoProcessor.from_pretrained(folder)
        exec(ASK, names)
        assert names["tokens"] == found["tokens"]
        assert {path.stem for path in Path(folder).glob("*.py")} == set(MODEL_FILES)


def other_environments() -> list[Path]:
    """Those that the Makefile has made beside this one, with other versions of transformers."""
    return [
        flag.parent
        for flag in Path(sys.prefix).parent.glob(".venv*/installed")
        if flag.parent != Path(sys.prefix)
        and any(flag.parent.glob("lib/python3*/site-packages/transformers/__init__.py"))
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not other_environments(), reason="needs an environment beside this one: `make test-oldest` has one"
)
@pytest.mark.parametrize("other", other_environments(), ids=lambda folder: folder.name)
def test_a_folder_answers_the_same_under_other_versions_and_back(other, checkpoint, clip, tmp_path):
    there = run(WITHOUT_THE_PACKAGE, checkpoint, clip, tmp_path / "there", home=tmp_path / "home", environment=other)
    here = run(WITHOUT_THE_PACKAGE, tmp_path / "there", clip, tmp_path / "again", home=tmp_path / "home")
    assert there == here
    names = {"clip": clip, "model": AutoModelForImageTextToText.from_pretrained(tmp_path / "there")}
    names["processor"] = AutoProcessor.from_pretrained(tmp_path / "there")
    exec(ASK, names)
    assert names["tokens"] == here["tokens"]


@pytest.mark.parametrize("trust", [None, True, False])
def test_with_the_package_no_code_of_a_folder_runs(checkpoint, tmp_path, trust):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.py"):
        path.write_text("raise RuntimeError('code of the checkpoint ran')\n")
    kwargs = {} if trust is None else {"trust_remote_code": trust}
    for auto, expected in (
        (AutoConfig, ValleyConfig),
        (AutoModel, ValleyModel),
        (AutoModelForImageTextToText, ValleyForConditionalGeneration),
        (AutoModelForMultimodalLM, ValleyForConditionalGeneration),
        (AutoProcessor, ValleyProcessor),
        (AutoVideoProcessor, ValleyVideoProcessor),
    ):
        assert type(auto.from_pretrained(tmp_path, **kwargs)) is expected
    pipe = pipeline("video-text-to-text", model=str(tmp_path), **kwargs)
    assert type(pipe.model) is ValleyForConditionalGeneration


def test_a_config_names_no_pipeline(checkpoint):
    """`custom_pipelines` would make `pipeline(...)` ask for trust_remote_code even where the package is installed."""
    config = json.loads(Path(checkpoint, "config.json").read_text())
    assert "custom_pipelines" not in config
    assert list(config["auto_map"])[0] == "AutoConfig" and "AutoModel" in config["auto_map"]
