# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The model of the original Valley repository (RupertLuo/Valley) after its formulas, and how its checkpoints look.

It is a plain LLaMA, a plain CLIP, one linear layer and a pooling. The code that is tested has no part in it.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny import tiny_tokenizer
from torch import nn
from transformers import AutoModelForImageTextToText, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from transformers_valley import ValleyConfig
from transformers_valley.hub.convert_valley_weights import convert


OLD_TOKENS = ["<im_patch>", "<vi_frame>", "<im_start>", "<im_end>", "<vi_start>", "<vi_end>"]
PADDING_ROWS = 5  # more embeddings than tokens, as some files have
FORMS = ["safetensors", "sharded safetensors", "bin", "sharded bin", "old bin"]


def old_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(OLD_TOKENS, special_tokens=True)
    return tokenizer


class OriginalValley(nn.Module):
    """The original model: `temporal` is mean, importance or transformer."""

    def __init__(
        self,
        temporal: str = "mean",
        image_size: int = 28,
        vision_size: int = 64,
        select_layer: int | None = -2,
        hidden_size: int = 64,
        positions: str = "random",
        vision: type = CLIPVisionModel,
        rows: int | None = None,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer = old_tokenizer()
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=rows or len(self.tokenizer) + PADDING_ROWS,
                hidden_size=hidden_size,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                initializer_range=0.2,
            )
        ).eval()
        self.tower = vision(
            vision.config_class(
                hidden_size=vision_size,
                intermediate_size=80,
                num_hidden_layers=3,
                num_attention_heads=vision_size // 64,
                image_size=image_size,
                patch_size=14,
                hidden_act="quick_gelu",
                initializer_range=0.2,
            )
        ).eval()
        self.projector = nn.Linear(vision_size, hidden_size)
        self.temporal, self.image_size = temporal, image_size
        self.select_layer = -1 if select_layer is None else select_layer
        self.num_patches = (image_size // 14) ** 2
        self.config = {
            "architectures": ["ValleyLlamaForCausalLM"],
            "model_type": "valley",
            "_name_or_path": "/mnt/old/checkpoint-100",
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": -1,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "max_sequence_length": 2048,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "rms_norm_eps": self.llama.config.rms_norm_eps,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.28.0",
            "use_cache": True,
            "vocab_size": self.llama.config.vocab_size,
            "temperature": 0.7,
            "top_p": 0.9,
            "mm_vision_tower": "nowhere/clip-vit-tiny",
            "mm_hidden_size": vision_size,
            "use_mm_proj": True,
            "tune_mm_mlp_adapter": False,
        }
        if select_layer is not None:
            self.config["mm_vision_select_layer"] = select_layer
        self.old_names = {
            "model.vision_tower.vision_model.": self.tower,
            "model.mm_projector.": self.projector,
        }
        self.extra: dict[str, torch.Tensor] = {}
        if temporal == "importance":
            self.config["use_patch_importance_pooling"] = True
            self.pooling = nn.Linear(self.num_patches * hidden_size, 1)
            self.old_names["model.pooling_layer."] = self.pooling
        if temporal == "transformer":
            self.config["use_delta_transformer"] = True
            layer = nn.TransformerEncoderLayer(hidden_size, 8, batch_first=True)
            self.pooling = nn.TransformerEncoder(layer, 1).eval()
            self.old_names["model.transformer_delta_encoder."] = self.pooling
            self.old_names["model.transforemr_adding_layer."] = layer
            shape = (2048, hidden_size)
            self.positions = torch.randn(shape) if positions == "random" else torch.zeros(shape)
            self.extra["model.position_matrix"] = self.positions
        self.extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(8.0)
        self.extra["model.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(self.num_patches + 1)[
            None
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors under their original names."""
        named = dict(self.llama.state_dict())
        for prefix, module in self.old_names.items():
            named |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
        return {name: tensor.clone() for name, tensor in (named | self.extra).items()}

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(T, P, D) to (P, D)."""
        if self.temporal == "mean":
            return patches.mean(0)
        if self.temporal == "importance":
            weights = self.pooling(patches.flatten(1)).softmax(0)
            return (weights[:, :, None] * patches).sum(0)
        sequences = patches.transpose(0, 1)
        return self.pooling(sequences + self.positions[: len(patches)])[:, -1] + sequences.mean(1)

    def visual(self, clip: torch.Tensor) -> torch.Tensor:
        """A clip (T, 3, H, W) to (P + T, hidden_size)."""
        hidden = self.tower(clip, output_hidden_states=True).hidden_states[self.select_layer]
        features = self.projector(hidden)
        return torch.cat([self.pool(features[:, 1:]), features[:, 0]])

    def block(self, num_frames: int) -> list[int]:
        """Ids of the original visual block."""
        patch, frame, *ends = self.tokenizer.convert_tokens_to_ids(OLD_TOKENS)
        return [ends[0], *[patch] * self.num_patches, ends[1], ends[2], *[frame] * num_frames, ends[3]]

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, clips: list[torch.Tensor]) -> torch.Tensor:
        embeds = self.llama.get_input_embeddings()(input_ids)
        mask = torch.isin(input_ids, torch.tensor(self.tokenizer.convert_tokens_to_ids(OLD_TOKENS[:2])))
        for row, clip in enumerate(clips):
            embeds[row, mask[row]] = self.visual(clip)
        return self.llama(inputs_embeds=embeds).logits

    def prompts(self, lengths: tuple[int, ...] = (3, 3)) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A batch of prompts of one length and their clips."""
        torch.manual_seed(3)
        clips = [torch.randn(frames, 3, self.image_size, self.image_size) for frames in lengths]
        rows = [
            [
                1,
                *torch.randint(3, 200, (5 + max(lengths) - frames,)).tolist(),
                *self.block(frames),
                *[40 + row, 50, 60],
            ]
            for row, frames in enumerate(lengths)
        ]
        return torch.tensor(rows), clips

    def save(self, folder: Path, form: str = "safetensors", tensors: dict | None = None, dtype=None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        self.tokenizer.save_pretrained(folder)
        tensors = self.tensors() if tensors is None else tensors
        if dtype is not None:
            tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        write(folder, form, tensors)
        return folder


def write(folder: Path, form: str, tensors: dict[str, torch.Tensor], stem: str | None = None) -> None:
    suffix = "safetensors" if form.endswith("safetensors") else "bin"
    stem = stem or {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = list(tensors)
    files = {f"{stem}.{suffix}": names}
    if form.startswith("sharded"):
        files = {f"{stem}-{i + 1:05d}-of-00003.{suffix}": names[i::3] for i in range(3)}
        index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for file, held in files.items():
        part = {name: tensors[name] for name in held}
        if suffix == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=form != "old bin")


def native_ids(input_ids: torch.Tensor, original: OriginalValley, config: ValleyConfig) -> torch.Tensor:
    """The same prompt with one placeholder at all feature positions."""
    old = torch.tensor(original.tokenizer.convert_tokens_to_ids(OLD_TOKENS[:2]))
    return torch.where(torch.isin(input_ids, old), config.video_token_id, input_ids)


def load(folder: Path, **options):
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


@torch.no_grad()
def native_logits(model, original: OriginalValley, input_ids: torch.Tensor, clips: list[torch.Tensor]) -> torch.Tensor:
    """Of the tokens that the original model knows."""
    output = model(
        input_ids=native_ids(input_ids, original, model.config),
        pixel_values_videos=nn.utils.rnn.pad_sequence(clips, batch_first=True),
        video_num_frames=torch.tensor([len(clip) for clip in clips]),
    )
    return output.logits[..., : len(original.tokenizer)]


def assert_same(folder: Path, original: OriginalValley, lengths: tuple[int, ...] = (3, 3)):
    model = load(folder)
    input_ids, clips = original.prompts(lengths)
    expected = original.logits(input_ids, clips)[..., : len(original.tokenizer)]
    torch.testing.assert_close(native_logits(model, original, input_ids, clips), expected, atol=1e-4, rtol=1e-4)
    return model


def refused(source, destination: Path, *args, error: type = ValueError, **kwargs) -> str:
    """The error; nothing is left behind."""
    before = sorted(destination.parent.iterdir())
    with pytest.raises(error) as raised:
        convert(source, destination, *args, **kwargs)
    assert sorted(destination.parent.iterdir()) == before
    return str(raised.value)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def save_base(original: OriginalValley, folder: Path, rows: int, form: str = "safetensors") -> dict[str, torch.Tensor]:
    """A LLaMA with a smaller vocabulary, saved; gives its tensors."""
    torch.manual_seed(9)
    tensors = {name: torch.randn_like(t) * 0.1 for name, t in original.llama.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].clone()
    folder.mkdir()
    write(folder, form, tensors)
    return tensors


def minus(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    delta = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in base.items():
        delta[name][: len(tensor)] -= tensor
    return delta


def save_adapter(original: OriginalValley, folder: Path, base: str | None = None, **lora) -> OriginalValley:
    """An adapter by peft itself, trained a bit; gives what peft makes of both."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "linear1"], **lora}
    merged = OriginalValley("transformer")
    # By the original names they are inside `model`.
    inner = merged.llama.model
    inner.mm_projector, inner.transformer_delta_encoder = merged.projector, merged.pooling
    adapted = get_peft_model(merged.llama, LoraConfig(**lora))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    merged.llama = adapted.merge_and_unload()
    merged.projector, merged.pooling = inner.mm_projector, inner.transformer_delta_encoder
    return merged
