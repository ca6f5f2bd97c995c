# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Features of the frozen vision tower on disk: the training is the same, and nothing is taken for something else."""

import errno
import json
import os
import shutil

import pytest
import sft
import torch
from clips import write_clip
from launching import arguments
from PIL import Image
from test_collator import make_rows, record
from tiny import tiny_valley
from transformers import AutoModelForImageTextToText
from trl import SFTConfig

from transformers_valley.data import load_rows
from transformers_valley.data.decode import BadSampleError
from transformers_valley.data.frames import PackSettings
from transformers_valley.data.packing import pack
from transformers_valley.training import FeatureCache, ValleyDataCollator, cache_vision_features, features
from transformers_valley.training.parameters import set_trainable


@pytest.fixture
def media(tmp_path):
    write_clip(tmp_path / "short.mp4", 20, fps=10)
    write_clip(tmp_path / "long.mp4", 50, fps=10)
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "picture.png")
    return tmp_path


@pytest.fixture
def records():
    return [record(str(i), visual) for i, visual in enumerate(["short.mp4", "picture.png", "", "long.mp4"])]


@pytest.fixture
def cache(model, processor, tmp_path):
    set_trainable(model, ["model.multi_modal_projector"])
    return FeatureCache(tmp_path / "features", model.model, processor)


def stored(cache):
    return sorted(cache.folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        ("stage1_align.yaml", 2),
        pytest.param("stage2_instruct.yaml", 0, marks=pytest.mark.slow),
        pytest.param("stage2_lora.yaml", 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_and_a_second_one_decodes_nothing(config, workers, checkpoint, media, records, monkeypatch):
    file = media / "rows.json"
    file.write_text(json.dumps(records * 2))
    losses = {}
    for name, folder in (("pixels", ""), ("made", media / "features"), ("read", media / "features")):
        overrides = {"vision_model_name_or_path": "", "lora_r": 4, "max_steps": 3, "dataloader_num_workers": workers}
        flags = arguments(config, checkpoint, file, media / name, media_root=media, **overrides)
        if folder:
            flags += ["--cache_vision_features", str(folder)]
        if name == "read":
            monkeypatch.setattr("transformers_valley.video_processing_valley.sample_video", pytest.fail)
            monkeypatch.setattr("transformers_valley.modeling_valley.ValleyModel._encode_frames", pytest.fail)
        trainer = sft.main(flags)
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses["pixels"]) == 3
    assert losses["made"] == pytest.approx(losses["pixels"], rel=1e-6)
    assert losses["read"] == losses["made"]
    assert len(list((media / "features").rglob("*.safetensors"))) == 3  # each visual once


def test_frames_are_those_that_the_processor_samples(checkpoint, processor, media, records):
    processor.video_processor.fps, processor.video_processor.num_frames = None, 5
    args = SFTConfig(str(media / "out"), use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    set_trainable(model, ["model.multi_modal_projector"])
    rows = make_rows(media, records)
    cache = cache_vision_features(media / "features", model, processor, [rows], args)
    assert len(cache.read_row(rows[3])[1]["video"]) == 5  # by its rate it would be 3


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2_with_registers"])
@pytest.mark.parametrize("space", ["vision", "text"])
def test_features_alone_stand_for_pixels(vision, space, processor, media, records):
    model = tiny_valley(tokenizer=processor.tokenizer, vision=vision, temporal_space=space)
    set_trainable(model, ["model.multi_modal_projector"])
    rows = make_rows(media, records)
    collator = ValleyDataCollator(processor, padding_free=False)
    pixels = collator(list(rows))
    collator.features = FeatureCache(media / "features", model.model, processor)
    assert collator.features.fill([rows]) == (3, 0)
    batch = collator(list(rows))
    assert not {"pixel_values", "pixel_values_videos"} & batch.keys()
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name], pixels[name])
    assert batch["video_num_frames"] == pixels["video_num_frames"]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**pixels).loss)
        torch.testing.assert_close(model(**batch).logits, model(**pixels).logits, rtol=1e-4, atol=1e-5)


def test_clips_need_their_numbers_of_frames(model, processor):
    frames = {"last_hidden_state": torch.zeros(3, 5, 32)}
    ids = processor.tokenizer("Hello", return_tensors="pt")["input_ids"]
    for given in (None, torch.tensor([2])):
        with pytest.raises(ValueError, match="video_num_frames must tell how the 3 frames"):
            model(input_ids=ids, mm_encoder_outputs={"video": frames}, video_num_frames=given)


def test_a_visual_is_known_by_what_it_holds(cache, media):
    rows = make_rows(media, [record("a", "short.mp4"), record("b", "short.mp4"), record("c", "picture.png")])
    assert cache.fill([rows]) == (2, 0)
    assert cache.fill([rows]) == (0, 0)
    shutil.copy(media / "short.mp4", media / "copy.mp4")
    assert cache.fill([make_rows(media, [record("d", "copy.mp4")])]) == (0, 0)
    write_clip(media / "short.mp4", 30, fps=10)
    assert cache.fill([rows]) == (1, 0)
    part = {"id": "e", "messages": [*_messages("long.mp4", start=1.0, end=3.0)]}
    assert cache.fill([make_rows(media, [part])]) == (1, 0)
    assert cache.fill([make_rows(media, [record("f", "long.mp4")])]) == (1, 0)
    assert len(stored(cache)) == 5


def _messages(path, **span):
    content = [{"type": "video", "path": path, **span}, {"type": "text", "text": "What?"}]
    return {"role": "user", "content": content}, {"role": "assistant", "content": "Nothing."}


def test_a_folder_of_frames_is_known_by_its_pictures(cache, media):
    (media / "frames").mkdir()
    for index, colour in enumerate(("red", "blue")):
        Image.new("RGB", (40, 40), colour).save(media / "frames" / f"{index}.png")
    rows = make_rows(media, [{"id": "a", "messages": [*_messages("frames")]}])
    assert cache.fill([rows]) == (1, 0)
    assert cache.fill([rows]) == (0, 0)
    Image.new("RGB", (40, 40), "green").save(media / "frames" / "1.png")
    assert cache.fill([rows]) == (1, 0)


def test_another_tower_processor_or_precision_has_features_of_its_own(cache, model, processor):
    same = FeatureCache(cache.root, model.model, processor)
    half = FeatureCache(cache.root, model.model, processor, torch.bfloat16)
    model.model.vision_feature_index -= 1
    layer = FeatureCache(cache.root, model.model, processor)
    model.model.vision_feature_index += 1
    processor.video_processor.num_frames, processor.video_processor.fps = 3, None
    sampled = FeatureCache(cache.root, model.model, processor)
    processor.image_processor.image_mean = [0.5] * 3
    pictured = FeatureCache(cache.root, model.model, processor)
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).add_(1)
    moved = FeatureCache(cache.root, model.model, processor)
    assert cache.folder == same.folder
    assert len({part.folder for part in (cache, half, layer, sampled, pictured, moved)}) == 6


def test_what_is_stored_is_what_the_tower_gives(cache, model, processor, media):
    rows = make_rows(media, [record("a", "long.mp4")])
    cache.fill([rows])
    inputs = processor.video_processor(str(media / "long.mp4"), return_tensors="pt")
    with torch.no_grad():
        expected = model.get_video_features(**inputs).last_hidden_state
    torch.testing.assert_close(cache.read_row(rows[0])[1]["video"], expected)


def test_processes_share_the_work(cache, media, records):
    rows = make_rows(media, records)
    counts = [cache.fill([rows], part=(rank, 2))[0] for rank in (0, 1)]
    assert sorted(counts) == [1, 2] and cache.fill([rows]) == (0, 0)


@pytest.mark.parametrize("rule", ["raise", "skip"])
def test_what_cannot_be_read_is_a_bad_sample_as_without(rule, cache, processor, media, records):
    (media / "torn.mp4").write_bytes(b"no video")
    bad = [record("bad", "torn.mp4"), record("gone", "none.png"), record("below a file", "torn.mp4/clip.mp4")]
    rows = make_rows(media, [*records, *bad])
    assert cache.fill([rows]) == (3, 3)
    collator = ValleyDataCollator(processor, on_bad_sample=rule, max_bad_share=1)
    messages = []
    for collator.features in (None, cache):
        for index in (4, 5, 6):
            if rule == "raise":
                with pytest.raises(BadSampleError) as caught:
                    collator([rows[index]])
                messages.append(str(caught.value))
            else:
                assert torch.equal(collator([rows[index], rows[0]])["input_ids"], collator([rows[0]])["input_ids"])
    assert messages[:3] == messages[3:]


def test_features_that_vanish_are_named(cache, processor, media, records):
    rows = make_rows(media, records)
    cache.fill([rows])
    collator = ValleyDataCollator(processor)
    collator.features = cache
    cache.path_of(features._Source("image", str(media / "picture.png"))).unlink()
    with pytest.raises(ValueError, match="features of row '1' of 'rows' are not in .*Start again: what is missing"):
        collator([rows[1]])
    path = cache.path_of(features._Source("video", str(media / "short.mp4")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path.name} is damaged .*delete it and start again"):
        collator([rows[0]])


def test_a_full_disk_leaves_no_half_file(cache, media, records, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = make_rows(media, records)
    cache.fill([rows])  # so that all files are known
    (gone := stored(cache)[0]).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(
            OSError, match=r"Cannot write '\w+\.safetensors' of 0\.0 MB .* the disk or your quota is full"
        ) as caught:
            cache.fill([rows])
    assert str(gone.parent) in str(caught.value)
    assert [path for path in gone.parent.iterdir() if path.suffix != ".safetensors"] == []
    assert cache.fill([rows]) == (1, 0)


def test_a_folder_that_cannot_be_written_is_named_at_once(model, processor, tmp_path):
    set_trainable(model, ["lm_head"])
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "/proc/nope"):
        with pytest.raises(OSError, match=f"cache_vision_features={folder}: no features can be kept there"):
            FeatureCache(folder, model.model, processor)


def test_a_picture_of_equal_size_and_time_is_told_apart(cache, media):
    rows = make_rows(media, [record("a", "picture.png")])
    cache.fill([rows])
    before, path = os.stat(media / "picture.png"), media / "picture.png"
    path.unlink()
    Image.new("RGB", (40, 40), "navy").save(path)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.fill([rows])[0] == 1


def test_an_emptied_stamp_is_no_name(cache, media):
    cache.fill([make_rows(media, [record("a", "picture.png")])])
    path = cache.path_of(features._Source("image", str(media / "picture.png")))
    (stamp,) = (cache.root / "files").rglob("*")
    stamp.write_bytes(b"")
    assert cache.path_of(features._Source("image", str(media / "picture.png"))) == path


def test_packed_rows_have_features(cache, processor, media, records):
    """Of the pictures that were stored, each once, whether or not the clips are still there."""
    mixed = {"id": "5", "messages": [{"role": "user", "content": []}, {"role": "assistant", "content": "Two."}]}
    shown = [{"type": "image", "path": "picture.png"}, {"type": "video", "path": "short.mp4", "start": 0.5}]
    mixed["messages"][0]["content"] = [*shown, {"type": "text", "text": "How many?"}]
    pack(make_rows(media, [*records, *records, mixed]), media / "packed", PackSettings.of(processor.video_processor))
    rows = load_rows([media / "packed"])
    for name in ("short.mp4", "long.mp4", "picture.png"):
        (media / name).unlink()
    assert cache.fill([rows], num_workers=2) == (4, 0)
    assert cache.fill([rows]) == (0, 0)

    plain, kept = ValleyDataCollator(processor), ValleyDataCollator(processor)
    kept.features = cache
    for index in range(len(rows)):
        batch, expected = kept([rows[index]]), plain([rows[index]])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["labels"], expected["labels"])
        with torch.no_grad():
            logits = [cache.model(**{n: t for n, t in b.items() if n != "labels"}) for b in (batch, expected)]
        torch.testing.assert_close(logits[0].last_hidden_state, logits[1].last_hidden_state)


def test_a_packed_picture_that_is_damaged_is_a_bad_sample(cache, processor, media, records):
    pack(make_rows(media, records), media / "packed", PackSettings.of(processor.video_processor))
    (row, *_) = load_rows([media / "packed"]).to_list()
    row["clips"][0]["frames"][0] = b"no picture"
    assert cache.fill([[row]]) == (0, 1)
    collator = ValleyDataCollator(processor)
    collator.features = cache
    with pytest.raises(BadSampleError, match="its packed picture is damaged"):
        collator([row])


@pytest.mark.parametrize(
    "source",
    [
        "https://example.com/clip.mp4",
        "http://example.com/picture.png",
        "hf://datasets/someone/clips/a.mp4",
        "zip://clips::a.mp4",
        "s3://clips/a.mp4",
        "file:///clips/a.mp4",
    ],
)
def test_addresses_are_refused(source, cache, media):
    rows = make_rows(media, [record("a", source)])
    with pytest.raises(ValueError, match=f"Row 'a' of 'rows' shows '{source}', and features are kept of files only"):
        cache.fill([rows])


def test_what_cannot_be_kept_is_refused(model, processor, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="The vision tower is trained"):
        FeatureCache(tmp_path, model.model, processor)
    set_trainable(model, ["lm_head"])
    with monkeypatch.context() as patched:
        patched.setattr(features, "is_deepspeed_zero3_enabled", lambda: True)
        with pytest.raises(ValueError, match="ZeRO-3 spreads the vision tower.*zero2.yaml"):
            FeatureCache(tmp_path, model.model, processor)
    processor.video_processor.crop_size = {"height": 56, "width": 28}
    with pytest.raises(ValueError, match=r"own size, \(28, 28\), and ValleyVideoProcessor gives \(56, 28\)"):
        FeatureCache(tmp_path, model.model, processor)
