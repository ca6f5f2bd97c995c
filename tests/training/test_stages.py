# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Both stages and LoRA through `examples/sft.py`, the command's own code, on rows of real clips."""

import json

import pytest
import sft
import torch
from clips import write_clip
from launching import CONFIGS, arguments
from PIL import Image
from runs import prepare_module
from safetensors.torch import load_file
from tiny import tiny_text, tiny_tokenizer, tiny_vision
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, QuantoConfig, pipeline
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from trl import ModelConfig, SFTConfig, TrlParser
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from transformers_valley.training import ValleyArguments, load_model_and_processor, stages


STAGE1 = ["model.multi_modal_projector", "model.temporal_module"]
STAGE2 = [*STAGE1, "model.language_model", "lm_head"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A clip of two lengths, an image and text only, in every batch of four."""
    folder = tmp_path_factory.mktemp("rows")
    short = write_clip(folder / "short.mp4", 20, fps=10)
    long = write_clip(folder / "long.mp4", 50, fps=10)
    Image.new("RGB", (40, 40), "blue").save(folder / "picture.png")
    records = [
        {"video": short, "conversations": [{"from": "human", "value": "<video>\nWhat?"}]},
        {"video": long, "conversations": [{"from": "human", "value": "What?\n<video>"}]},
        {
            "image": str(folder / "picture.png"),
            "conversations": [{"from": "human", "value": "<image>\nWhich colour?"}],
        },
        {"conversations": [{"from": "human", "value": "Hello"}]},
    ]
    for index, record in enumerate(records):
        record["conversations"].append({"from": "gpt", "value": f"Answer number {index}."})
    file = folder / "rows.json"
    file.write_text(json.dumps(records * 2))
    return file


def changed_modules(before, after):
    """Names of top modules of which a weight moved."""
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    return {name.split(".")[1] if name.startswith("model.") else name.split(".")[0] for name in changed}


def test_stage_1_moves_the_projector_and_the_temporal_module_only(checkpoint, rows, tmp_path):
    flags = arguments("stage1_align.yaml", checkpoint, rows, tmp_path / "out", vision_model_name_or_path="")
    before = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    trainer = sft.main(flags)
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    assert changed_modules(before, after) == {"multi_modal_projector", "temporal_module"}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(name.startswith(tuple(STAGE1)) for name in trained) and trained
    # Every weight of the two got a gradient and moved.
    assert all(not torch.equal(before[name], after[name]) for name in trained if not name.endswith("in_proj_bias"))


def test_stage_2_moves_all_but_the_vision_tower(checkpoint, rows, tmp_path):
    before = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    trainer = sft.main(arguments("stage2_instruct.yaml", checkpoint, rows, tmp_path / "out", num_train_epochs=2))
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    assert changed_modules(before, after) == {"multi_modal_projector", "temporal_module", "language_model", "lm_head"}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)


def test_stage_1_begins_from_two_pretrained_parts(rows, tmp_path):
    tiny_vision().save_pretrained(tmp_path / "vision")
    from transformers import CLIPImageProcessor

    size, crop_size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    CLIPImageProcessor(size=size, crop_size=crop_size).save_pretrained(tmp_path / "vision")
    tiny_text().save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    overrides = {"vision_model_name_or_path": tmp_path / "vision", "temporal_module": "importance"}
    sft.main(arguments("stage1_align.yaml", tmp_path / "text", rows, tmp_path / "out", **overrides))
    pipe = pipeline("video-text-to-text", model=str(tmp_path / "out"))
    assert pipe.model.config.temporal_module == "importance"
    clip = json.loads(rows.read_text())[0]["video"]
    assert pipe(clip, "What?", max_new_tokens=3)[0]["generated_text"][-1]["role"] == "assistant"


def test_lora_trains_adapters_in_the_language_model_and_the_rest_whole(checkpoint, rows, tmp_path):
    from peft import PeftModel

    trainer = sft.main(arguments("stage2_lora.yaml", checkpoint, rows, tmp_path / "out", lora_r=4))
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert adapters and all(".language_model." in name for name in adapters)
    assert all("multi_modal_projector" in name or "temporal_module" in name for name in trained - adapters)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("multi_modal_projector" in name for name in saved) and any("temporal_module" in name for name in saved)
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    clip = json.loads(rows.read_text())[0]["video"]
    chat = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(reloaded(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        merged = reloaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("whole", ["model.multi_modal_projector", "lm_head"])
def test_lora_trains_whole_what_is_named_as_peft_does(whole, checkpoint, rows, tmp_path):
    """By the end of its name, wherever it is; in float32, as all that trains."""
    flags = arguments(
        "stage2_lora.yaml", checkpoint, rows, tmp_path / "out", lora_r=4, dtype="bfloat16", bf16=True, max_steps=1
    )
    trainer = sft.main([*flags, "--lora_modules_to_save", whole])
    trained = [p for name, p in trainer.model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert trained and all(weight.dtype == torch.float32 for weight in trained)


def test_lora_trains_in_float32_beside_a_bfloat16_model(checkpoint, rows, tmp_path):
    trainer = sft.main(arguments("stage2_lora.yaml", checkpoint, rows, tmp_path / "out", dtype="bfloat16", bf16=True))
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == (parameter.dtype == torch.float32) or "original_module" in name, name


def test_loss_falls_on_the_assistants_words_only(processor, rows):
    from transformers_valley.data import load_rows

    collator = DataCollatorForVisionLanguageModeling(processor, max_length=2048, assistant_only_loss=True)
    batch = collator([dict(row) for row in load_rows([rows])][:4])
    learnt = [processor.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert learnt == [f" Answer number {index}.</s>" for index in range(4)]
    assert batch["attention_mask"][3].tolist() == sorted(
        batch["attention_mask"][3].tolist(), reverse=True
    )  # right padded


def test_accumulated_small_batches_equal_one_large_batch(checkpoint, rows, tmp_path):
    """Every token counts the same, however the batch is cut (`num_items_in_batch` reaches the loss)."""
    results = []
    for size, steps in ((4, 1), (1, 4)):
        overrides = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        out = tmp_path / str(size)
        overrides |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
        torch.manual_seed(0)
        flags = arguments("stage2_instruct.yaml", without_dropout(checkpoint, tmp_path), rows, out, **overrides)
        trainer = sft.main(flags)
        results.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def without_dropout(checkpoint, folder):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, temporal_dropout=0.0)
    model.save_pretrained(folder / "no_dropout")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder / "no_dropout")
    return folder / "no_dropout"


def test_models_are_not_joined_under_zero3(monkeypatch):
    monkeypatch.setattr("transformers_valley.training.stages.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="cannot be joined under DeepSpeed ZeRO-3.*Join and save them first"):
        load_model_and_processor("text", "vision")


@pytest.mark.parametrize("config", ["stage1_align", "stage2_instruct", "stage2_lora"])
def test_configs_hold_table_6(config):
    parser = TrlParser((ValleyArguments, SFTConfig, ModelConfig))
    flags = ["--config", str(CONFIGS / f"{config}.yaml"), "--use_cpu", "True", "--output_dir", "unused"]
    _, training, model = parser.parse_args_and_config(flags)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.95, 1e-6)
    assert (training.lr_scheduler_type, training.warmup_steps, training.weight_decay) == ("cosine", 0.03, 0)
    assert training.bf16 and training.gradient_checkpointing and training.assistant_only_loss
    assert training.max_length == 2048
    rate, epochs, batch = {
        "stage1_align": (2e-3, 1, 128),
        "stage2_instruct": (2e-5, 3, 32),
        "stage2_lora": (2e-4, 3, 32),
    }[config]
    assert (training.learning_rate, training.num_train_epochs) == (rate, epochs)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == batch
    assert model.use_peft == (config == "stage2_lora")


def test_qlora_quantizes_the_language_model_only(checkpoint, rows, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    flags = arguments("stage2_lora.yaml", checkpoint, rows, tmp_path / "out", lora_r=4, load_in_4bit=True)
    trainer = sft.main(flags)
    assert "4 bit" in (tmp_path / "out" / "README.md").read_text()  # this card has taken the place of PEFT's
    quantized = [n for n, m in trainer.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert quantized and all(".language_model." in name for name in quantized)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("multi_modal_projector" in name for name in saved) and any("temporal_module" in name for name in saved)


@pytest.mark.parametrize(
    "given, skipped",
    [
        (BitsAndBytesConfig(load_in_8bit=True), stages.NEVER_QUANTIZED),
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]), ["lm_head"]),
        ({"load_in_8bit": True}, stages.NEVER_QUANTIZED),
        (QuantoConfig(weights="int8"), None),
        ({"quant_method": "quanto", "weights": "int8"}, None),
    ],
    ids=["bitsandbytes", "own modules", "bitsandbytes, dict", "quanto", "quanto, dict"],
)
def test_quantization_of_any_method_is_passed_on_and_the_callers_stays_as_it_is(monkeypatch, given, skipped):
    for auto in ("AutoModelForImageTextToText", "AutoProcessor"):
        monkeypatch.setattr(f"transformers_valley.training.stages.{auto}.from_pretrained", lambda _, **kwargs: kwargs)
    before = dict(given) if isinstance(given, dict) else given.to_dict()
    passed = load_model_and_processor("valley", quantization_config=given)[0]["quantization_config"]
    if skipped is None:
        assert passed is given
    else:
        assert passed.llm_int8_skip_modules == skipped and passed.load_in_8bit
        assert passed.llm_int8_skip_modules is not stages.NEVER_QUANTIZED
    assert before == (given if isinstance(given, dict) else given.to_dict())


@pytest.mark.parametrize("config", ["stage1_align.yaml", "stage2_instruct.yaml", "stage2_lora.yaml"])
def test_a_frozen_tower_runs_once_a_step_and_in_evaluation_mode(config, checkpoint, rows, tmp_path, monkeypatch):
    modes = {"vision": [], "text": []}
    for kind, mlp in (("vision", CLIPMLP), ("text", LlamaMLP)):

        def forward(self, *args, modes=modes[kind], original=mlp.forward):
            modes.append(self.training)
            return original(self, *args)

        monkeypatch.setattr(mlp, "forward", forward)
    overrides = {"vision_model_name_or_path": "", "lora_r": 4, "max_steps": 1}
    trainer = sft.main(arguments(config, checkpoint, rows, tmp_path / "out", **overrides))
    assert trainer.args.gradient_checkpointing and trainer.optimizer.defaults["fused"]
    assert modes["vision"] == [False] * 4  # two layers, for the clips and for the image
    assert modes["text"] == [True] * 4  # two layers, each forward and once more for the backward pass


def test_files_are_looked_for_before_weights_are_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "load_model_and_processor", lambda *_, **__: 1 / 0)
    with pytest.raises(FileNotFoundError, match="gone.json"):
        sft.main(arguments("stage2_instruct.yaml", checkpoint, tmp_path / "gone.json", tmp_path / "out"))


def test_a_misspelt_key_is_refused(checkpoint, rows, tmp_path, capsys):
    flags = arguments("stage2_instruct.yaml", checkpoint, rows, tmp_path / "out", lerning_rate=1)
    with pytest.raises((ValueError, SystemExit)) as error:
        sft.main(flags)
    assert "lerning_rate" in str(error.value) + capsys.readouterr().err
