# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Every benchmark on its published files, or on rows of the same form where those may not be passed on."""

import json
import shutil

import pytest
from evaluating import FILES, empty_clips, write_json, write_questions

from transformers_valley.evaluation.benchmark import visuals_in
from transformers_valley.evaluation.benchmarks import BENCHMARKS, load_benchmark


def block(sample):
    return visuals_in(sample.messages)[0]["path"]


def all_clips(folder, data):
    """Every clip and image that a benchmark's files name, as empty files."""
    for file in data.glob("*_QA_new.json"):
        for row in json.loads(file.read_text()).values():
            empty_clips(folder, row["vid_path"])
    return folder


def test_a_benchmark_is_a_short_file():
    for name in BENCHMARKS:
        path = FILES.parents[2] / "src/transformers_valley/evaluation/benchmarks" / f"{name}.py"
        assert len(path.read_text().splitlines()) <= 60, name


# --- MSVD-QA, MSRVTT-QA, ActivityNet-QA ------------------------------------------------------------------------------

ROWS = [
    ("clip_1_9", 1, "who runs?", "dog"),
    ("clip_1_9", 1, "who runs?", "cat"),
    ("other_0_5", 2, "what is it?", "bus"),
]


def write_layout(folder, layout, split="test", benchmark="msvd_qa"):
    if layout == "authors":
        rows = [{"answer": a, "id": 40 + i, "question": q, "video_id": n} for i, (_, n, q, a) in enumerate(ROWS)]
        write_json(folder / f"{split}_qa.json", rows)
        (folder / "youtube_mapping.txt").write_text("clip_1_9 vid1\nother_0_5 vid2\n")
    elif layout == "repackaged":
        ids = [f"{clip}_{i}" for i, (clip, *_) in enumerate(ROWS)]
        asked = [{"video_name": c, "question": q, "question_id": n} for n, (c, _, q, _) in zip(ids, ROWS, strict=True)]
        told = [{"answer": a, "question_id": n} for n, (*_, a) in zip(ids, ROWS, strict=True)]
        write_json(folder / f"{split}_q.json", asked)
        write_json(folder / f"{split}_a.json", told[::-1])  # their order says nothing
    else:
        write_json(
            folder / f"{benchmark}.json", [{"question": q, "video_name": c, "answer": a} for c, _, q, a in ROWS]
        )
    return folder


@pytest.mark.parametrize("layout", ["authors", "repackaged", "joined"])
@pytest.mark.parametrize("names", [("clip_1_9.avi", "other_0_5.avi"), ("vid1.avi", "vid2.avi")])
def test_msvd_qa_in_every_layout(tmp_path, layout, names):
    clips = empty_clips(tmp_path / "clips", *names)
    data = write_layout(tmp_path, layout)
    if layout != "authors" and names[0] == "vid1.avi":
        with pytest.raises(FileNotFoundError, match="None of the 2 clips"):
            load_benchmark("msvd_qa", data, clips)
        return
    loaded = load_benchmark("msvd_qa", data, clips)
    assert [(s.question, s.answers) for s in loaded.samples] == [(q, (a,)) for *_, q, a in ROWS]
    assert [block(s) for s in loaded.samples] == [str(clips / name) for name in (names[0], names[0], names[1])]
    assert [s.type for s in loaded.samples] == ["who", "who", "what"] and loaded.split == "test"
    assert loaded.samples[0].source == "MSVD-QA test"


def test_msrvtt_qa_numbers_its_clips(tmp_path):
    clips = empty_clips(tmp_path / "clips", "all/video7010.mp4")
    row = {"answer": "man", "category_id": 14, "id": 158581, "question": "who sings?", "video_id": 7010}
    write_json(tmp_path / "test_qa.json", [row])
    (sample,) = load_benchmark("msrvtt_qa", tmp_path, clips).samples
    assert (sample.id, sample.answers, block(sample)) == ("158581", ("man",), str(clips / "all/video7010.mp4"))


def test_activitynet_qa_as_published(tmp_path):
    clips = empty_clips(tmp_path / "clips", "v_1QIUV7WYKXg.mkv")
    loaded = load_benchmark("activitynet_qa", FILES / "activitynet_qa", clips)
    first = loaded.samples[0]
    assert (first.id, first.question, first.answers) == ("v_1QIUV7WYKXg_3", "is the athlete wearing trousers", ("no",))
    assert first.type == "yes/no" and block(first) == str(clips / "v_1QIUV7WYKXg.mkv")
    assert len(loaded.samples) == 28 and {s.type for s in loaded.samples} == {
        *("motion", "spatial", "temporal", "yes/no", "colour", "object", "location", "number", "other")
    }


def test_activitynet_qa_asks_politely_on_request(tmp_path):
    clips = empty_clips(tmp_path / "clips", "v_1QIUV7WYKXg.mkv")
    loaded = load_benchmark("activitynet_qa", FILES / "activitynet_qa", clips, asks_politely=True)
    asked = "Is the athlete wearing trousers? Answer the question using a single word or phrase."
    assert loaded.samples[0].question == asked and loaded.options == {"asks_politely": True}
    plain = load_benchmark("activitynet_qa", FILES / "activitynet_qa", clips)
    assert plain.describe()["digest"] != loaded.describe()["digest"]


def test_one_question_twice_has_two_ids_and_its_own_answers(tmp_path):
    clips = empty_clips(tmp_path / "clips", "v_1QIUV7WYKXg.mkv")
    samples = load_benchmark("activitynet_qa", FILES / "activitynet_qa", clips).samples
    asked = [(block(s), s.question) for s in samples]
    assert len(set(asked)) < len(asked)


@pytest.mark.parametrize("lost", ["answer", "question"])
def test_half_of_the_answers_or_questions_is_an_error(tmp_path, lost):
    write_layout(tmp_path, "repackaged")
    file = tmp_path / f"test_{lost[0]}.json"
    write_json(file, json.loads(file.read_text())[:2])
    with pytest.raises(ValueError, match=f"have no {'answer' if lost == 'answer' else 'question'}.*truncated"):
        load_benchmark("msvd_qa", tmp_path, empty_clips(tmp_path / "clips", "clip_1_9.avi"))


def test_answers_of_another_benchmark_are_an_error(tmp_path):
    write_layout(tmp_path, "repackaged")
    shutil.copy(FILES / "activitynet_qa/test_a.json", tmp_path)
    with pytest.raises(ValueError, match="3 of 3 questions have no answer.*another benchmark"):
        load_benchmark("msvd_qa", tmp_path, empty_clips(tmp_path / "clips", "clip_1_9.avi"))


def test_ids_that_occur_twice_are_an_error(tmp_path):
    row = {"answer": "man", "id": 1, "question": "who sings?", "video_id": 1}
    write_json(tmp_path / "test_qa.json", [row, row, {**row, "id": 2}])
    with pytest.raises(ValueError, match="several questions have the id '1', and 0 other ids"):
        load_benchmark("msrvtt_qa", tmp_path, empty_clips(tmp_path / "clips", "video1.mp4"))


# --- Video-ChatGPT -------------------------------------------------------------------------------------------------


@pytest.fixture
def video_chatgpt(tmp_path):
    rows = json.loads((FILES / "video_chatgpt/generic_qa.json").read_text())
    clips = empty_clips(tmp_path, *(f"{row['video_name']}.mp4" for row in rows))
    return load_benchmark("video_chatgpt", FILES / "video_chatgpt", clips)


def test_video_chatgpt_asks_for_consistency_twice(video_chatgpt):
    kinds = [s.type for s in video_chatgpt.samples]
    assert (kinds.count("generic"), kinds.count("temporal"), kinds.count("consistency")) == (8, 2, 4)
    first, second = video_chatgpt.samples[-2:]
    assert (
        first.facts == {"second": second.id} and first.answers == second.answers and first.question != second.question
    )


def test_video_chatgpt_is_judged_in_five_aspects(video_chatgpt):
    aspects = video_chatgpt.benchmark.aspects
    asked = [aspects({"type": s.type, "facts": s.facts}) for s in video_chatgpt.samples]
    assert asked[0] == ("correctness", "detail", "context")
    assert asked[-4:] == [("consistency",), (), ("consistency",), ()]


def test_video_chatgpt_question_that_occurs_twice_has_two_ids(video_chatgpt):
    generic = [s for s in video_chatgpt.samples if s.type == "generic"]
    assert len({(block(s), s.question) for s in generic}) < len({s.id for s in generic}) == 8


# --- Video-Bench ---------------------------------------------------------------------------------------------------


@pytest.fixture
def video_bench(tmp_path):
    return load_benchmark("video_bench", FILES / "video_bench", all_clips(tmp_path, FILES / "video_bench"))


def test_video_bench_knows_the_answers_of_mot_alone(video_bench):
    known = [s for s in video_bench.samples if s.answers]
    assert {s.source for s in known} == {"MOT"} and len(known) == 18
    assert len({s.source for s in video_bench.samples}) == 13


def test_video_bench_takes_answers_that_are_given(tmp_path):
    data = tmp_path / "data"
    shutil.copytree(FILES / "video_bench", data)
    key = next(iter(json.loads((data / "NBA_QA_new.json").read_text())))
    write_json(data / "answers.json", {"NBA": {key: "C"}})
    loaded = load_benchmark("video_bench", data, all_clips(tmp_path, data))
    assert [s.answers for s in loaded.samples if s.source == "NBA" and s.answers] == [("C",)]


def test_video_bench_prompt_is_that_of_the_sample_code_to_the_space(video_bench):
    by_count = {len(s.choices): s for s in video_bench.samples}
    assert set(by_count) == {1, 2, 3, 4, 5, 6}
    six = next(s for s in video_bench.samples if s.source == "MOT")
    assert six.question == (
        "How many distinct pedestrians are visible in the video?Choices: A.81 B.37 C.18 D.100 E.126 F.63 \n "
        "Among the six options A, B, C, D, E, F above, the one closest to the correct answer is:"
    )
    four = next(s for s in video_bench.samples if s.source == "Driving-exam" and len(s.choices) == 4)
    assert four.question.endswith(
        " \n Among the four options A, B, C, D above, the one closest to the correct answer is:"
    )
    for count, word in ((2, "two"), (3, "three"), (5, "five")):
        letters = ", ".join("ABCDE"[:count])
        ending = f" \n Among the {word} options {letters} above, the one closest to the correct answer is: "
        assert by_count[count].question.endswith(ending)
        assert " A." in by_count[count].question and "Choices:" not in by_count[count].question


def test_video_bench_reads_what_is_odd(video_bench):
    assert all(isinstance(text, str) for s in video_bench.samples for text in s.choices.values())
    assert all(list(s.choices) == sorted(s.choices) for s in video_bench.samples)
    assert any(len(s.choices) == 1 for s in video_bench.samples)
    assert any(isinstance(s.facts["video_id"], int) for s in video_bench.samples)


# --- ScienceQA, MemeCap --------------------------------------------------------------------------------------------


def science_images(folder):
    problems = json.loads((FILES / "science_qa/problems.json").read_text())
    names = [f"{p['split']}/{pid}/{p['image']}" for pid, p in problems.items() if p["image"]]
    return empty_clips(folder, *names)


def test_science_qa_as_published(tmp_path):
    loaded = load_benchmark("science_qa", FILES / "science_qa", science_images(tmp_path))
    assert len(loaded.samples) == 100
    first = next(s for s in loaded.samples if s.id == "29")
    assert first.question.startswith("Question: What do these two changes have in common?\ncompost rotting\n")
    assert "\nContext: N/A\nOptions: (A) Both are caused by cooling. (B) " in first.question
    assert first.question.endswith("\nAnswer:") and first.answers == ("D",) and not visuals_in(first.messages)
    assert first.facts == {"subject": "natural science", "grade": 4, "has_text": False, "has_image": False}
    assert first.example == "The answer is D."
    shown = next(s for s in loaded.samples if s.facts["has_image"])
    assert block(shown) == str(tmp_path / "test" / shown.id / "image.png")


def test_science_qa_of_another_split(tmp_path):
    loaded = load_benchmark("science_qa", FILES / "science_qa", science_images(tmp_path), split="train")
    assert len(loaded.samples) == 4 and loaded.samples[0].source == "ScienceQA train"
    with pytest.raises(ValueError, match="has no split 'minitest'"):
        load_benchmark("science_qa", FILES / "science_qa", tmp_path, split="minitest")


def test_science_qa_cut_off_is_an_error_unless_wanted(tmp_path):
    data = tmp_path / "data"
    shutil.copytree(FILES / "science_qa", data)
    problems = json.loads((data / "problems.json").read_text())
    write_json(data / "problems.json", dict(list(problems.items())[:40]))
    images = science_images(tmp_path)
    with pytest.raises(ValueError, match="lacks 60 of the 100 questions of test. Is it truncated"):
        load_benchmark("science_qa", data, images)
    assert len(load_benchmark("science_qa", data, images, partial=True).samples) == 40


MEME = {
    "category": "memes",
    "title": "One apple a year",
    "img_fname": "memes_1.png",
    "post_id": "1",
    "img_captions": ["a surprised character"],
    "meme_captions": ["The poster saves.", "No new phone."],
    "metaphors": [{"metaphor": "character", "meaning": "Apple"}, {"metaphor": "year", "meaning": "time"}],
}


def test_meme_cap(tmp_path):
    write_json(tmp_path / "memes-test.json", [MEME])
    images = empty_clips(tmp_path / "images", "a/memes_1.png")
    (sample,) = load_benchmark("meme_cap", tmp_path, images).samples
    assert sample.question == (
        "This is a meme with the title “One apple a year”. The image description is “a surprised character”. "
        "What is the meme poster trying to convey? Answer:"
    )
    assert sample.answers == ("The poster saves.", "No new phone.") and block(sample) == str(images / "a/memes_1.png")
    (told,) = load_benchmark("meme_cap", tmp_path, images, rationale=True).samples
    assert told.question.endswith(
        "convey? Rationale: “character” is a metaphor for “Apple”. “year” is a metaphor for “time”. Answer:"
    )


# --- What can be wrong with any ------------------------------------------------------------------------------------


def test_own_questions_look_for_clips_beside_their_file(tmp_path):
    file = write_questions(tmp_path / "mine", count=4)
    loaded = load_benchmark("own", file)
    assert block(loaded.samples[0]) == str(tmp_path / "mine/0.mp4") and loaded.split == ""
    assert load_benchmark("own", [file], limit=2).describe()["questions"] == 2


def test_unknown_benchmark_and_option(tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'mvbench'; there are own, msvd_qa"):
        load_benchmark("mvbench", tmp_path)
    with pytest.raises(ValueError, match="meme_cap has no option shots; it has rationale"):
        load_benchmark("meme_cap", tmp_path, shots=1)


def test_folder_of_clips_that_is_empty(tmp_path):
    (tmp_path / "clips").mkdir()
    with pytest.raises(
        FileNotFoundError, match="None of the 10 clips and images .*/clips; give another one as media_"
    ):
        load_benchmark("activitynet_qa", FILES / "activitynet_qa", tmp_path / "clips")


def test_clip_that_is_missing_is_told(tmp_path, caplog):
    load_benchmark("activitynet_qa", FILES / "activitynet_qa", empty_clips(tmp_path / "clips", "v_1QIUV7WYKXg.mkv"))
    assert "9 of 10 clips and images are not there" in caplog.text


def test_files_of_another_benchmark(tmp_path):
    write_json(tmp_path / "generic_qa.json", [{"question": "q", "answer": "a"}])
    with pytest.raises(ValueError, match="not laid out as Video-ChatGPT is published.*another benchmark"):
        load_benchmark("video_chatgpt", tmp_path)


def test_file_without_questions(tmp_path):
    write_json(tmp_path / "test_qa.json", [])
    with pytest.raises(ValueError, match="no questions"):
        load_benchmark("msrvtt_qa", tmp_path)
