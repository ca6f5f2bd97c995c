# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What Valley uses of transformers 5.23 and versions from 5.19 on lack; vLLM 0.33 pins 5.20 and older.

Each piece says when it can go: with support for the version that is named, the last one that needs it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin


try:  # goes with 5.19
    from transformers.configuration_utils import SubConfigSpec

    def resolve_sub_configs(config: PreTrainedConfig) -> None:
        """Nothing: the base class does it."""

except ImportError:

    @dataclass
    class SubConfigSpec:
        """The config class of a part and what it is made of where nothing is given."""

        config_class: type
        model_type: str
        init_kwargs: dict = field(default_factory=dict)

    def resolve_sub_configs(config: PreTrainedConfig) -> None:
        """Makes config objects of the dicts and gaps in the fields that `sub_configs_defaults` names."""
        # Attention settings are handed down along these.
        type(config).sub_configs = {name: spec.config_class for name, spec in config.sub_configs_defaults.items()}
        for name, spec in config.sub_configs_defaults.items():
            given = getattr(config, name)
            if isinstance(given, PreTrainedConfig):
                continue
            values = dict(spec.init_kwargs if given is None else given)
            setattr(config, name, CONFIG_MAPPING[values.pop("model_type", spec.model_type)](**values))


try:  # goes with 5.22
    from transformers.utils.output_capturing import select_hidden_states
except ImportError:

    def select_hidden_states(selection: Callable[[Any], list[int]]) -> Callable:
        """Asks the vision tower for all its hidden states: older versions cannot ask for some."""

        def decorate(method: Callable) -> Callable:
            @wraps(method)
            def wrapper(self, *args, **kwargs):
                return method(self, *args, **{**kwargs, "output_hidden_states": True})

            return wrapper

        return decorate


try:  # goes with 5.22
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """The last `logits_to_keep` positions of (batch, length, hidden), all for 0, or those of a 1-D tensor."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept, :]


# Goes with 5.22: whether chat templates can encode control tokens in a user's text as plain text.
CAN_SANITIZE = "sanitize_control_tokens" in inspect.signature(ProcessorMixin.apply_chat_template).parameters

# Goes with 5.19: whether beams and several sequences mix up the visuals of a prompt that has more than one.
MIXES_UP_VISUALS = Version(transformers.__version__) < Version("5.20")


__all__ = [
    "CAN_SANITIZE",
    "MIXES_UP_VISUALS",
    "SubConfigSpec",
    "resolve_sub_configs",
    "select_hidden_states",
    "slice_logits_to_keep",
]
