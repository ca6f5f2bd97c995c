# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`Checkpoint`: a folder or a name on the Hub, found before anything large is read, then loaded.

In goes what a user typed; out come model and processor, or one error that says what is wrong with it.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import find_adapter_config_file

from .configuration_valley import ValleyConfig
from .modeling_valley import ValleyForConditionalGeneration
from .processing_valley import ValleyProcessor


__all__ = ["Checkpoint", "check_device", "check_dtype", "check_reachable", "find_checkpoint", "why_not_loaded"]

_CONFIGS = ("config.json", "adapter_config.json")
_WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth"]
QUANTIZATION = {
    "bnb-4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb-8bit": {"load_in_8bit": True},
}


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint that is there, of [`find_checkpoint`].

    Args:
        path (`str`): a folder, or a name on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
    """

    path: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """What others may call it: the last part of a folder's path, or all of a name on the Hub."""
        if os.path.isdir(self.path):
            return Path(self.path).resolve().name
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    @cached_property  # on the Hub it is a question
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which transformers loads together with the model that it names."""
        if os.path.exists(os.path.join(self.path, "config.json")):
            return False
        return find_adapter_config_file(self.path, revision=self.revision or "main") is not None

    def load_processor(self) -> ValleyProcessor:
        """Load the processor."""
        revision = self.revision or "main"
        if not os.path.isdir(self.path) and self.is_adapter:
            # By its name and without a connection, transformers finds no tokenizer where there is no config.json.
            folder = snapshot_download(self.path, revision=revision, ignore_patterns=_WEIGHTS)
            return ValleyProcessor.from_pretrained(folder)
        return ValleyProcessor.from_pretrained(self.path, revision=revision)

    def load_model(
        self,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        quantization: str | None = None,
    ) -> ValleyForConditionalGeneration:
        """
        Load the model, ready to answer.

        Args:
            device (`str`, *optional*, defaults to `"auto"`):
                Where it runs, such as `"cuda:0"`; by default on all GPUs, or the CPU.
            dtype (`str`, *optional*, defaults to `"auto"`):
                Of its weights, such as `"bfloat16"`; by default that of the checkpoint.
            attn_implementation (`str`, *optional*):
                Its attention, such as `"sdpa"`.
            quantization (`str`, *optional*):
                `"bnb-4bit"` or `"bnb-8bit"`: load the weights in fewer bits.

        Raises:
            ValueError: if there is no such device, dtype or quantization.
        """
        check_dtype(dtype)
        if quantization is not None and quantization not in QUANTIZATION:
            raise ValueError(f"There is no quantization {quantization!r}, expected one of {sorted(QUANTIZATION)}.")
        options: dict[str, Any] = {}
        if quantization is not None:
            options["quantization_config"] = BitsAndBytesConfig(**QUANTIZATION[quantization])
        revision = self.revision or "main"
        if self.revision is not None and self.is_adapter:  # a revision of the adapter, and not of its model
            revision, options["adapter_kwargs"] = "main", {"revision": self.revision}
        model = ValleyForConditionalGeneration.from_pretrained(
            self.path,
            revision=revision,
            dtype=dtype,
            device_map=check_device(device),
            attn_implementation=attn_implementation,
            **options,
        )
        return model.eval()


def find_checkpoint(name: str) -> Checkpoint:
    """
    Find a checkpoint of Valley, or an adapter of one.

    Args:
        name (`str`): a folder, or a name on the Hub, perhaps with `@REVISION`.

    Raises:
        OSError: if there is none, or it cannot be reached.
        ValueError: if it is one of another model.
    """
    path, _, revision = (name, "", "") if os.path.isdir(name) else name.partition("@")
    checkpoint = Checkpoint(path, revision or None)
    check_reachable(path, checkpoint.revision)
    try:
        config = _read_config(checkpoint)
    except (OSError, ValueError) as error:
        raise OSError(f"Cannot load {name!r}: {why_not_loaded(path, error)}") from error
    if not isinstance(config, ValleyConfig):
        raise ValueError(f"{name!r} is not a Valley checkpoint but one of {config.model_type!r}.")
    return checkpoint


def check_reachable(name: str, revision: str | None = None) -> None:
    """
    Ask the Hub once, unless `name` is a folder or was downloaded before.

    Where there is no connection, transformers asks for each file six times, and waits between: minutes for a folder
    whose name was mistyped.

    Args:
        name (`str`): a folder, or a name on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        OSError: if there is no such folder, and no connection to the Hub.
    """
    if os.path.exists(name):
        return
    try:
        if not any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _CONFIGS):
            model_info(name, revision=revision, timeout=10)
    except Exception as error:
        # By name: huggingface_hub has changed its HTTP library before. Of all else transformers says what it is, such
        # as a name that the Hub does not have, or tries again.
        if not {"ConnectError", "ConnectTimeout"} & {kind.__name__ for kind in type(error).__mro__}:
            return
        reason = str(error) or type(error).__name__
        raise OSError(
            f"Cannot load {name!r}: there is no such folder here, and the Hub cannot be reached ({reason})."
        ) from error


def why_not_loaded(name: str, error: Exception) -> str:
    """Why a folder, or a name on the Hub, could not be loaded: what transformers says of it is about both."""
    reason = str(error).strip().splitlines()[0]
    if os.path.isfile(name):
        return "it is a file, and a checkpoint is a folder. Unpack an archive first."
    if os.path.isdir(name):
        is_empty = not any(os.path.exists(os.path.join(name, file)) for file in _CONFIGS)
        inner = [path.parent for path in sorted(Path(name).glob("*/config.json"))]
        return f"it has no config.json, and '{inner[0]}' has: name that." if is_empty and inner else reason
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return "there is no such folder."
    return f"there is no such folder here, nor can it be read from the Hub: {reason}"


def _read_config(checkpoint: Checkpoint) -> Any:
    where = {"revision": checkpoint.revision or "main"}
    try:
        return AutoConfig.from_pretrained(checkpoint.path, **where)
    except (OSError, ValueError):
        if not checkpoint.is_adapter:
            raise
    try:
        from peft import PeftConfig
    except ModuleNotFoundError as error:
        raise ImportError(f"{checkpoint.path!r} is a LoRA adapter, which needs peft: pip install peft.") from error

    base = PeftConfig.from_pretrained(checkpoint.path, **where).base_model_name_or_path
    if base is None:
        raise OSError("it is an adapter whose adapter_config.json names no base_model_name_or_path: write it there.")
    try:
        check_reachable(base)
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"it is an adapter of {base!r}, which cannot be loaded: {reason}") from error


def check_dtype(dtype: str) -> None:
    """
    Check the name of a dtype of weights.

    Raises:
        ValueError: if it is none.
    """
    if dtype != "auto" and not getattr(getattr(torch, dtype, None), "is_floating_point", False):
        raise ValueError(f"There is no dtype {dtype!r}. Give auto, float32, float16 or bfloat16.")


def check_device(device: str) -> str | int:
    """
    Check that weights can lie on a device; a number becomes one.

    Raises:
        ValueError: if they cannot.
    """
    device = int(device) if device.isdigit() else device
    try:
        torch.empty(1, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"The device {device!r} cannot be used ({reason}). Leave it out, or give cpu.") from error
    return device
