# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Tiny, real, local parts for tests: built in code, no downloads."""

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
)

from transformers_valley import ValleyForConditionalGeneration, ValleyProcessor, ValleyVideoProcessor


OLD = Version(transformers.__version__) < Version("5.23")  # as `modeling_valley` asks
IMAGE_SIZE, PATCH_SIZE = 28, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2

VISION_CONFIGS = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
}
TEXT_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}

_CORPUS = [
    "### You are Valley, an assistant that sees images and videos and answers from what they show.",
    "### Human: What happens in the video? ### Assistant: A red circle moves to the left.",
    "Describe the image. Which colour is the square? Blue. Does it turn? Yes, clockwise.",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: every string can be written in it and read back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )


def tiny_vision(kind: str = "clip", image_size: int = IMAGE_SIZE, hidden_size: int = 32, **kwargs):
    torch.manual_seed(0)
    config = VISION_CONFIGS[kind](
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=PATCH_SIZE,
        **kwargs,
    )
    return AutoModel.from_config(config).eval()


def tiny_text(kind: str = "llama", vocab_size: int = 400, head_dim: int = 12, **kwargs):
    torch.manual_seed(1)
    config = TEXT_CONFIGS[kind](
        vocab_size=vocab_size,
        hidden_size=4 * head_dim,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        **kwargs,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_valley(
    vision: str = "clip", text: str = "llama", tokenizer=None, head_dim: int = 12, **config
) -> ValleyForConditionalGeneration:
    tokenizer = tokenizer or tiny_tokenizer()
    config = {"temporal_intermediate_size": 64, **config}
    torch.manual_seed(2)
    return ValleyForConditionalGeneration.from_vision_text_pretrained(
        tiny_vision(vision), tiny_text(text, head_dim=head_dim), tokenizer=tokenizer, **config
    )


def tiny_processor(tokenizer, **video_kwargs) -> ValleyProcessor:
    """`tokenizer` already has Valley's tokens: it went through `tiny_valley`."""
    size, crop_size = {"shortest_edge": IMAGE_SIZE}, {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ValleyProcessor(
        CLIPImageProcessor(size=size, crop_size=crop_size),
        ValleyVideoProcessor(size=size, crop_size=crop_size, **video_kwargs),
        tokenizer,
        patch_size=PATCH_SIZE,
    )


def random_frames(num_frames: int, seed: int = 0, size: int = 40) -> torch.Tensor:
    """uint8 (T, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, size, size), generator=generator, dtype=torch.uint8)


def tiny_judge(folder, reply: str) -> str:
    """Saves a chat model that answers everything with one reply: the weights lead from one token to the next."""
    words = ["<unk>", "<s>", "</s>", "<assistant>", reply]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<assistant>"])
    template = "{% for m in messages %}{{ m.content }} {% endfor %}<assistant>"
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()  # attention and feed-forward add nothing
        for word in range(len(words)):
            model.get_input_embeddings().weight[word, word] = 1.0
        for word, following in ((3, 4), (4, 2)):
            model.get_output_embeddings().weight[following, word] = 1.0
    model.save_pretrained(folder)
    return str(folder)
