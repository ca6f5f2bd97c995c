# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve --engine vllm`: the options of `valley serve` as the command line of `vllm serve`."""

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoConfig, GenerationConfig

from ..checkpoint import Checkpoint, find_checkpoint
from ..request_checks import names_of
from . import requests


__all__ = ["is_ready", "serve", "vllm_command"]


_MAX_STOPS = "VLLM_MAX_STOP_STRINGS"
_KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"


def is_ready(device: str, attn_implementation: str | None) -> bool:
    """Whether vLLM is installed beside a GPU, and these options leave the choice of both to it."""
    if device != "auto" or attn_implementation is not None:
        return False
    return importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


def vllm_command(
    checkpoint: Checkpoint,
    host: str = "localhost",
    port: int = 8000,
    folders: Sequence[str | os.PathLike] = (),
    max_batch: int | None = None,
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
    more: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """
    The command line of `vllm serve`, and what its environment needs beside it.

    Args:
        checkpoint ([`Checkpoint`]): what is served.
        more (`Sequence[str]`, *optional*): further options of vLLM, which come last and so replace those before.
        **others: as of `valley serve`.

    Raises:
        ValueError: if vLLM cannot do what an option or the checkpoint asks for.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError(
            "--api-key is empty: leave it out (and VALLEY_API_KEY unset) for an open server, or give a key."
        )
    generation = _read_generation(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision or "main")
    refusals = {
        f"--device {device}": device != "auto" and "choose GPUs with CUDA_VISIBLE_DEVICES",
        f"--attn-implementation {attn_implementation}": attn_implementation and "it has an attention of its own",
        "--quantization bnb-8bit": quantization == "bnb-8bit" and "bitsandbytes has 4 bits there: bnb-4bit",
        "several --allow-local-files": len(folders) > 1 and "give one folder that holds them",
        f"num_beams={generation.num_beams} of the checkpoint": (generation.num_beams or 1) > 1
        and "its server searches with no beams; set it to 1 in generation_config.json",
    }
    for option, reason in refusals.items():
        if reason:
            raise ValueError(f"vLLM cannot serve with {option}: {reason}. Or serve with --engine transformers.")
    if dtype == "auto":  # vLLM makes float32 smaller
        dtype = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    options = {
        "--host": host,
        "--port": port,
        "--served-model-name": checkpoint.name,
        "--dtype": dtype,
        "--revision": checkpoint.revision,
        "--max-num-seqs": max_batch,
        "--allowed-local-media-path": Path(folders[0]).resolve(strict=True) if folders else None,
        "--quantization": "bitsandbytes" if quantization else None,
        # Requests may say how clips are sampled; the plugin checks what they say.
        "--trust-request-mm-kwargs": True,
        "--middleware": f"{requests.__name__}.{requests.RequestTranslator.__name__}",
        # vLLM samples at temperature 1 where neither a request nor this says otherwise.
        "--override-generation-config": None if generation.do_sample else json.dumps({"temperature": 0}),
    }
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", checkpoint.path]
    for name, value in options.items():
        if value is not None:
            words += [name] if value is True else [name, str(value)]
    environment = {
        requests.STOP_VARIABLE: json.dumps(stop := list(generation.stop_strings or ())),
        _MAX_STOPS: str(int(os.environ.get(_MAX_STOPS, "4")) + len(stop)),  # beside those, as many as without them
        requests.HOSTS_VARIABLE: json.dumps(names_of(host, allowed_hosts)),
        # vLLM's 5 seconds are less than balancers and clients keep a connection: a request may meet its end.
        _KEEP_ALIVE: os.environ.get(_KEEP_ALIVE, "75"),
    }
    if api_key is not None:  # other users of the machine see the words of a command
        environment["VLLM_API_KEY"] = api_key
    return [*words, *more], environment


def serve(name: str, more: str = "", **options: Any) -> NoReturn:
    """
    Become vLLM's server.

    Args:
        name (`str`): a folder with a checkpoint, or its name on the Hub.
        more (`str`, *optional*): further options of vLLM, as in a shell.
        **options: as of [`vllm_command`].

    Raises:
        ImportError: if vLLM is not installed.
        OSError, ValueError: as of [`find_checkpoint`] and [`vllm_command`].
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError('--engine vllm needs vLLM: pip install "transformers-valley[vllm]"')
    words, environment = vllm_command(find_checkpoint(name), more=shlex.split(more), **options)
    print(f"vllm {shlex.join(words[3:])}", file=sys.stderr, flush=True)
    os.execve(words[0], words, {**os.environ, **environment})


def _read_generation(checkpoint: Checkpoint) -> GenerationConfig:
    if checkpoint.is_adapter:
        raise ValueError(
            f"vLLM serves whole checkpoints, and {checkpoint.path!r} is an adapter. Merge it (peft's "
            "merge_and_unload), or serve its base with --vllm-args '--enable-lora --lora-modules NAME=FOLDER' where "
            "it changes the language model alone."
        )
    try:
        return GenerationConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision or "main")
    except OSError:
        return GenerationConfig()
