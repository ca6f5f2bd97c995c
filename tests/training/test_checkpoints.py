# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Runs of `examples/sft.py` that are killed and go on: bit by bit what they would have been."""

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import sft
import torch
import yaml
from clips import write_clip
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_stages import arguments
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, TrainerCallback

from transformers_valley import video_processing_valley
from transformers_valley.data import load_rows
from transformers_valley.training import checkpoints, explain_full_disk
from transformers_valley.training.checkpoints import find_flaw


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
            sft.SFTTrainer = partial(sft.SFTTrainer, callbacks=[KillBefore(step)])
        sft.main(arguments)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def run_killed(arguments, step=None, prepare=lambda: None):
    process = start(arguments, step, prepare)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def history(run):
    """What a run logged of every step."""
    entries = json.loads((Path(run) / "trainer_state.json").read_text())["log_history"]
    return [{key: entry[key] for key in entry.keys() - TIMES} for entry in entries]


def assert_same_run(ours, theirs):
    assert history(ours) == history(theirs)
    weights = next(theirs.glob("*model.safetensors")).name
    ours, theirs = (load_file(run / weights) for run in (ours, theirs))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == checkpoints.__name__]


def stream(monkeypatch):
    monkeypatch.setattr(sft, "load_rows", lambda *args: load_rows(*args).to_iterable_dataset(num_shards=2))


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
    "stage 2": {},
}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "stage 2"])
def test_a_killed_run_goes_on_bit_by_bit(name, checkpoint, rows, tmp_path, caplog):
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **RUNS[name]))
    killed = flags(checkpoint, rows, tmp_path / "killed", **RUNS[name])
    run_killed(killed, step=6)  # checkpoint-4 is of the second epoch
    trainer = sft.main(killed)
    assert messages(caplog)[-1] == f"Going on from {tmp_path / 'killed' / 'checkpoint-4'}."
    assert len(history(tmp_path / "whole")) == 7
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    for parameter in trainer.model.parameters():
        assert parameter.dtype == torch.float32 or not parameter.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_at_any_moment_goes_on(name, checkpoint, rows, tmp_path, monkeypatch):
    overrides = RUNS[name] | {"num_train_epochs": 6, "save_total_limit": 1}
    begin = time.perf_counter()
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **overrides))
    seconds, moments = time.perf_counter() - begin, random.Random(0)
    killed = flags(checkpoint, rows, tmp_path / "killed", **overrides)
    for _ in range(8):
        process = start(killed)
        process.join(moments.uniform(0.2, 1) * seconds)
        process.kill()
        process.join()
    sft.main(killed)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-18"]


@pytest.mark.parametrize(
    "workers, batches", [(0, 3), pytest.param(2, 7, marks=pytest.mark.slow)], ids=["no workers", "2 workers"]
)
def test_a_stream_goes_on_without_decoding_what_was_trained(
    workers, batches, checkpoint, rows, tmp_path, monkeypatch, caplog
):
    stream(monkeypatch)
    overrides = {"max_steps": 12, "save_steps": 5, "per_device_train_batch_size": 2}  # it ends in between
    overrides |= {"dataloader_num_workers": workers, "remove_unused_columns": False}
    sft.main(flags(checkpoint, rows, tmp_path / "whole", **overrides))
    killed = flags(checkpoint, rows, tmp_path / "killed", **overrides)
    run_killed(killed, step=12)
    decode, log = video_processing_valley.sample_video, tmp_path / "decoded"

    def decode_and_tell(clip, **kwargs):
        with log.open("a") as file:
            print(clip, file=file)
        return decode(clip, **kwargs)

    monkeypatch.setattr(video_processing_valley, "sample_video", decode_and_tell)
    sft.main(killed)
    assert messages(caplog)[-1] == f"Going on from {tmp_path / 'killed' / 'checkpoint-10'}."
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
def test_a_checkpoint_without_any_of_its_files_is_passed_over(config, finished, tmp_path, caplog):
    run = Path(shutil.copytree(finished[config], tmp_path / "run"))
    settings = checkpoints._record(checkpoints._read(run / "checkpoint-2"))["settings"]
    files = [path for path in (run / "checkpoint-2").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    weights = "model.safetensors" if config == "stage2_instruct" else "adapter_model.safetensors"
    needed = {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "tokenizer.json"}
    assert needed | {"trainer_state.json"} <= names and len(names) == len(files)
    for file in files:
        content = file.read_bytes()
        for damage in (Path.unlink, lambda file: file.write_bytes(b""), cut_in_half):
            damage(file)
            assert file.name in find_flaw(run / "checkpoint-2")
            caplog.clear()
            assert checkpoints._choose(run, "auto", settings) == str(run / "checkpoint-1")
            assert f"checkpoint-2 is passed over: {file.name}" in messages(caplog)[0]
            with pytest.raises(ValueError, match="checkpoint-2 is not complete: .* Say `auto` for the last complete"):
                checkpoints._choose(run, run / "checkpoint-2", settings)
            file.write_bytes(content)
    assert checkpoints._choose(run, "auto", settings) == str(run / "checkpoint-2")
    (run / "checkpoint-2" / "checkpoint-is-incomplete.txt").touch()
    assert checkpoints._choose(run, True, settings) == str(run / "checkpoint-1")


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    "file",
    [
        "optimizer.pt",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("model.safetensors", "tokenizer.json", "scheduler.pt", "rng_state.pth", "trainer_state.json")
        ),
    ],
)
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(file, checkpoint, rows, tmp_path, caplog):
    """Although only one is kept: the one before is deleted when the next is complete, not earlier."""
    killed, output = flags(checkpoint, rows, tmp_path / "out", save_total_limit=1), tmp_path / "out"
    run_killed(killed, prepare=lambda: kill_when_it_appears(output / "checkpoint-4" / file))
    (output / "checkpoint-5").mkdir()  # cut short even earlier, on a machine whose clock is ahead
    os.utime(output / "checkpoint-5", (time.time() + 1000,) * 2)
    sft.main(killed)
    told = messages(caplog)
    assert f"{output / 'checkpoint-5'} is passed over: trainer_state.json" in told[0]
    if file != "trainer_state.json":  # small, and the last: it may be whole already
        assert f"{output / 'checkpoint-4'} is passed over: trainer_state.json" in told[1]
        assert f"Going on from {output / 'checkpoint-2'}." == told[2]
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_flawed_checkpoint_does_not_look_complete_while_it_is_written_anew(finished, checkpoint, rows, tmp_path):
    output = Path(shutil.copytree(finished["stage2_instruct"], tmp_path / "run"))
    weights = output / "checkpoint-2" / "model.safetensors"
    size = weights.stat().st_size
    cut_in_half(weights)

    run = flags(checkpoint, rows, output, save_steps=1, max_steps=2, lr_scheduler_type="constant")
    run_killed(run, prepare=lambda: kill_when_it_appears(weights, size))
    assert "trainer_state.json" in find_flaw(output / "checkpoint-2")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(checkpoint, rows, tmp_path, caplog, monkeypatch):
    run, output = flags(checkpoint, rows, tmp_path / "out", save_total_limit=1), tmp_path / "out"

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                (output / "checkpoint-4").mkdir()
                (output / "checkpoint-4" / "optimizer.pt").symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(sft, "SFTTrainer", partial(sft.SFTTrainer, callbacks=[FillDisk()]))
        with pytest.raises(OSError, match="seems to be full .* last complete checkpoint is .*checkpoint-2. Make room"):
            sft.main(run)
    assert not find_flaw(output / "checkpoint-2")
    (output / "checkpoint-4" / "optimizer.pt").unlink()
    sft.main(run)
    assert f"Going on from {output / 'checkpoint-2'}." == messages(caplog)[-1]


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
    with pytest.raises(OSError, match="seems to be full .* last complete checkpoint is none"):
        with explain_full_disk(tmp_path):
            raise error


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        with explain_full_disk(tmp_path):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


# --- What is asked for ---------------------------------------------------------------------------------------------


def test_what_can_be_asked_for(finished, tmp_path, caplog):
    run = finished["stage2_instruct"]
    settings = checkpoints._record(checkpoints._read(run / "checkpoint-2"))["settings"]
    last = str(run / "checkpoint-2")
    assert checkpoints._choose(run, "true", settings) == checkpoints._choose(run, True, settings) == last
    assert checkpoints._choose(run, last, settings) == checkpoints._choose(tmp_path, last, settings) == last
    caplog.clear()
    assert checkpoints._choose(tmp_path, "auto", settings) is None
    assert messages(caplog) == [f"{tmp_path} has no complete checkpoint: the run begins."]
    assert checkpoints._choose(tmp_path, None, settings) is None
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint; checkpoint-1: trainer_state.json.*missing.*`auto`"):
        checkpoints._choose(tmp_path, "true", settings)
    with pytest.raises(ValueError, match="resume_from_checkpoint is nowhere: there is no such folder"):
        checkpoints._choose(tmp_path, "nowhere", settings)
    for resume, step in ((None, 0), (False, 0), (str(run / "checkpoint-1"), 1)):
        with pytest.raises(ValueError, match=f"holds checkpoint-2 of a run already, .* would begin at step {step}"):
            checkpoints._choose(run, resume, settings)


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
    assert [entry["step"] for entry in history(tmp_path / "out")] == [1, 2, 3, 3]


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
    assert "optim was adamw_torch_fused, is adafactor (its optimizer's state would be lost)" in text
    assert "rows in a step was 4, is 2; rows was 11, is 10; digest of the rows was " in text
    assert "seed was 42, is 7 (the run would go on with other rows than those that come next)" in text
    assert "learning_rate was 0.01, is 0.5 (a checkpoint keeps these, and a new value would do nothing)" in text
    assert "Set it back, or begin a new run in another output_dir." in text
    with pytest.raises(ValueError, match="whole weights, is plain PyTorch, adapters; trained weights was"):
        sft.main(flags(checkpoint, rows, output, config="stage2_lora.yaml", lora_r=4, max_steps=2))


def test_what_may_change_is_told(finished, checkpoint, rows, tmp_path, caplog):
    output = Path(shutil.copytree(finished["stage2_instruct"], tmp_path / "run"))
    moved = tmp_path / "moved.json"
    moved.write_text(rows.read_text())
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    changes |= {"lr_scheduler_type": "constant"}
    sft.main(flags(checkpoint, moved, output, **changes))
    (text,) = (message for message in messages(caplog) if "differs" in message)
    assert "per_device_train_batch_size was 4, is 2; gradient_accumulation_steps was 1, is 2; max_steps was 2" in text
    assert [entry["step"] for entry in history(output)] == [1, 2, 3, 3]


def test_rows_may_move_but_not_change(rows, tmp_path):
    records = json.loads(rows.read_text())
    for record in records:
        for kind in record.keys() & {"video", "image"}:
            record[kind] = Path(record[kind]).name
    (tmp_path / "moved.json").write_text(json.dumps(records))
    digest = checkpoints._digest(load_rows([rows]))
    assert checkpoints._digest(load_rows([tmp_path / "moved.json"], "/elsewhere")) == digest
    (tmp_path / "turned.json").write_text(json.dumps(records[::-1]))
    assert checkpoints._digest(load_rows([tmp_path / "turned.json"])) != digest


def test_weights_without_an_optimizer_and_folders_of_others_are_refused(checkpoint, rows, tmp_path):
    output = tmp_path / "out"
    sft.main(flags(checkpoint, rows, output, max_steps=1, save_only_model=True))
    with pytest.raises(ValueError, match="checkpoint-1 holds weights only .save_only_model.*model_name_or_path"):
        sft.main(flags(checkpoint, rows, output, max_steps=2))
    state = checkpoints._read(output / "checkpoint-1")
    del state["stateful_callbacks"]["CheckpointKeeper"]
    (output / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
    assert "was not written by examples/sft.py" in find_flaw(output / "checkpoint-1")


# --- Two processes -------------------------------------------------------------------------------------------------

MACHINES = {
    "ddp": {"distributed_type": "MULTI_GPU"},
    "zero2": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_multinode_launcher": "standard", "zero3_init_flag": False, "zero_stage": 2},
    },
}
STREAMING = """
import sft
from transformers_valley.data import load_rows
sft.load_rows = lambda *args: load_rows(*args).to_iterable_dataset(num_shards={shards})
if __name__ == "__main__":
    sft.main()
"""


def launch(machine, script, arguments, folder, port):
    """The command that people type, on two processes of this machine, in a group that one signal kills."""
    config = {"compute_environment": "LOCAL_MACHINE", "use_cpu": True, "num_machines": 1, "num_processes": 2}
    config |= {"machine_rank": 0, "mixed_precision": "no", "rdzv_backend": "static", "main_process_port": port}
    (folder / "machine.yaml").write_text(yaml.safe_dump(config | MACHINES[machine]))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "machine.yaml")]
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # DeepSpeed looks for ninja
        "PYTHONPATH": f"{Path(sft.__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    return subprocess.Popen(
        [*command, str(script), *arguments],
        env=os.environ | paths,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine, overrides",
    [
        ("ddp", {}),
        ("ddp", {"shards": 1, "max_steps": 12}),
        ("ddp", {"shards": 2, "max_steps": 12}),
        ("zero2", {}),
        ("zero2", {"config": "stage2_lora.yaml", "lora_r": 4}),
    ],
    ids=["ddp", "ddp, a stream dealt out", "ddp, a stream in two shards", "zero2", "zero2, lora"],
)
def test_two_killed_processes_go_on_bit_by_bit(machine, overrides, checkpoint, rows, tmp_path, request):
    if machine == "zero2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    script = Path(sft.__file__)
    if shards := overrides.get("shards"):
        script = tmp_path / "streaming.py"
        script.write_text(STREAMING.format(shards=shards))
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 4}
    options |= {"save_total_limit": 1, "ddp_find_unused_parameters": False, "remove_unused_columns": False}
    options |= {name: value for name, value in overrides.items() if name != "shards"}
    port = 29600 + len(request.node.name)
    whole, killed = (flags(checkpoint, rows, tmp_path / name, **options) for name in ("whole", "killed"))
    run = launch(machine, script, whole, tmp_path, port)
    errors = run.communicate()[1]
    assert run.returncode == 0, errors

    output = tmp_path / "killed"
    run = launch(machine, script, killed, tmp_path, port)
    while not any(find_flaw(folder) is None for folder in checkpoints._list_checkpoints(output)):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()

    run = launch(machine, script, killed, tmp_path, port)
    errors = run.communicate()[1]
    assert run.returncode == 0 and errors.count("Going on from") == 1, errors
    assert_same_run(output, tmp_path / "whole")
    (last,) = output.glob("checkpoint-*")
    settings = checkpoints._record(checkpoints._read(last))["settings"]
    assert settings["run"]["processes"] == 2 and (last / "rng_state_1.pth").exists()
    assert settings["state"]["backend"].startswith("DeepSpeed ZeRO-2 on 2" if machine == "zero2" else "plain PyTorch")
    if machine == "zero2":  # transformers would drop the optimizer without a word
        with pytest.raises(ValueError, match="backend was DeepSpeed ZeRO-2 on 2 processes in float32, .* is plain"):
            sft.main(killed)
