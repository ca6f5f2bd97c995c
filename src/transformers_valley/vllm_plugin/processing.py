# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Images and clips to what vLLM hands to the model: pixels of each, and the block of placeholders in its place."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from ..configuration_valley import SPECIAL_TOKENS, ValleyConfig, count_patches
from ..processing_valley import ValleyProcessor
from ..video_processing_valley import ValleyVideoProcessor
from .clips import describe, with_options
from .media import serve_checkpoint


_DELIMITERS = 4  # of each visual, beside its placeholders


class ValleyDataParser(MultiModalDataParser):
    """Clips travel with what is known of them; frames of a caller that come without are taken as they are."""

    def _get_video_with_metadata(self, video):
        video, metadata = super()._get_video_with_metadata(video)
        return video, metadata or {}


class ValleyProcessingInfo(BaseProcessingInfo):
    """What vLLM asks before it has seen a request: the processor, and how large a visual can be."""

    def get_data_parser(self) -> MultiModalDataParser:
        serve_checkpoint(self.video_processor, self.ctx.model_config.max_model_len)
        return ValleyDataParser(
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )

    def get_hf_config(self) -> ValleyConfig:
        return self.ctx.get_hf_config(ValleyConfig)

    def get_hf_processor(self, **kwargs: object) -> ValleyProcessor:
        return self.ctx.get_hf_processor(ValleyProcessor)

    @property
    def server_options(self) -> Mapping[str, object]:
        """The server's `--mm-processor-kwargs`."""
        return self.ctx.get_mm_config().mm_processor_kwargs or {}

    @cached_property
    def video_processor(self) -> ValleyVideoProcessor:
        """The checkpoint's processor, with the sampling that the server was given."""
        return with_options(self.get_hf_processor().video_processor, self.server_options)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": None}

    def get_max_frames(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Of one of these clips: as many as the checkpoint samples, its position table has, and the context holds."""
        processor, rule = self.get_hf_processor(), self.video_processor
        share = seq_len // max(1, mm_counts.get("video", 1))
        limits = [
            share - processor.count_placeholders("video", 0) - _DELIMITERS,
            rule.num_frames or rule.max_frames,
            self.get_hf_config().temporal_max_positions,
        ]
        return max(1, min(limit for limit in limits if limit is not None))

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        processor, frames = self.get_hf_processor(), self.get_max_frames(seq_len, mm_counts)
        return {
            "image": processor.count_placeholders("image"),
            "video": processor.count_placeholders("video", frames),
        }


class ValleyDummyInputsBuilder(BaseDummyInputsBuilder[ValleyProcessingInfo]):
    """The largest visuals there can be, with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        image, video = SPECIAL_TOKENS[:2]
        return image * mm_counts.get("image", 0) + video * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions):
        side = self.info.get_hf_config().vision_config.image_size
        size = {"width": side, "height": side}
        images = self._get_dummy_images(
            **size, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        videos = self._get_dummy_videos(
            **size,
            num_frames=self.info.get_max_frames(seq_len, mm_counts),
            num_videos=mm_counts.get("video", 0),
            overrides=mm_options.get("video"),
        )
        return {"image": images, "video": [(video, {}) for video in videos]}


class ValleyMultiModalProcessor(BaseMultiModalProcessor[ValleyProcessingInfo]):
    """Calls the processor's two halves for visuals; vLLM tokenizes text itself."""

    def apply(self, inputs, timing_ctx):
        """Refuse a text that spells a placeholder: vLLM would put a visual there, and shift all that follow."""
        if isinstance(inputs.prompt, list):
            for modality, items in inputs.mm_data_items.items():
                token_id = getattr(self.info.get_hf_config(), f"{modality}_token_id")
                if (written := inputs.prompt.count(token_id)) != len(items):
                    raise ValueError(
                        f"The prompt has {written} <{modality}> for {len(items)} visuals of that kind. Take the token "
                        "out of the text: a content block stands for a visual."
                    )
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        self._refuse_options(hf_kwargs)
        processor = self.info.get_hf_processor()
        dtype = self.info.ctx.model_config.dtype
        outputs: dict[str, object] = {}
        if images := hf_data.get("images"):
            pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
            outputs["pixel_values"] = pixels.to(dtype)
        if videos := hf_data.get("videos"):
            # Clip by clip and without padding: each is cached, and meets other neighbours later.
            clips = []
            for frames, metadata in videos:
                about = describe(metadata)
                known = {} if about is None else {"video_metadata": VideoMetadata(**about)}
                if about is not None and "frames_indices" in about:
                    known["do_sample_frames"] = False  # or `max_frames` would thin them out again
                result = self.info.video_processor(videos=[frames], return_tensors="pt", **known)
                clips.append(result["pixel_values_videos"][0].to(dtype))
                self._check_length(len(clips[-1]))
            outputs["pixel_values_videos"] = clips
            outputs["video_num_frames"] = torch.tensor([len(clip) for clip in clips])
        return BatchFeature(outputs)

    def _check_length(self, num_frames: int) -> None:
        """The temporal module would raise, and an error of the model ends the engine."""
        most = self.info.get_hf_config().temporal_max_positions
        if most is not None and num_frames > most:
            raise ValueError(
                f"A clip of {num_frames} frames is longer than the position table of this checkpoint, which has "
                f"{most} rows (temporal_max_positions). Sample fewer frames."
            )

    def _refuse_options(self, hf_kwargs: Mapping[str, object]) -> None:
        """By the time a request's `mm_processor_kwargs` arrive here, its clips are decoded."""
        server = self.info.server_options
        if own := sorted(name for name, value in hf_kwargs.items() if server.get(name) != value):
            raise ValueError(
                f"A request cannot set mm_processor_kwargs {', '.join(own)}. Say how its clips are sampled in "
                'media_io_kwargs, such as {"video": {"fps": 1}}.'
            )

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]):
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "pixel_values_videos": MultiModalFieldConfig.batched("video"),
            "video_num_frames": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs) -> Sequence[PromptReplacement]:
        ids = self.info.get_tokenizer().convert_tokens_to_ids(list(SPECIAL_TOKENS))
        image_id, video_id, patches_begin, patches_end, frames_begin, frames_end = ids
        patch_size = self.info.get_hf_processor().patch_size

        def block(placeholder: int, height: int, width: int, num_frames: int) -> PromptUpdateDetails:
            patches = [placeholder] * count_patches(height, width, patch_size)
            frames = [placeholder] * num_frames
            whole = [patches_begin, *patches, patches_end, frames_begin, *frames, frames_end]
            return PromptUpdateDetails.select_token_id(whole, placeholder)  # the delimiters are words

        def image_block(index: int) -> PromptUpdateDetails:
            pixels = out_mm_kwargs["image"][index]["pixel_values"].data
            return block(image_id, *pixels.shape[-2:], 1)

        def video_block(index: int) -> PromptUpdateDetails:
            pixels = out_mm_kwargs["video"][index]["pixel_values_videos"].data
            return block(video_id, *pixels.shape[-2:], len(pixels))

        return [
            PromptReplacement(modality="image", target=[image_id], replacement=image_block),
            PromptReplacement(modality="video", target=[video_id], replacement=video_block),
        ]
