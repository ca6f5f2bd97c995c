# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Measures of answers and numbers of benchmarks, by hand and against published ones."""

import json

import pytest
from evaluating import FILES, record

from transformers_valley.evaluation.scores import (
    measure,
    measure_verdict,
    scienceqa_accuracy,
    video_bench_scores,
    video_qa_scores,
)


CHOICES = {"A": "blue", "B": "red"}
# Right over all, as the authors' own scripts count them; README of the files these are a part of.
PUBLISHED = {
    "gpt3": "38/47 20/26 21/27 35/43 38/51 25/32 52/64 27/36 79/100",
    "llava": "40/47 25/26 25/27 36/43 43/51 30/32 55/64 35/36 90/100",
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_scienceqa_is_scored_as_published(model):
    problems = json.loads((FILES / "science_qa/problems.json").read_text())
    results = json.loads((FILES / "science_qa/published.json").read_text())[model]
    found = scienceqa_accuracy(list(results.values()), [problems[pid] for pid in results])
    names = "NAT SOC LAN TXT IMG NO G1-6 G7-12 Average".split()
    for name, share in zip(names, PUBLISHED[model].split(), strict=True):
        right, of = map(int, share.split("/"))
        assert found[name] == pytest.approx(100 * right / of), name


def test_scienceqa_counts_no_choice_as_wrong():
    problem = {"answer": 1, "subject": "social science", "grade": "grade12", "hint": "", "image": None}
    found = scienceqa_accuracy([1, -1], [problem, problem])
    assert found == {"SOC": 50, "NO": 50, "G7-12": 50, "Average": 50}


def test_video_bench_weighs_as_its_scripts():
    sets = "ActivityNet MSVD MSRVTT TGIF Youcook2 Ucfcrime MOT TVQA MV NBA".split()
    sets += ["Driving-exam", "Driving-decision-making", "SQA3D"]
    right = dict.fromkeys(["ActivityNet", "MOT", "TVQA", "SQA3D", "Driving-exam"], 1)
    rows = [(name, "A" if name in right else "B") for name in sets] + [("ActivityNet", "B")]
    found = video_bench_scores([letter for _, letter in rows], ["A"] * len(rows), [name for name, _ in rows])
    exclusive, prior, decision = 100 * (0.5 + 0.5) / 6.5, 100 / 3, 100 * (0.5 + 1) / 2.5
    assert found["Video-Exclusive"] == pytest.approx(exclusive) and found["Prior-Knowledge"] == pytest.approx(prior)
    assert found["Decision-Making"] == pytest.approx(decision)
    assert found["All"] == pytest.approx((exclusive + prior + decision) / 3)


def test_paper_agrees_that_all_is_the_plain_mean_of_the_groups():
    """Table 3: 40.4, 35.8, 47.7 and 41.3."""
    assert round((40.4 + 35.8 + 47.7) / 3, 1) == 41.3


def test_video_bench_group_that_lacks_a_data_set_is_left_out():
    assert video_bench_scores(["A"], ["A"], ["MOT"]) == {}


def test_judge_is_scored_by_the_protocol_and_strictly():
    verdicts = [
        {"pred": "yes", "score": 4.8},  # the prompt's own example
        {"pred": "Yes.", "score": 5},
        {"pred": "no", "score": 0},
        {"pred": "unknown", "score": 2},  # "no" is in it
        {"pred": "maybe", "score": 3},  # out of the accuracy, but not of the score
    ]
    found = video_qa_scores(verdicts)
    assert found["accuracy"] == pytest.approx(100 * 2 / 4)
    assert found["score"] == pytest.approx((4 + 5 + 0 + 2 + 3) / 5)
    assert found["accuracy_strict"] == pytest.approx(100 * 1 / 2)
    assert found["score_not_truncated"] == pytest.approx((4.8 + 5 + 0 + 2 + 3) / 5)


def test_words_alone_are_measured_without_a_judge():
    assert measure(record(answer="A dog.")) == {"empty": 0, "exact": 1, "contains": 1, "correct": 1}
    assert measure(record(answer="It is a dog."))["correct"] == 0


def test_choice_is_measured_by_its_letter():
    found = measure(record(answer="It is red.", answers=["B"], choices=CHOICES))
    assert found == {"empty": 0, "choice": 1, "unparsed": 0, "correct": 1}
    assert measure(record(answer="green", answers=["B"], choices=CHOICES))["unparsed"] == 1


def test_what_was_not_answered_has_no_measure_and_is_not_wrong():
    assert measure(record(answer=None)) == {}


def test_answer_without_reference_is_neither_right_nor_wrong():
    assert measure(record(answer="B", answers=[], choices=CHOICES)) == {"empty": 0}


def qa(**verdict):
    return {"aspect": "qa", "unjudged": None, **verdict}


def test_judge_decides_where_it_was_asked():
    found = measure(record(answer="hound"), [qa(pred="yes", score=5)])
    assert (found["exact"], found["yes"], found["correct"], found["score"]) == (0, 1, 1, 5)


def test_unjudged_answer_is_not_wrong():
    found = measure(record(answer="hound"), [qa(unjudged="no verdict in 3 replies")])
    assert "correct" not in found and "score" not in found and found["exact"] == 0


def test_judged_choice_decides_over_the_own_letter():
    verdict = {"aspect": "choice", "unjudged": None, "choice": "B"}
    found = measure(record(answer="A", answers=["B"], choices=CHOICES), [verdict])
    assert (found["choice"], found["judged_choice"], found["correct"]) == (0, 1, 1)


def test_score_of_several_aspects_is_their_mean():
    verdicts = [
        {"aspect": name, "unjudged": None, "score": score} for name, score in (("detail", 2.9), ("context", 4))
    ]
    found = measure(record(), verdicts)
    assert (found["detail"], found["detail_full"], found["context"], found["score"]) == (2, 2.9, 4, 3)


def test_verdict_on_an_unknown_answer_says_nothing():
    assert measure_verdict({"aspect": "choice", "unjudged": None, "choice": "A"}, []) == {}
