# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Several processes train what one trains: both stages, every launcher, batches that mix whatever rows can show."""

import json

import pytest
import torch
from both_stages import ROOT, train_both_stages
from clips import write_clip
from launching import launch, needs_deepspeed
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_processor, tiny_tokenizer, tiny_valley


pytestmark = pytest.mark.slow

# What each row of a step shows: clips by their number of frames, "i" for an image, nothing for text only. One of two
# processes takes the first two rows of a step, the other the last two. The vision tower takes 4 frames at once.
STEPS = [
    ["", "", "10", "3"],
    ["3", "1", "", ""],
    ["i", "i", "10", "1"],
    ["10", "10", "i i", "i"],
    ["", "", "", ""],
    ["", "i", "3", ""],
    ["1", "10", "3", "3"],
    ["3 i", "", "i i", "1"],
    ["i", "", "", ""],
    ["10", "i 10 1", "", ""],
] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and rows for `both_stages.py`."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = tiny_tokenizer()
    model = tiny_valley(tokenizer=tokenizer, temporal_dropout=0.0, vision_chunk_size=4)
    model.save_pretrained(folder / "start")
    tiny_processor(tokenizer, fps=1).save_pretrained(folder / "start")
    Image.new("RGB", (40, 40), "blue").save(folder / "i.png")
    for frames in (1, 3, 10):
        write_clip(folder / f"{frames}.mp4", 10 * frames, fps=10)
    records = []
    for number, shown in enumerate(row for step in STEPS for row in step):
        visuals = [
            {"type": "image", "path": str(folder / "i.png")}
            if word == "i"
            else {"type": "video", "path": str(folder / f"{word}.mp4")}
            for word in shown.split()
        ]
        question = [*visuals, {"type": "text", "text": f"What about {number}?"}]
        answer = [{"type": "text", "text": f"Answer {number % 7}, and no other."}]
        records.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    (folder / "rows.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def one_process(folder):
    """Losses and saved weights of one process with the same global batch and order of rows."""
    output = folder / "one"
    output.mkdir()
    return train_both_stages(folder, output, 1), weights(output)


def weights(output):
    return {stage: load_file(output / stage / "model.safetensors") for stage in ("stage1", "stage2")}


def launch_both_stages(folder, output, config, *launch_flags, sft_flags=()):
    """Both stages on two processes: losses and saved weights."""
    output.mkdir()
    script = ROOT / "tests" / "both_stages.py"
    flags = [folder, output, "2", *sft_flags]
    ended, log = launch(output / "log.txt", config, script, *flags, launch_flags=launch_flags)
    assert ended == 0, log[-8000:]  # its end says why
    return json.loads((output / "losses.json").read_text()), weights(output)


def moved(before, after):
    """Names of the parts of which a weight changed."""
    names = {name for name, value in after.items() if not torch.equal(before[name], value)}
    return {name.removeprefix("model.").split(".")[0] for name in names}


def assert_equal_to_one_process(folder, one_process, losses, saved):
    expected_losses, expected = one_process
    assert len(losses["stage1"]) == len(losses["stage2"]) == len(STEPS)
    for part in expected_losses:
        assert losses[part] == pytest.approx(expected_losses[part], rel=0, abs=1e-4), part
    for stage in saved:
        assert saved[stage].keys() == expected[stage].keys()
        for name, weight in saved[stage].items():
            torch.testing.assert_close(weight, expected[stage][name], rtol=0, atol=1e-5, msg=f"{stage}, {name}")
    begin = load_file(folder / "start" / "model.safetensors")
    assert moved(begin, saved["stage1"]) == {"multi_modal_projector", "temporal_module"}
    assert moved(saved["stage1"], saved["stage2"]) == {
        "multi_modal_projector",
        "temporal_module",
        "language_model",
        "lm_head",
    }


def test_ddp_equals_one_process(folder, one_process):
    losses, saved = launch_both_stages(folder, folder / "ddp", "ddp_cpu")
    assert_equal_to_one_process(folder, one_process, losses, saved)


def test_zero2_equals_one_process(folder, one_process):
    needs_deepspeed()
    losses, saved = launch_both_stages(folder, folder / "zero2", "zero2", "--mixed_precision", "no")
    assert_equal_to_one_process(folder, one_process, losses, saved)


def test_zero3_equals_one_process(folder, one_process):
    """Its processes gather weights together: also where one shows text only, or clips of more chunks or lengths."""
    needs_deepspeed()
    # Sample answers on the way: a text, a clip of 3 frames, a clip of 10.
    flags = ["--preview_data", str(folder / "rows.json"), "--preview_steps", "20", "--num_previews", "3"]
    losses, saved = launch_both_stages(folder, folder / "zero3", "zero3", "--mixed_precision", "no", sft_flags=flags)
    assert_equal_to_one_process(folder, one_process, losses, saved)
    for stage in saved:
        assert len((folder / "zero3" / stage / "previews.jsonl").read_text().splitlines()) == 2 * 3


def test_ddp_with_features_on_disk_equals_one_process(folder, one_process):
    flags = ["--cache_vision_features", str(folder / "features")]
    losses, saved = launch_both_stages(folder, folder / "kept", "ddp_cpu", sft_flags=flags)
    assert_equal_to_one_process(folder, one_process, losses, saved)
    log = (folder / "kept" / "log.txt").read_text()
    assert "features of 4 clips and images were added" in log and "features of 0 clips" in log


@pytest.mark.parametrize("config", ["ddp_cpu", "zero3"])
def test_a_trained_vision_tower_equals_one_process(folder, config):
    """Then chunks of frames have a backward pass too. Without activation checkpointing, for once."""
    if config == "zero3":
        needs_deepspeed()
    flags = ["--trainable_modules", "model", "lm_head", "--gradient_checkpointing", "false"]
    one, several = folder / f"all_one_{config}", folder / f"all_{config}"
    one.mkdir()
    expected = train_both_stages(folder, one, 1, *flags)
    losses, saved = launch_both_stages(folder, several, config, "--mixed_precision", "no", sft_flags=flags)
    for part in expected:
        assert losses[part] == pytest.approx(expected[part], rel=0, abs=1e-4), part
    for name, weight in weights(one)["stage2"].items():
        torch.testing.assert_close(saved["stage2"][name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("config", ["ddp_cpu", "zero2", "zero3"])
def test_what_bfloat16_runs_save(folder, one_process, config):
    """DeepSpeed saves its bfloat16 copy; the float32 weights it trains stay in its checkpoints."""
    if config != "ddp_cpu":
        needs_deepspeed()
    flags = ["--dtype", "bfloat16", "--bf16", "true"]
    losses, saved = launch_both_stages(folder, folder / f"bf16_{config}", config, sft_flags=flags)
    for part in losses:
        assert losses[part] == pytest.approx(one_process[0][part], rel=0, abs=0.2), part
    trained, frozen = ("model.multi_modal_projector.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight")
    assert saved["stage2"][frozen].dtype == torch.bfloat16
    assert saved["stage2"][trained].dtype == (torch.float32 if config == "ddp_cpu" else torch.bfloat16)
