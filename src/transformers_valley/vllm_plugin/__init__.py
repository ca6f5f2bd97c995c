# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley in vLLM: `vllm serve CKPT` where both packages are installed, without a flag.

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its processes, before it reads
a config. `model.py` is Valley on vLLM's decoders, `processing.py` turns visuals into its inputs, and `media.py` opens
them; these three import vLLM. `clips.py`, `requests.py` and `command.py` do not.
"""

from packaging.version import Version


__all__ = ["check_version", "register"]

OLDEST = "0.32"  # older ones have another interface of multimodal processors, and ask for older transformers


def check_version(version: str) -> None:
    """
    Refuse a vLLM that this plugin was not written for.

    Raises:
        RuntimeError: if it is older than 0.32.
    """
    release = Version(version).release
    if Version(version).release != (0, 0, 0) and release < Version(OLDEST).release:  # "dev" builds have no number
        raise RuntimeError(
            f"transformers-valley serves Valley in vLLM {OLDEST} and newer, found vLLM {version}. Upgrade it, or set "
            'VLLM_PLUGINS="" to serve other models.'
        )


def register() -> None:
    """Make Valley known to the vLLM of this process. It may be called again."""
    import vllm

    check_version(vllm.__version__)
    # A string: importing the model here would start CUDA in processes that fork afterwards.
    vllm.ModelRegistry.register_model(
        "ValleyForConditionalGeneration", f"{__name__}.model:ValleyForConditionalGeneration"
    )
    from .media import register_loader

    register_loader()
