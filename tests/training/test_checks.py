# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Bad input to `examples/sft.py` ends in one clear error before the first step, whoever finds it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import sft
import torch
from accelerate.utils import HfDeepSpeedConfig
from clips import write_clip
from datasets import Dataset
from launching import arguments
from test_decoders import tiny_decoder
from tiny import tiny_text, tiny_tokenizer, tiny_valley
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from transformers_valley.training import checks
from transformers_valley.training.checks import check_launch, missing_build_tools


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """Data files of one, three and four rows, checkpoints of several kinds, a resume folder of each."""
    folder = tmp_path_factory.mktemp("inputs")
    clip = write_clip(folder / "clip.mp4", 20, fps=10)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Bars."}]
    for name, number in (("none", 0), ("one", 1), ("three", 3), ("rows", 4), ("held_out", 4)):
        (folder / f"{name}.json").write_text(json.dumps([{"video": clip, "conversations": turns}] * number))
    short, long = ([*turns[:1], {"from": "gpt", "value": "Bars. " * n}] for n in (1, 50))
    pair = [{"id": str(index), "video": clip, "conversations": turns} for index, turns in enumerate((short, long))]
    (folder / "one_long.json").write_text(json.dumps(pair))
    (folder / "gone.json").write_text(json.dumps([{"video": "gone.mp4", "conversations": turns}] * 2))
    many = [{"from": "human", "value": "What? " * 30 + "<video>"}, turns[1]]
    (folder / "many_clips.json").write_text(json.dumps([pair[0], {**pair[1], "id": "many", "conversations": many}]))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "again").mkdir()
    shutil.copy(folder / "rows.json", folder / "again")

    shutil.copytree(checkpoint, folder / "valley")
    for part in (tiny_text(), tiny_tokenizer()):
        part.save_pretrained(folder / "llama")
    tiny_valley(temporal_module="mean").save_pretrained(folder / "mean")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder / "mean")

    shutil.copytree(checkpoint, folder / "other_tokenizer")
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.tokenizer.add_tokens([f"<{number}>" for number in range(20)])
    processor.tokenizer.save_pretrained(folder / "other_tokenizer")
    shutil.copytree(checkpoint, folder / "other_ids")
    config = json.loads((folder / "other_ids" / "config.json").read_text())
    config["video_token_id"] += 1
    (folder / "other_ids" / "config.json").write_text(json.dumps(config))
    (folder / "mixture.yaml").write_text("sources: [{path: rows.json, media: clips}]")
    shutil.copytree(checkpoint, folder / "no_pad")
    config = json.loads((folder / "no_pad" / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "no_pad" / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


LORA, STAGE2 = "stage2_lora.yaml", "stage2_instruct.yaml"
OURS = [
    # what is trained
    (LORA, {"lora_target_modules": "q_prj"}, "lora_target_modules='q_prj' has no match.*regular expression.*lm_head"),
    (LORA, {"lora_target_modules": ["q_proj", "v_prj"]}, r"lora_target_modules has no match.*for \['v_prj'\]"),
    (LORA, {"lora_target_modules": r".*layers\.9\..*"}, "lora_target_modules='.*has no match"),
    (LORA, {"lora_modules_to_save": "projector"}, r"lora_modules_to_save has no match.*\['projector'\].*multi_modal"),
    (LORA, {"model_name_or_path": "mean"}, "lora_modules_to_save names temporal_module, which has no weights"),
    *(
        (LORA, {"cache_vision_features": "features", **names}, "vision tower is trained.*peft adds .*vision_tower")
        for names in (
            {"lora_target_modules": ["q_proj", "v_proj"]},
            {"lora_target_modules": "all-linear"},
            {"lora_modules_to_save": ["multi_modal_projector", "vision_tower"]},
        )
    ),
    (STAGE2, {"trainable_modules": ["model.projector"]}, r"no such module: \['model.projector'\]"),
    (STAGE2, {"model_name_or_path": "mean", "trainable_modules": "model.temporal_module"}, "leaves nothing to train"),
    # rows
    (STAGE2, {"data": "none.json"}, "There are no rows in"),
    (STAGE2, {"data": "one.json"}, "There is 1 row of data.*name its file twice"),
    (STAGE2, {"data": "one.json", "streaming": True, "max_steps": 9}, "There is 1 row of data"),
    (STAGE2, {"data": "one_long.json", "max_length": 60, "on_long_row": "drop"}, "There is 1 row of data"),
    (STAGE2, {"data": "many_clips.json", "max_length": 60}, "of 1 of 2 rows reach beyond max_length=60.*row 'many'"),
    (
        STAGE2,
        {"data": "three.json", "dataloader_drop_last": True},
        "There are 3 rows, and dataloader_drop_last drops them all.*1 processes take 4",
    ),
    # processor
    (STAGE2, {"max_length": 9}, "max_length=9 has no room for a visual and a word.*clip of 1 frame 9"),
    (STAGE2, {"model_name_or_path": "no_pad"}, "has no pad token.*Set processor.tokenizer.pad_token"),
    (STAGE2, {"model_name_or_path": "other_tokenizer"}, "tokenizer has 415 tokens, the model embeds 400"),
    (STAGE2, {"model_name_or_path": "other_ids"}, "processor is that of another model: its video_token_id is 390"),
    # checkpoints
    (STAGE2, {"model_name_or_path": "llama"}, "of type 'llama', expected a Valley.*vision_model_name_or_path"),
    (STAGE2, {"model_name_or_path": "adapter"}, "is a LoRA adapter. To train on from it, merge it"),
    (STAGE2, {"vision_model_name_or_path": "valley"}, "is a Valley already.*Leave vision_model_name_or_path"),
    # options
    (STAGE2, {"load_in_4bit": True}, "Quantized weights do not train: .* set use_peft: true"),
    (
        LORA,
        {"load_in_4bit": True, "eval_data": "held_out.json", "eval_strategy": "epoch"},
        "packs weights of 4 bits, which pass no gradient on from then",
    ),
    (STAGE2, {"output_dir": "rows.json"}, "rows.json' is a file. Name a folder"),
    (STAGE2, {"packing": True}, "TRL's packing is for text only. Set pack_batches: true"),
    (STAGE2, {"padding_free": True}, "TRL's padding_free is for text only. Set pack_batches: true"),
    (
        STAGE2,
        {"cache_vision_features": "kept", "streaming": True, "max_steps": 1},
        "streamed rows are not known then: set streaming: false",
    ),
    (
        STAGE2,
        {"train_sampling_strategy": "group_by_length", "streaming": True, "max_steps": 1},
        "train_sampling_strategy='group_by_length' needs to know all rows.*set streaming: false",
    ),
    (
        STAGE2,
        {"on_missing": "raise", "data": "gone.json"},
        "2 rows show clips .* that are not there .2 of gone., among",
    ),
    (STAGE2, {"use_liger_kernel": True}, "use_liger_kernel has no effect"),
    (
        STAGE2,
        {"media_root": "elsewhere", "data": "mixture.yaml"},
        "media_root='elsewhere' has no effect: each source of .*mixture.yaml has a `media` of its own",
    ),
    (STAGE2, {"activation_offloading": True}, "this run is on the CPU. Set gradient_checkpointing"),
    (STAGE2, {"eval_data": "held_out.json"}, "eval_strategy is 'no'.*Set eval_strategy: steps"),
    (
        STAGE2,
        {"eval_data": ["rows.json", "again/rows.json"], "eval_strategy": "epoch"},
        r"named by file or data set, and \['rows'\] would name two",
    ),
    (STAGE2, {"preview_steps": -1}, "preview_steps=-1, expected at least 0"),
    (STAGE2, {"num_previews": 0}, "num_previews=0, expected at least 1"),
    (STAGE2, {"load_best_model_at_end": True}, "metric_for_best_model='loss', and this run measures nothing"),
    (
        STAGE2,
        {"load_best_model_at_end": True, "eval_data": "held_out.json", "eval_strategy": "no", "preview_steps": 0},
        "eval_strategy is 'no'",
    ),
]
# What TRL, transformers and peft say well enough: a test that they go on saying it.
THEIRS = [
    (LORA, {"lora_target_modules": "lm_head"}, "adapter to `lm_head` is not supported"),
    (STAGE2, {"eval_strategy": "epoch"}, "didn't pass an `eval_dataset`"),
    (STAGE2, {"report_to": "wandbb"}, "wandbb is not supported, only"),
    (STAGE2, {"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
]
PATHS = (
    "data",
    "eval_data",
    "model_name_or_path",
    "vision_model_name_or_path",
    "output_dir",
)


def flags_of(folder, config, options):
    files = {name: options[name] for name in PATHS if name in options}
    files = {"data": "rows.json", "model_name_or_path": "valley", "output_dir": "out"} | files
    flags = arguments(config, *(folder / files.pop(name) for name in ("model_name_or_path", "data", "output_dir")))
    for name, value in (options | files).items():
        values = value if isinstance(value, list) else [value]
        if name in files or name not in PATHS:
            flags += [f"--{name}", *(str(folder / value) if name in PATHS else str(value) for value in values)]
    return flags


@pytest.mark.parametrize(("config", "options", "message"), OURS + THEIRS)
def test_bad_input_ends_in_one_clear_error(folder, config, options, message, monkeypatch):
    monkeypatch.setattr(SFTTrainer, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        sft.main(flags_of(folder, config, options))


@pytest.mark.parametrize("vision", ["", "nobody/vision"])
def test_without_a_network_the_model_is_named_at_once(folder, vision, no_network):
    model = str(folder / "llama") if vision else "nobody/valley"
    flags = arguments("stage1_align.yaml", model, folder / "rows.json", folder / "unreached")
    with pytest.raises(OSError, match="Cannot load 'nobody/.*': there is no such folder here, and the Hub cannot be"):
        sft.main([*flags, "--vision_model_name_or_path", vision])


def test_answers_that_the_tokenizer_cannot_spell_are_told(caplog):
    tokenizer = tiny_tokenizer()
    rows = Dataset.from_list([{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "Bars."}]}]}])
    checks._warn_of_unknown_tokens(tokenizer, rows)
    assert not caplog.text
    spelt = Tokenizer(models.WordLevel({"<unk>": 0, "Bars": 1}, unk_token="<unk>"))
    spelt.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=spelt, unk_token="<unk>")
    checks._warn_of_unknown_tokens(words, rows)
    assert "50% of the tokens to be learnt are <unk>" in caplog.text and "such as 'Bars.'" in caplog.text
    caplog.clear()

    spelt = Tokenizer(models.WordLevel({"<unk>": 0, "ĠBars": 1, ".": 2}, unk_token="<unk>"))  # as the quickstart's
    spelt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    checks._warn_of_unknown_tokens(PreTrainedTokenizerFast(tokenizer_object=spelt, unk_token="<unk>"), rows)
    assert not caplog.text


def test_more_processes_than_rows():
    class Arguments:
        world_size, per_device_train_batch_size, dataloader_drop_last = 4, 1, False

    with pytest.raises(ValueError, match="There are 3 rows for 4 processes.*at most 3 processes"):
        checks.check_number_of_rows(3, Arguments)
    checks.check_number_of_rows(4, Arguments)


def test_a_best_model_goes_by_the_loss_of_one_file(folder):
    options = {"eval_data": "held_out.json", "eval_strategy": "epoch", "save_strategy": "epoch"}
    options |= {"load_best_model_at_end": True, "preview_steps": 0}
    with pytest.raises(ValueError, match="metric_for_best_model='loss', and this run measures.*'eval_held_out_loss'"):
        sft.main(flags_of(folder, STAGE2, options))
    trainer = sft.main(flags_of(folder, STAGE2, options | {"metric_for_best_model": "eval_held_out_loss"}))
    assert trainer.state.best_metric > 0


def test_bf16_where_there_is_none(folder, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="trains in bfloat16 on a GPU .*--use_cpu true --bf16 false"):
        sft.main(flags_of(folder, STAGE2, {"bf16": True, "use_cpu": False}))


TARGETS = ["all-linear", ["q_proj", "v_proj"], r".*language_model\.layers\.\d+\.self_attn\.q_proj"]


@pytest.mark.parametrize("target", TARGETS)
def test_names_that_peft_takes_are_taken(model, target):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=target, modules_to_save=["multi_modal_projector"])
    checks.check_adapter_names(model, config)
    get_peft_model(model, config)


@pytest.mark.slow
def test_a_deepspeed_config_that_contradicts_the_arguments(folder, tmp_path):
    """transformers compares them, and says all that differs at once."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 3}
    config |= {"gradient_accumulation_steps": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1}}}
    (tmp_path / "zero2.json").write_text(json.dumps(config))
    flags = [*flags_of(folder, STAGE2, {}), "--deepspeed", str(tmp_path / "zero2.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--standalone", sft.__file__]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    result = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    assert result.returncode != 0 and "'loss'" not in result.stdout
    for difference in (
        "train_micro_batch_size_per_gpu=3 vs hf per_device_train_batch_size=4",
        "gradient_accumulation_steps=4 vs hf gradient_accumulation_steps=1",
        "optimizer.params.lr=1 vs hf learning_rate=2e-05",
        "bf16.enabled=True vs hf bf16|bf16_full_eval=False",
    ):
        assert difference in result.stderr


# --- The launch ---


@pytest.fixture
def args(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")


def test_one_process_is_fine(args):
    check_launch(args)


def test_fsdp_is_refused_with_a_way_out(args, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP is not supported: .*lm_head.*zero2.yaml or zero3.yaml"):
        check_launch(args)


def test_processes_that_would_train_alone_are_refused(args, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started and each would train alone, on cpu.*--use_cpu"):
        check_launch(args)


def test_one_process_in_place_of_several_is_refused(args, monkeypatch):
    """The environment that `accelerate launch --cpu --num_processes 2` makes."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    check_launch(args)
    monkeypatch.setenv("MASTER_ADDR", "node1")  # of a scheduler
    check_launch(args)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="asked for several processes and started one.*ddp_cpu.yaml"):
        check_launch(args)


def test_what_deepspeed_lacks_is_named(args, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    check_launch(args)  # nothing is compiled without DeepSpeed
    args.deepspeed_plugin = object()
    with pytest.raises(
        RuntimeError,
        match=r"communication.*lacks ninja, a C\+\+ compiler \(c\+\+\), Python.h of.*apt install",
    ):
        check_launch(args)


@pytest.mark.parametrize(("device", "compiles"), [("cpu", True), ("nvme", True), ("none", False)])
def test_an_offloaded_optimizer_is_compiled_on_gpus_too(device, compiles, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(checks, "missing_build_tools", lambda: ["ninja"])
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": device}}})
    plugin = SimpleNamespace(hf_ds_config=config)
    args = SimpleNamespace(fsdp=None, world_size=1, device=torch.device("cuda"), deepspeed_plugin=plugin)
    with pytest.raises(RuntimeError, match="an optimizer for the CPU.*lacks ninja") if compiles else nullcontext():
        check_launch(args)


def test_ninja_is_found_beside_the_interpreter(monkeypatch, tmp_path):
    (tmp_path / "ninja").touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "ninja" not in missing_build_tools()
    assert shutil.which("ninja") == str(tmp_path / "ninja")


# --- packed rows ---


def of_text_config(config):
    return SimpleNamespace(config=SimpleNamespace(text_config=config))


@pytest.mark.parametrize("kind", checks.PACKABLE)
@torch.no_grad()
def test_packable_decoders_keep_rows_apart(kind):
    decoder = tiny_decoder(kind)
    checks.check_packing(of_text_config(decoder.config))
    default, lengths = decoder.config._attn_implementation, [5, 1, 9]
    ids = torch.randint(3, 300, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    for attention in {default, "eager"}:
        decoder.set_attn_implementation(attention)
        alone = torch.cat([decoder(row).logits for row in ids.split(lengths, dim=1)], dim=1)
        packed = decoder(ids, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)
    decoder.set_attn_implementation(default)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("opt", {}, "of type 'opt'"),
        ("mamba", {}, "of type 'mamba'"),
        ("minimax", {}, "of type 'minimax'"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "'qwen3' with .*linear_attention"),
    ],
)
def test_language_models_that_may_mix_rows_are_refused(kind, settings, reason):
    config = AutoConfig.for_model(kind, num_hidden_layers=2, **settings)
    with pytest.raises(ValueError, match=f"known to keep packed rows apart: apertus, .* {reason}"):
        checks.check_packing(of_text_config(config))
