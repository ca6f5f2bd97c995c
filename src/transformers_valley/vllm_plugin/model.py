# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley for vLLM: the library's visual half before one of vLLM's decoders."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from ..configuration_valley import ValleyConfig
from ..modeling_valley import ValleyVisualModel
from .processing import ValleyDummyInputsBuilder, ValleyMultiModalProcessor, ValleyProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(
    ValleyMultiModalProcessor, info=ValleyProcessingInfo, dummy_inputs=ValleyDummyInputsBuilder
)
class ValleyForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """
    Valley with the interface that vLLM 0.32 and 0.33 ask of a model.

    vLLM splits the decoder over GPUs; the visual half, 0.3 billion parameters with ViT-L, is whole on each.
    """

    # Modules of the decoder that vLLM fuses, by the names that adapters have for their parts.
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.vision_tower.": "visual.vision_tower.",
            "model.temporal_module.": "visual.temporal_module.",
            "model.multi_modal_projector.": "visual.multi_modal_projector.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality not in ("image", "video"):
            raise ValueError(f"Valley reads images and videos, not {modality}.")
        return f"<{modality}>"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: ValleyConfig = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            # The parts of a config may name dtypes of their own.
            self.visual = ValleyVisualModel(self.config).to(vllm_config.model_config.dtype).requires_grad_(False)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """
        Features of images, or of clips: vLLM calls this with one kind at a time, in the order of the prompt.

        Returns:
            One tensor of shape `(num_patches + T, hidden_size)` for each.
        """
        features: list[torch.Tensor] = []
        if (pixels := kwargs.get("pixel_values")) is not None:
            pixels = pixels if isinstance(pixels, torch.Tensor) else torch.stack(list(pixels))
            features += self.visual.get_image_features(pixels, return_dict=True).pooler_output
        if (clips := kwargs.get("pixel_values_videos")) is not None:
            counts = [len(clip) for clip in clips]
            if not isinstance(clips, torch.Tensor):  # of different length
                clips = nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
            features += self.visual.get_video_features(clips, counts, return_dict=True).pooler_output
        return features

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states `(tokens, hidden_size)` of the decoder; vLLM has placed the features in `inputs_embeds`."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits `(tokens, vocabulary)` on the rank that samples. As in `generate`, no placeholder is written."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            for token_id in (self.config.image_token_id, self.config.video_token_id):
                logits[:, token_id] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint of this library; layers of the tower that Valley does not build are left out."""
        unbuilt = [re.compile(pattern) for pattern in self.visual._keys_to_ignore_on_load_unexpected or ()]
        weights = ((name, weight) for name, weight in weights if not any(p.search(name) for p in unbuilt))
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector=["visual.multi_modal_projector", "visual.temporal_module"],
            tower_model="visual.vision_tower",
        )
