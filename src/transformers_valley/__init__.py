# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley (video assistant with large language model enhanced ability) for transformers.

Importing this package registers Valley with the Auto classes and with `pipeline("video-text-to-text")`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_valley import ValleyConfig
from .modeling_valley import ValleyForConditionalGeneration, ValleyModel
from .pipeline_valley import VideoTextToTextPipeline
from .processing_valley import ValleyProcessor
from .video_processing_valley import ValleyVideoProcessor


__version__ = "0.1.0"

AutoConfig.register("valley", ValleyConfig, exist_ok=True)
AutoModel.register(ValleyConfig, ValleyModel, exist_ok=True)
AutoModelForImageTextToText.register(ValleyConfig, ValleyForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(ValleyConfig, ValleyForConditionalGeneration, exist_ok=True)
AutoProcessor.register(ValleyConfig, ValleyProcessor, exist_ok=True)
AutoVideoProcessor.register(ValleyConfig, ValleyVideoProcessor, exist_ok=True)
# `transformers serve` and the in-tree pipelines look a model up by name here, not in the Auto classes.
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.setdefault("valley", "ValleyForConditionalGeneration")
modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault("valley", "ValleyForConditionalGeneration")
PIPELINE_REGISTRY.register_pipeline(
    "video-text-to-text", pipeline_class=VideoTextToTextPipeline, pt_model=AutoModelForMultimodalLM, type="multimodal"
)

__all__ = [
    "ValleyConfig",
    "ValleyForConditionalGeneration",
    "ValleyModel",
    "ValleyProcessor",
    "ValleyVideoProcessor",
    "VideoTextToTextPipeline",
]
