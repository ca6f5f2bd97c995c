# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The temporal ablation: its clips mean what its questions say, and it runs."""

import json
from collections import Counter

import ablate_temporal as ablation
import numpy as np
import pytest


CLIPS = [ablation.random_clip("check", i) for i in range(800)]


def truth(clip) -> str:
    lamps = {lamp.colour: lamp for lamp in clip.lamps}
    first, second = (lamps.get(colour) for colour in (clip.question[1], clip.question[2]))
    if clip.kind == "presence":
        return "yes" if first else "no"
    if clip.kind == "simultaneity":
        return "yes" if max(first.start, second.start) < min(first.end, second.end) else "no"
    if clip.kind == "order":
        return min(first, second, key=lambda lamp: lamp.start).colour
    return max(first, second, key=lambda lamp: lamp.end - lamp.start).colour


def test_answers_are_true():
    assert [clip.answer for clip in CLIPS] == [truth(clip) for clip in CLIPS]


def test_neither_words_nor_their_order_tell_the_answer():
    for kind in ablation.KINDS:
        clips = [clip for clip in CLIPS if clip.kind == kind]
        if kind in ("presence", "simultaneity"):
            share = Counter(clip.answer for clip in clips)["yes"] / len(clips)
        else:
            share = sum(clip.answer == clip.question[1] for clip in clips) / len(clips)
        assert 0.4 < share < 0.6, kind


def test_order_and_simultaneity_do_not_follow_from_how_long_lamps_are_on():
    for kind in ("order", "simultaneity"):
        lengths = [
            (lamp.end - lamp.start, clip.answer in ("yes", lamp.colour))
            for clip in CLIPS
            if clip.kind == kind
            for lamp in clip.lamps[:2]
        ]
        means = [np.mean([length for length, is_answer in lengths if is_answer == which]) for which in (True, False)]
        assert abs(means[0] - means[1]) < 0.7, kind


def test_clip_is_drawn_as_it_is_told():
    clip = CLIPS[1]
    frames = ablation.draw(clip, ablation.moments(32))
    lamp = clip.lamps[0]
    y, x = 8 * (lamp.cell // 4) + 4, 8 * (lamp.cell % 4) + 4
    lit = [bool(np.allclose(frame[:, y, x] * 255, ablation.COLOURS[lamp.colour], atol=1)) for frame in frames]
    assert lit == [lamp.start <= moment < lamp.end for moment in range(32)]


@pytest.mark.slow
def test_fast_ablation_runs_to_its_picture(tmp_path):
    results = ablation.main(tmp_path, ablation.FAST)
    assert len(results) == 3 * 2 * 3 * 5 * 40
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
