# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`write_space`: the demo as a Space, which is a folder with `app.py`, `README.md` and `requirements.txt`."""

import importlib.metadata
import os
from pathlib import Path


__all__ = ["write_space"]

_APP = """\
from transformers_valley.checkpoint import find_checkpoint
from transformers_valley.demo import LocalModel, build_demo
from transformers_valley.demo.app import LAUNCH


checkpoint = find_checkpoint("{checkpoint}")
model = LocalModel(checkpoint.load_model(), checkpoint.load_processor(), checkpoint.name, max_new_tokens=256)
build_demo(model).launch(**LAUNCH)
"""

# The fields: https://huggingface.co/docs/hub/spaces-config-reference
_README = """\
---
title: Ask {name} about a clip
emoji: 🎬
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models: [{checkpoint}]
pinned: false
---

Show a clip to [{checkpoint}](https://huggingface.co/{checkpoint}), see the frames that it gets, and ask.

Made by `valley demo {checkpoint} --space DIR` of transformers-valley {version}.
"""

_REQUIREMENTS = """\
transformers-valley[demo] @ git+https://github.com/transformers-valley/transformers-valley
torch
torchvision
"""


def write_space(folder: str | os.PathLike, checkpoint: str) -> None:
    """
    Write a Space.

    Args:
        folder (`str`): a new or empty folder.
        checkpoint (`str`): the model, as it is called on the Hub: `user/name`.

    Raises:
        ValueError: if `checkpoint` is not such a name.
        FileExistsError: if the folder holds something.
        ImportError: if Gradio, whose version a Space names, is not installed.
    """
    if checkpoint.count("/") != 1 or Path(checkpoint).exists():
        raise ValueError(
            f"A Space loads its model from the Hub, and {checkpoint!r} is not a name there, such as user/valley-13b. "
            "Push the checkpoint first: docs/how-to/publish_a_checkpoint.md."
        )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Name a new folder.")
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("The demo needs Gradio: pip install 'transformers-valley[demo]'.") from error
    values = {
        "checkpoint": checkpoint,
        "name": checkpoint.split("/")[1],
        "gradio": gradio,
        "version": importlib.metadata.version("transformers-valley"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(_APP.format(**values))
    (folder / "README.md").write_text(_README.format(**values))
    (folder / "requirements.txt").write_text(_REQUIREMENTS)
