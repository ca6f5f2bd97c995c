# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Runs of `examples/sft.py` that are killed and go on: bit by bit what they would have been."""

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import traceback
from pathlib import Path

import pytest
import sft
import torch
from clips import write_clip
from launching import arguments, kill, launch, launched, needs_deepspeed
from PIL import Image
from runs import prepare_module, with_callbacks
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback, TrainerState, TrainingArguments

from transformers_valley import video_processing_valley
from transformers_valley.data import load_rows
from transformers_valley.training import check_checkpoint, checkpoints, clear_errors
from transformers_valley.training.checkpoints import CheckpointKeeper


TIMES = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "num_tokens",
    "total_flos",
    "tokens_per_second",
    "clips_per_second",
    "data_wait_share",
    "memory_gib",
}


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """Every run collects garbage; what the test session holds already need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eleven rows, none like another: clips of several lengths, images and text only."""
    folder = tmp_path_factory.mktemp("rows")
    records = []
    for index in range(11):
        record = {"conversations": [{"from": "human", "value": "What is it?"}]}
        if index % 3 == 0:
            record["video"] = write_clip(folder / f"{index}.mp4", 10 + 6 * index, fps=10)
            record["conversations"][0]["value"] = "<video>\nWhat?"
        elif index % 3 == 1:
            record["image"] = str(folder / f"{index}.png")
            Image.new("RGB", (40, 40), (20 * index, 0, 90)).save(record["image"])
            record["conversations"][0]["value"] = "<image>\nWhich?"
        record["conversations"].append({"from": "gpt", "value": f"It is number {index}. " * (1 + index % 4)})
        records.append(record)
    file = folder / "rows.json"
    file.write_text(json.dumps(records))
    return file


def flags(checkpoint, rows, output, config="stage2_instruct.yaml", **overrides):
    """Two epochs of three steps, the last of each with three rows; a checkpoint every second step."""
    overrides = {
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "resume_from_checkpoint": "auto",
        **overrides,
    }
    return arguments(config, checkpoint, rows, output, **overrides)


class KillBefore(TrainerCallback):
    """kill -9, with the gradients of a step made and not used."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            kill_myself()


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_when_it_appears(file, size=0):
    """kill -9 while a file is being written, or soon after."""

    def watch():
        while not file.exists() or file.stat().st_size < size:
            time.sleep(0)
        kill_myself()

    threading.Thread(target=watch, daemon=True).start()


def start(arguments, step=None, prepare=lambda: None):
    """`sft.main` in a process of its own that dies before a step, or of what `prepare` does in it."""

    def target():
        kinds = [tqdm]  # bars share a lock with this process: it would stay shut for ever
        for kind in kinds:
            kind.set_lock(threading.RLock())
            kinds += kind.__subclasses__()
        prepare()
        if step:
            sft.SFTTrainer = with_callbacks(KillBefore(step))
        try:
            sft.main(arguments)
        except BaseException:
            with open(failure, "w") as file:  # what it prints is caught, and lost with it
                traceback.print_exc(file=file)
            raise

    failure = f"{arguments[arguments.index('--output_dir') + 1]}_failed.txt"
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.failure = Path(failure)
    return process


def run_killed(arguments, step=None, prepare=lambda: None):
    process = start(arguments, step, prepare)
    process.join()
    assert process.exitcode == -signal.SIGKILL, process.failure.read_text()


def steps(run):
    """The trainer's own entry of each step."""
    return [entry for entry in history(run) if "loss" in entry]


def history(run, but=TIMES):
    """What a run logged of every step."""
    entries = json.loads((Path(run) / "trainer_state.json").read_text())["log_history"]
    return [{key: entry[key] for key in entry.keys() - but} for entry in entries]


def assert_same_run(ours, theirs, but=TIMES):
    assert history(ours, but) == history(theirs, but)
    weights = next(theirs.glob("*model.safetensors")).name
    ours, theirs = (load_file(run / weights) for run in (ours, theirs))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == checkpoints.__name__]


def read_settings(folder):
    return checkpoints._read_record(folder)["run"]


def disown(folder):
    """As another script would have written it."""
    state = json.loads((folder / "trainer_state.json").read_text())
    del state["stateful_callbacks"]
    (folder / "trainer_state.json").write_text(json.dumps(state))


def stream(monkeypatch):
    def load(*args, streaming=False, **kwargs):
        return load_rows(*args, **kwargs).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr(prepare_module, "load_rows", load)


# --- Bit by bit ----------------------------------------------------------------------------------------------------

# Dropout is 0.1 in the temporal module and 0.05 in adapters: what comes next hangs on the state of the generator, too.
RUNS = {
    "stage 1, frozen bfloat16 beside float32, workers, accumulation": {
        "config": "stage1_align.yaml",
        "vision_model_name_or_path": "",
        "dtype": "bfloat16",
        "bf16": True,
        "dataloader_num_workers": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "lora, grouped by length": {
        "config": "stage2_lora.yaml",
        "lora_r": 4,
        "dtype": "bfloat16",
        "bf16": True,
        "train_sampling_strategy": "group_by_length",
        "restore_callback_states_from_checkpoint": True,
        "remove_unused_columns": False,
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "workers" in name else []) for name in RUNS]
)
def test_a_killed_run_goes_on_bit_by_bit(name, checkpoint, rows, tmp_path, capsys):
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **RUNS[name]))
    killed = flags(checkpoint, rows, tmp_path / "killed", **RUNS[name])
    run_killed(killed, step=6)  # checkpoint-4 is of the second epoch
    trainer = sft.main(killed)
    assert f"Resuming from {tmp_path / 'killed' / 'checkpoint-4'}.\n" in capsys.readouterr().out
    assert len(steps(tmp_path / "whole")) == 6
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    for parameter in trainer.model.parameters():
        assert parameter.dtype == torch.float32 or not parameter.requires_grad


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_any_moment_goes_on(checkpoint, rows, tmp_path):
    overrides = {"num_train_epochs": 4, "save_total_limit": 1}
    begin = time.perf_counter()
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **overrides))
    seconds, moments = time.perf_counter() - begin, random.Random(0)
    killed = flags(checkpoint, rows, tmp_path / "killed", **overrides)
    for _ in range(6):
        process = start(killed)
        process.join(moments.uniform(0.2, 1) * seconds)
        process.kill()
        process.join()
    sft.main(killed)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-12"]


@pytest.mark.parametrize(
    "workers, batches", [(0, 3), pytest.param(2, 7, marks=pytest.mark.slow)], ids=["no workers", "2 workers"]
)
def test_a_stream_goes_on_without_decoding_what_was_trained(
    workers, batches, checkpoint, rows, tmp_path, monkeypatch, capsys
):
    stream(monkeypatch)
    overrides = {"max_steps": 8, "save_steps": 6, "per_device_train_batch_size": 2}  # it ends in between
    overrides |= {"dataloader_num_workers": workers, "remove_unused_columns": False}
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **overrides))
    killed = flags(checkpoint, rows, tmp_path / "killed", **overrides)
    run_killed(killed, step=8)
    decode, log = video_processing_valley.sample_video, tmp_path / "decoded"

    def decode_and_tell(clip, **kwargs):
        with log.open("a") as file:
            print(clip, file=file)
        return decode(clip, **kwargs)

    monkeypatch.setattr(video_processing_valley, "sample_video", decode_and_tell)
    sft.main(killed)
    assert f"Resuming from {tmp_path / 'killed' / 'checkpoint-6'}.\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    # Two steps, one batch that is looked at ahead, and what workers prefetch. At most one row in two has a clip.
    assert 0 < len(log.read_text().splitlines()) <= batches


def test_checkpoints_have_the_names_that_the_trainer_loads(finished, checkpoint):
    """`Trainer` drops weights of other names and says so in the log only."""
    saved = load_file(finished["stage2_instruct"] / "checkpoint-2" / "model.safetensors")
    assert saved.keys() == AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict().keys()


# --- Cut short -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(checkpoint, rows, tmp_path_factory):
    """Finished runs with all their checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    for config, overrides in {"stage2_instruct": {}, "stage2_lora": {"lora_r": 4}}.items():
        overrides |= {"config": f"{config}.yaml", "save_steps": 1, "max_steps": 2, "lr_scheduler_type": "constant"}
        sft.main(flags(checkpoint, rows, folder / config, **overrides))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("config", ["stage2_instruct", "stage2_lora"])
def test_a_checkpoint_without_any_of_its_files_is_skipped(config, finished, tmp_path, caplog):
    run = Path(shutil.copytree(finished[config], tmp_path / "run"))
    settings = read_settings(run / "checkpoint-2")
    weights = "model.safetensors" if config == "stage2_instruct" else "adapter_model.safetensors"
    files = {path.name: path for path in (run / "checkpoint-2").rglob("*") if path.is_file()}
    assert {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files.keys()
    for name, file in files.items():
        content = file.read_bytes()
        for damage in (Path.unlink, lambda file: file.write_bytes(b""), cut_in_half):
            damage(file)
            assert name in check_checkpoint(run / "checkpoint-2")
            caplog.clear()
            assert checkpoints._choose(run, "auto", settings) == str(run / "checkpoint-1")
            assert f"checkpoint-2 is skipped: {name}" in warnings(caplog)[0]
            with pytest.raises(ValueError, match="checkpoint-2 is not complete: .* Say `auto` for the last"):
                checkpoints._choose(run, run / "checkpoint-2", settings)
        file.write_bytes(content)
    assert checkpoints._choose(run, "auto", settings) == str(run / "checkpoint-2")
    (run / "checkpoint-2" / "checkpoint-is-incomplete.txt").touch()
    assert checkpoints._choose(run, True, settings) == str(run / "checkpoint-1")


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


def test_only_what_is_older_and_ours_is_deleted(finished, tmp_path):
    folders = {number: tmp_path / f"checkpoint-{number}" for number in range(1, 10)}
    for folder in folders.values():
        shutil.copytree(finished["stage2_instruct"] / "checkpoint-2", folder)
    disown(folders[2])
    for number in (3, 9):  # written just now by another, or left by a machine whose clock is ahead
        cut_in_half(folders[number] / "trainer_state.json")
    (folders[4] / "trainer_state.json").unlink()
    (folders[5] / "optimizer.pt").unlink()
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    for best, left in ((folders[1], [1, 2, 7, 8, 9]), (None, [2, 7, 8, 9])):
        state = TrainerState(global_step=8, best_model_checkpoint=best and str(best))
        keeper = CheckpointKeeper({}, limit=2)
        keeper.on_train_begin(args, state, None)
        keeper.on_save(args, state, None)
        assert sorted(tmp_path.glob("checkpoint-*")) == [folders[number] for number in left]


@pytest.mark.parametrize("before", ["outputs/run", "/moved/since"])
def test_the_best_checkpoint_is_kept_however_its_folder_is_spelt(finished, tmp_path, before):
    for number in (1, 2, 3):
        shutil.copytree(finished["stage2_instruct"] / "checkpoint-2", tmp_path / f"checkpoint-{number}")
    state = TrainerState(global_step=3, best_model_checkpoint=f"{before}/checkpoint-1")
    args, keeper = TrainingArguments(str(tmp_path), use_cpu=True), CheckpointKeeper({}, limit=1)
    keeper.on_train_begin(args, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-1")  # where it is loaded from at the end
    keeper.on_save(args, state, None)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


def test_a_checkpoint_written_twice_does_not_list_itself(finished, tmp_path):
    args, state = TrainingArguments(str(finished["stage2_instruct"]), use_cpu=True), TrainerState(global_step=2)
    keeper = CheckpointKeeper({})
    keeper.on_train_begin(args, state, None)
    names = keeper.state()["record"]["files"].keys()
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} < names
    assert not names & {"trainer_state.json", "rng_state.pth"}


@pytest.mark.parametrize(
    "file",
    [
        "optimizer.pt",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("model.safetensors", "rng_state.pth", "trainer_state.json")
        ),
    ],
)
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    file, checkpoint, rows, tmp_path, caplog, capsys
):
    """Although only one is kept: the one before is deleted when the next is complete, not earlier."""
    killed, output = flags(checkpoint, rows, tmp_path / "out", save_total_limit=1), tmp_path / "out"
    run_killed(killed, prepare=lambda: kill_when_it_appears(output / "checkpoint-4" / file))
    (output / "checkpoint-5").mkdir()  # cut short even earlier, on a machine whose clock is ahead
    os.utime(output / "checkpoint-5", (time.time() + 1000,) * 2)
    sft.main(killed)
    told = warnings(caplog)
    assert f"{output / 'checkpoint-5'} is skipped: trainer_state.json" in told[0]
    if file != "trainer_state.json":  # small, and the last: it may be whole already
        assert f"{output / 'checkpoint-4'} is skipped: trainer_state.json" in told[1]
        assert f"Resuming from {output / 'checkpoint-2'}.\n" in capsys.readouterr().out
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_flawed_checkpoint_does_not_look_complete_while_it_is_written_anew(finished, checkpoint, rows, tmp_path):
    output = Path(shutil.copytree(finished["stage2_instruct"], tmp_path / "run"))
    weights = output / "checkpoint-2" / "model.safetensors"
    size = weights.stat().st_size
    cut_in_half(weights)

    run = flags(checkpoint, rows, output, save_steps=1, max_steps=2, lr_scheduler_type="constant")
    run_killed(run, prepare=lambda: kill_when_it_appears(weights, size))
    assert "trainer_state.json" in check_checkpoint(output / "checkpoint-2")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(checkpoint, rows, tmp_path, capsys, monkeypatch):
    run, output = flags(checkpoint, rows, tmp_path / "out", save_total_limit=1), tmp_path / "out"

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                (output / "checkpoint-4").mkdir()
                (output / "checkpoint-4" / "optimizer.pt").symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(sft, "SFTTrainer", with_callbacks(FillDisk()))
        with pytest.raises(OSError, match="is full .* last complete checkpoint is .*checkpoint-2. Free up space"):
            sft.main(run)
    assert not check_checkpoint(output / "checkpoint-2")
    (output / "checkpoint-4" / "optimizer.pt").unlink()
    sft.main(run)
    assert f"Resuming from {output / 'checkpoint-2'}.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        OSError(28, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_every_way_to_say_that_a_disk_is_full_is_understood(error, tmp_path):
    with pytest.raises(OSError, match="is full .* last complete checkpoint is none"):
        with clear_errors(tmp_path):
            raise error


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        with clear_errors(tmp_path):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


# --- What is asked for ---------------------------------------------------------------------------------------------


def test_what_can_be_asked_for(finished, tmp_path, capsys):
    run = finished["stage2_instruct"]
    settings = read_settings(run / "checkpoint-2")
    last = str(run / "checkpoint-2")
    assert checkpoints._choose(run, "true", settings) == checkpoints._choose(run, True, settings) == last
    assert checkpoints._choose(run, last, settings) == checkpoints._choose(tmp_path, last, settings) == last
    capsys.readouterr()
    assert checkpoints._choose(tmp_path, "auto", settings) is None
    assert capsys.readouterr().out == f"{tmp_path} has no complete checkpoint: the run starts.\n"
    assert checkpoints._choose(tmp_path, None, settings) is None
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint; checkpoint-1: trainer_state.json.*missing.*`auto`"):
        checkpoints._choose(tmp_path, "true", settings)
    with pytest.raises(ValueError, match="nowhere is not complete: there is no such folder"):
        checkpoints._choose(tmp_path, "nowhere", settings)
    for resume, step in ((None, 0), (False, 0), (str(run / "checkpoint-1"), 1)):
        with pytest.raises(ValueError, match=f"holds checkpoint-2 of a run already, .* would start at step {step}"):
            checkpoints._choose(run, resume, settings)
    assert check_checkpoint("nowhere") == "there is no such folder"


def test_a_run_does_not_begin_among_checkpoints_of_another_script(finished, tmp_path):
    run = Path(shutil.copytree(finished["stage2_instruct"], tmp_path / "run"))
    settings = read_settings(run / "checkpoint-2")
    (run / "checkpoint-3").touch()  # a file
    (run / "checkpoint-4").mkdir()  # a torn one is in nobody's way
    disown(run / "checkpoint-2")
    assert "another program wrote it" in check_checkpoint(run / "checkpoint-2")
    for resume in (None, "auto", "true", run / "checkpoint-1"):
        with pytest.raises(ValueError, match="holds checkpoint-2 of another program already.* choose another"):
            checkpoints._choose(run, resume, settings)
    shutil.rmtree(run / "checkpoint-2")
    assert checkpoints._choose(run, "auto", settings) == str(run / "checkpoint-1")


def test_whatever_goes_wrong_in_the_main_process_reaches_all(checkpoint, rows, tmp_path):
    (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="out: IsADirectoryError"):
        sft.main(flags(checkpoint, rows, tmp_path / "out"))


def test_a_finished_run_has_nothing_left_to_train(finished, checkpoint, rows, tmp_path):
    output = shutil.copytree(finished["stage2_instruct"], tmp_path / "run")
    (output / "model.safetensors").unlink()  # killed in the very end
    sft.main(flags(checkpoint, rows, output, save_steps=1, max_steps=2, lr_scheduler_type="constant"))
    assert_same_run(output, finished["stage2_instruct"])


def test_nor_has_a_finished_stream(checkpoint, rows, tmp_path, monkeypatch):
    stream(monkeypatch)
    run = flags(checkpoint, rows, tmp_path / "out", max_steps=2, lr_scheduler_type="constant")
    sft.main(run)
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    sft.main(run)
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    sft.main([*run, "--max_steps", "3", "--ignore_data_skip", "true"])  # begins with the first rows again
    assert [entry["step"] for entry in steps(tmp_path / "out")] == [1, 2, 3]
    dealt = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    with pytest.raises(ValueError, match="size was 4, is 2; .*steps was 1, is 2; .*workers was 0, is 1. Set"):
        sft.main([*run, *(word for name, value in dealt.items() for word in (f"--{name}", str(value)))])


def test_a_run_with_other_settings_is_refused(finished, checkpoint, rows, tmp_path):
    output = shutil.copytree(finished["stage2_instruct"], tmp_path / "run")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(rows.read_text())[1:]))
    changes = {
        "lr_scheduler_type": "constant",
        "optim": "adafactor",
        "per_device_train_batch_size": 2,
        "seed": 7,
        "learning_rate": 0.5,
    }
    with pytest.raises(ValueError) as error:
        sft.main(flags(checkpoint, other, output, max_steps=2, **changes))
    text = str(error.value)
    for words in (
        f"An incompatible run wrote {output / 'checkpoint-2'}: optim was adamw_torch_fused, is adafactor; ",
        "rows in a step was 4, is 2; rows was 11, is 10; digest of the rows was ",
        "seed was 42, is 7; ",
        "learning_rate was 0.01, is 0.5; ",
        "Set these back, or start a new run in another output_dir",
    ):
        assert words in text
    with pytest.raises(ValueError, match="use_peft was False, is True; lora_r was 16, is 4; "):
        sft.main(flags(checkpoint, rows, output, config="stage2_lora.yaml", lora_r=4, max_steps=2))


def test_a_run_with_other_labels_is_refused(finished, checkpoint, rows, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.video_processor.fps, processor.chat_template = 2.0, processor.chat_template.replace("Valley,", "Hills,")
    processor.save_pretrained(other)
    output = shutil.copytree(finished["stage2_instruct"], tmp_path / "run")
    changes = {"max_length": 1000, "on_long_row": "drop", "assistant_only_loss": False, "pack_batches": True}
    changes |= {"loss_type": "dft", "gradient_checkpointing": False}
    with pytest.raises(ValueError) as error:
        sft.main(flags(other, rows, output, max_steps=2, lr_scheduler_type="constant", **changes))
    text = str(error.value)
    for words in (
        "max_length was 2048, is 1000; on_long_row was cut, is drop; pack_batches was False, is True",
        "assistant_only_loss was True, is False",
        "digest of the processor was",
        "loss_type was nll, is dft",
    ):
        assert words in text
    assert "digest of the rows" not in text and "gradient_checkpointing" not in text


def test_an_adapter_is_not_put_on_another_base_or_into_another_form(finished, checkpoint, rows, tmp_path):
    output = shutil.copytree(finished["stage2_lora"], tmp_path / "run")
    run = {"config": "stage2_lora.yaml", "max_steps": 2, "lr_scheduler_type": "constant"}
    other = shutil.copytree(checkpoint, tmp_path / "other")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="digest of the base model was"):
        sft.main(flags(other, rows, output, lora_r=4, **run))
    with pytest.raises(ValueError, match="lora_r was 4, is 8; lora_alpha was 256, is 64"):
        sft.main(flags(checkpoint, rows, output, lora_r=8, lora_alpha=64, **run))


def test_what_may_change_is_told(finished, checkpoint, rows, tmp_path, caplog):
    output = Path(shutil.copytree(finished["stage2_lora"], tmp_path / "run"))
    moved = tmp_path / "moved.json"
    moved.write_text(rows.read_text())
    changes = {"max_steps": 3, "lora_dropout": 0.1, "dtype": "bfloat16", "on_bad_sample": "skip"}
    changes |= {"gradient_checkpointing": False, "save_steps": 5}
    run = {"config": "stage2_lora.yaml", "lora_r": 4, "lr_scheduler_type": "constant"}
    sft.main(flags(checkpoint, moved, output, **run, **changes))
    (text,) = (message for message in warnings(caplog) if "differs" in message)
    for words in (
        "max_steps was 2, is 3",
        "gradient_checkpointing was True, is False",
        "on_bad_sample was raise, is skip",
        "dtype was float32, is bfloat16",
        "lora_dropout was 0.05, is 0.1",
        "save_steps was 1.0, is 5",
    ):
        assert words in text
    assert [entry["step"] for entry in steps(output)] == [1, 2, 3]


def test_weights_without_an_optimizer_are_refused(checkpoint, rows, tmp_path):
    output = tmp_path / "out"
    sft.main(flags(checkpoint, rows, output, max_steps=1, save_only_model=True))
    with pytest.raises(ValueError, match="checkpoint-1 holds weights only .save_only_model.*model_name_or_path"):
        sft.main(flags(checkpoint, rows, output, max_steps=2))


# --- Two processes -------------------------------------------------------------------------------------------------

# The means of several processes leave out the rows that fill up an epoch's last step, but in an epoch that was
# resumed Accelerate does not know which these are. Nothing is trained on them.
MEANS = {"entropy", "mean_token_accuracy"}
TWO = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "remove_unused_columns": False}
FLOAT32 = ("--mixed_precision", "no")  # for the files of DeepSpeed, which say bf16
RESUMING = """
import json, shutil, sys
from pathlib import Path
from unittest import mock

import sft
from accelerate import Accelerator
from transformers_valley.data import load_rows
from transformers_valley.training.prepare import prepare

whole, resumed, output, shards = json.loads(Path(sys.argv[1]).read_text())
if shards:
    names = sys.modules[prepare.__module__]
    names.load_rows = lambda *args: load_rows(*args).to_iterable_dataset(num_shards=shards)
with mock.patch.object(Accelerator, "end_training"):  # the processes stay together
    trainer = sft.main(whole)
    if trainer.is_world_process_zero():
        shutil.copytree(f"{trainer.args.output_dir}/checkpoint-4", f"{output}/checkpoint-4")
    trainer.accelerator.wait_for_everyone()
    sft.main(resumed)
Accelerator().end_training()
"""


@pytest.mark.parametrize(
    "config, shards, overrides",
    [
        pytest.param("ddp_cpu", None, {}, marks=pytest.mark.slow),
        pytest.param("ddp_cpu", 1, {"max_steps": 6}, marks=pytest.mark.slow),
        pytest.param("ddp_cpu", 2, {"max_steps": 6}, marks=pytest.mark.slow),
        pytest.param("zero2", None, {"config": "stage2_lora.yaml", "lora_r": 4}, marks=pytest.mark.slow),
    ],
    ids=["ddp", "ddp, a stream dealt out", "ddp, a stream in two shards", "zero2, lora"],
)
def test_two_processes_go_on_bit_by_bit(config, shards, overrides, checkpoint, rows, tmp_path):
    """In one launch, which takes longer than both runs in it."""
    if config == "zero2":
        needs_deepspeed()
    whole, resumed = (flags(checkpoint, rows, tmp_path / name, **TWO | overrides) for name in ("whole", "resumed"))
    (tmp_path / "resuming.py").write_text(RESUMING)
    (tmp_path / "flags.json").write_text(json.dumps([whole, resumed, str(tmp_path / "resumed"), shards], default=str))
    precision = FLOAT32 if config == "zero2" else ()
    script, options = tmp_path / "resuming.py", tmp_path / "flags.json"
    ended, log = launch(tmp_path / "log.txt", config, script, options, launch_flags=precision)
    assert ended == 0 and log.count("Resuming from") == 1, log
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", TIMES | MEANS)
    if not shards:
        alone = TWO | overrides | {"gradient_accumulation_steps": 4}
        with pytest.raises(ValueError, match="processes was 2, is 1"):
            sft.main(flags(checkpoint, rows, tmp_path / "resumed", **alone))


@pytest.mark.slow
def test_two_killed_processes_go_on_bit_by_bit(checkpoint, rows, tmp_path):
    needs_deepspeed()
    options = {**TWO, "num_train_epochs": 4, "save_total_limit": 1}
    whole, killed = (flags(checkpoint, rows, tmp_path / name, **options) for name in ("whole", "killed"))
    ended, log = launch(tmp_path / "whole.txt", "zero2", sft.__file__, *whole, launch_flags=FLOAT32)
    assert ended == 0, log

    output, end = tmp_path / "killed", time.monotonic() + 300
    with launched(tmp_path / "killed.txt", "zero2", sft.__file__, *killed, launch_flags=FLOAT32) as process:
        while not any(check_checkpoint(folder) is None for folder in checkpoints._list_checkpoints(output)):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "killed.txt").read_text()
            time.sleep(0.01)
        kill(process)
    assert not (output / "model.safetensors").exists()

    ended, log = launch(tmp_path / "resumed.txt", "zero2", sft.__file__, *killed, launch_flags=FLOAT32)
    assert ended == 0 and log.count("Resuming from") == 1, log
    assert_same_run(output, tmp_path / "whole", TIMES | MEANS)
    (last,) = output.glob("checkpoint-*")
    settings = read_settings(last)
    assert settings["same"]["processes"] == 2 and (last / "rng_state_1.pth").exists()
    assert any(name.startswith("global_step") for name in checkpoints._read_record(last)["files"])
    # transformers would drop the optimizer without a word
    with pytest.raises(ValueError, match="backend was DeepSpeed ZeRO-2 in float32, is plain PyTorch; .*was 2, is 1"):
        sft.main(killed)
