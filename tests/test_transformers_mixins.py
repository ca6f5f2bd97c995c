# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley under transformers' own tests of models, configs, processors and video processors.

What transformers skips by itself needs one or more GPUs, flash attention or the `kernels` library (what it marks slow
also `RUN_SLOW=1`), or is about what Valley does not have: experts, an encoder-decoder, sliding windows, partial or
axial rotary embeddings, modules kept in float32, renamed weights, resizable positions, tool calls, sound.
"Does not support SDPA" is said of every model made of several, which another test checks.
What Valley does otherwise by design is overridden below, with the reason.
"""

import unittest
from unittest import mock

import pytest
import torch
from tiny import PATCH_SIZE, tiny_processor, tiny_tokenizer, tiny_valley
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers.video_utils import VideoMetadata
from transformers_mixins import (
    ConfigTester,
    ModelTesterMixin,
    ProcessorTesterMixin,
    VideoProcessingTestMixin,
    floats_tensor,
    ids_tensor,
    local_media,
    prepare_video_inputs,
)

from transformers_valley import (
    ValleyConfig,
    ValleyForConditionalGeneration,
    ValleyModel,
    ValleyProcessor,
    ValleyVideoProcessor,
)
from transformers_valley.modeling_valley import ValleyPreTrainedModel


class ValleyModelTester:
    """One image and one clip per sample; the clips differ in length."""

    batch_size = 7  # what the comparisons of attention implementations ask for: fewer samples are filled up with noise
    is_training = True
    image_token_id, video_token_id = 3, 4
    max_frames = 3

    def __init__(self, parent, temporal_module):
        self.parent = parent
        self.temporal_module = temporal_module
        self.vision_config = {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 32,
        }
        self.text_config = {
            "model_type": "llama",
            "vocab_size": 99,
            "hidden_size": 64,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        self.hidden_size = self.text_config["hidden_size"]
        self.num_hidden_layers = self.text_config["num_hidden_layers"]
        self.num_attention_heads = self.text_config["num_attention_heads"]
        self.num_patches = (self.vision_config["image_size"] // self.vision_config["patch_size"]) ** 2
        image, longest_clip, text = self.num_patches + 1, self.num_patches + self.max_frames, 7
        self.seq_length = self.encoder_seq_length = image + longest_clip + text

    def get_config(self):
        return ValleyConfig(
            vision_config=self.vision_config,
            text_config=self.text_config,
            image_token_id=self.image_token_id,
            video_token_id=self.video_token_id,
            temporal_module=self.temporal_module,
            temporal_num_heads=4,
            temporal_intermediate_size=37,
            vision_chunk_size=5,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        size = self.vision_config["image_size"]
        num_frames = torch.arange(self.batch_size) % self.max_frames + 1
        first_text_id = max(self.image_token_id, self.video_token_id) + 1
        vocab_size = self.text_config["vocab_size"]
        input_ids = ids_tensor([self.batch_size, self.seq_length], vocab_size - first_text_id) + first_text_id
        for row, frames in zip(input_ids, num_frames.tolist(), strict=True):
            row[2 : 2 + self.num_patches + 1] = self.image_token_id
            begin = 2 + self.num_patches + 1 + 1
            row[begin : begin + self.num_patches + frames] = self.video_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([self.batch_size, 3, size, size]),
            "pixel_values_videos": floats_tensor([self.batch_size, self.max_frames, 3, size, size]),
            "video_num_frames": num_frames.to(torch_device),
        }
        return config, inputs


class ValleyModelTestMixin(ModelTesterMixin):
    all_model_classes = (ValleyModel, ValleyForConditionalGeneration)
    additional_model_inputs = ["pixel_values", "pixel_values_videos", "video_num_frames"]
    _is_composite = True
    # `last_hidden_state` has a row per frame, not per clip: it is the vision tower's, and clips differ in length.
    skip_test_video_features_output_shape = True

    def setUp(self):
        self.model_tester = ValleyModelTester(self, self.temporal_module)
        # transformers knows by name which models are bare ones without a loss; Valley is not among its own names.
        names = mock.patch.dict(MODEL_MAPPING_NAMES, {"valley": "ValleyModel"})
        names.start()
        self.addCleanup(names.stop)

    # The tower ends at the layer whose features are used: `vision_feature_layer=-2`, the first of two.
    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return self.model_tester.vision_config["num_hidden_layers"] - 1

    _video_features_get_expected_num_attentions = _image_features_get_expected_num_attentions

    @unittest.skip("GenerationTesterMixin is not in the source distribution; Valley has its own tests of `generate`")
    def test_generation_tester_mixin_inheritance(self):
        pass

    def test_can_init_all_missing_weights(self):
        # In models outside of transformers, `from_pretrained` takes modules without tensors of their own for
        # initialised, and so skips what CLIP does for its attention and MLP as a whole. Only this rule is lifted here.
        with mock.patch.object(ValleyPreTrainedModel, "is_custom_code", return_value=False):
            super().test_can_init_all_missing_weights()


# The fast tests take the temporal module with weights of its own in most layers; the other two differ little.
@pytest.mark.slow
class ValleyMeanModelTest(ValleyModelTestMixin, unittest.TestCase):
    temporal_module = "mean"


@pytest.mark.slow
class ValleyImportanceModelTest(ValleyModelTestMixin, unittest.TestCase):
    temporal_module = "importance"


class ValleyTransformerModelTest(ValleyModelTestMixin, unittest.TestCase):
    temporal_module = "transformer"


class ValleyConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = ValleyModelTester(self, "transformer")
        self.config_tester = ConfigTester(
            self,
            config_class=ValleyConfig,
            has_text_modality=False,
            common_properties=["image_token_id", "video_token_id", "vision_feature_layer", "temporal_module"],
            temporal_module="importance",
            vision_feature_layer=-3,
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class ValleyProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ValleyProcessor

    @classmethod
    def _setup_from_components(cls):
        tokenizer = tiny_tokenizer()
        tiny_valley(tokenizer=tokenizer)  # adds Valley's tokens
        return tiny_processor(tokenizer)

    @staticmethod
    def prepare_processor_dict():
        return {"patch_size": PATCH_SIZE}

    @property
    def video_sampling_expectations(self):
        # Of 11 frames at 30 per second. Valley takes a frame at 0, 0.1, 0.2 and 0.3 s where transformers takes
        # int(11 / 30 * 10) = 3, and samples at 0.5 per second where transformers by default takes all.
        return [
            {"num_frames": 3, "fps": None, "expected_dim": 1, "output_length": 3},
            {"num_frames": None, "fps": 10, "expected_dim": 1, "output_length": 4},
            {"do_sample_frames": False, "fps": 10, "expected_dim": 1, "output_length": 11},
            {"do_sample_frames": False, "expected_dim": 1, "output_length": 11},
            {"expected_dim": 1, "output_length": 1},
        ]

    def test_apply_chat_template_video_frame_sampling(self):
        # The last check expects an error for `do_sample_frames=True` and a list of frames in files. Valley takes
        # frames that were picked before as they are, whether they lie in memory or in files.
        with self.assertRaisesRegex(AssertionError, "ValueError not raised"):
            super().test_apply_chat_template_video_frame_sampling()
        content = [{"type": "video", "path": [local_media("frame.jpg")] * 2}, {"type": "text", "text": "What is it?"}]
        inputs = self.get_processor().apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": True},
        )
        self.assertEqual(inputs[self.videos_input_name].shape[1], 2)


class ValleyVideoProcessorTester:
    batch_size = 5
    num_frames = 8
    num_channels = 3
    min_resolution = 30
    max_resolution = 80

    def prepare_video_processor_dict(self):
        return {
            "do_resize": True,
            "size": {"shortest_edge": 20},
            "do_center_crop": True,
            "crop_size": {"height": 18, "width": 18},
            "do_normalize": True,
            "image_mean": OPENAI_CLIP_MEAN,
            "image_std": OPENAI_CLIP_STD,
            "do_convert_rgb": True,
        }

    def expected_output_video_shape(self, videos):
        return self.num_frames, self.num_channels, 18, 18

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class ValleyVideoProcessorTest(VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = ValleyVideoProcessor
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.video_processor_tester = ValleyVideoProcessorTester()

    @property
    def video_processor_dict(self):
        return self.video_processor_tester.prepare_video_processor_dict()

    def test_call_sample_frames(self):
        processor = self.fast_video_processing_class(**self.video_processor_dict)
        with self.assertRaises(ValueError):
            processor.sample_frames(metadata=VideoMetadata(total_num_frames=8), fps=3)
        # The last check expects an error for more frames than there are; Valley repeats some, as the code of 2023 did.
        with self.assertRaisesRegex(AssertionError, "ValueError not raised"):
            super().test_call_sample_frames()
        self.video_processor_tester.num_frames = 8
        (clip, *_) = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")
        self.assertEqual(processor(clip, num_frames=10, return_tensors="pt")[self.input_name].shape[1], 10)
