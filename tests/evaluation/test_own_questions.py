# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Questions of one's own, in every form that a record may have."""

import json

import pytest
from evaluating import empty_clips, write_jsonl

from transformers_valley.evaluation.benchmark import visuals_in
from transformers_valley.evaluation.benchmarks import load_benchmark
from transformers_valley.evaluation.own_questions import read_questions


def read(tmp_path, *rows, name="held_out.jsonl"):
    return list(read_questions(write_jsonl(tmp_path / name, rows), tmp_path / "clips"))


def test_question_about_a_clip(tmp_path):
    row = {"video": "a.mp4", "question": "Who?", "answer": "a dog", "type": "who", "start": 1, "end": 2.5}
    (sample,) = read(tmp_path, row)
    block, text = sample.messages[0]["content"]
    assert block == {"type": "video", "path": str(tmp_path / "clips/a.mp4"), "start": 1.0, "end": 2.5}
    assert text == {"type": "text", "text": "Who?"} and sample.question == "Who?"
    assert (sample.id, sample.source, sample.type, sample.answers) == ("held_out:0", "held_out", "who", ("a dog",))


def test_several_answers_an_image_an_id_and_a_source(tmp_path):
    row = {"id": 7, "image": "a.png", "question": "Who?", "answer": ["dog", 2], "source": "zoo"}
    (sample,) = read(tmp_path, row)
    assert (sample.id, sample.source, sample.answers) == ("7", "zoo", ("dog", "2"))
    assert sample.messages[0]["content"][0]["type"] == "image"


@pytest.mark.parametrize("answer", ["red", "B", "B. red", 1, "1"])
def test_choice_is_given_by_text_letter_or_number(tmp_path, answer):
    (sample,) = read(tmp_path, {"video": "a.mp4", "question": "Which?", "choices": ["blue", "red"], "answer": answer})
    assert sample.answers == ("B",) and sample.choices == {"A": "blue", "B": "red"}
    assert sample.question == "Which?\nA. blue\nB. red"  # as in training


def test_choices_may_have_letters_of_their_own(tmp_path):
    (sample,) = read(
        tmp_path, {"video": "a.mp4", "question": "?", "choices": {"X": "no", "Y": "yes"}, "answer": "yes"}
    )
    assert sample.answers == ("Y",)


def test_number_that_is_a_choice_is_no_position(tmp_path):
    (sample,) = read(tmp_path, {"video": "a.mp4", "question": "?", "choices": ["1", "0", "2"], "answer": "1"})
    assert sample.answers == ("A",)


def test_csv(tmp_path):
    text = 'video,question,answer,choices\na.mp4,"Who, then?",dog,\nb.mp4,Which?,1,"[""blue"", ""red""]"\n'
    text += 'c.mp4,Which?,x|y,"[""x|y"", ""z""]"\n'
    (tmp_path / "q.csv").write_text(text)
    first, second, third = read_questions(tmp_path / "q.csv", tmp_path)
    assert (first.question, first.answers, first.choices) == ("Who, then?", ("dog",), {})
    assert second.answers == ("B",) and third.answers == ("A",)


def test_json_list(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"video": "a.mp4", "question": "Who?", "answer": "dog"}]))
    assert len(list(read_questions(tmp_path / "q.json", tmp_path))) == 1


def test_clips_begin_in_the_folder_of_their_own_file(tmp_path):
    row = {"video": "0.mp4", "question": "Who?", "answer": "a dog"}
    files = []
    for name in "ab":
        empty_clips(tmp_path / name, "0.mp4")
        files.append(write_jsonl(tmp_path / name / f"{name}.jsonl", [row]))
    found = load_benchmark("own", files).samples
    assert [visuals_in(s.messages)[0]["path"] for s in found] == [str(tmp_path / name / "0.mp4") for name in "ab"]
    found = load_benchmark("own", files, media_root=tmp_path / "b").samples
    assert {visuals_in(s.messages)[0]["path"] for s in found} == {str(tmp_path / "b/0.mp4")}


def test_addresses_are_left_alone(tmp_path):
    (sample,) = read(tmp_path, {"video": "https://host/a.mp4", "question": "Who?", "answer": "dog"})
    assert sample.messages[0]["content"][0]["path"] == "https://host/a.mp4"


def test_each_turn_of_a_training_row_is_asked_after_those_before_it(tmp_path):
    turns = [("Who?", "A dog."), ("What does it do?", "It runs.")]
    messages = [{"role": "system", "content": "Be brief."}]
    for i, (question, answer) in enumerate(turns):
        clip = [{"type": "video", "path": "a.mp4"}] if i == 0 else []
        messages.append({"role": "user", "content": [*clip, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    first, second = read(tmp_path, {"messages": messages, "images": [], "id": "row", "type": "talk"})
    assert (first.id, first.answers, len(first.messages)) == ("row#2", ("A dog.",), 2)
    assert (second.id, second.answers, len(second.messages)) == ("row#4", ("It runs.",), 4)
    assert second.messages[2]["content"][0]["text"] == "A dog." and second.question == "What does it do?"
    assert first.messages[0]["role"] == "system" and second.type == "talk"


def test_record_of_2023_and_its_image(tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]
    (sample,) = read(tmp_path, {"image": "bus.jpg", "conversations": talk, "id": "1"})
    assert sample.messages[0]["content"][0] == {"type": "image", "path": str(tmp_path / "clips/bus.jpg")}
    assert (sample.id, sample.question, sample.answers) == ("1", "What is it?", ("A bus.",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a.mp4", "question": "Who?"}, "needs an `answer`, found"),
        ({"video_path": "a", "question": "Who?", "answer": "dog"}, "video_path"),
        ({"video": "a", "question": "Who?", "answer": "dog", "frames": 8}, "frames"),
        (
            {"video": "a", "question": "?", "answer": "green", "choices": ["red", "blue"]},
            "'green' is 0 of its choices",
        ),
        ({"something": 1}, "is not a training row"),
        ([1], "expected an object"),
    ],
)
def test_bad_record_is_an_error_that_names_file_place_and_reason(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"held_out.jsonl, record 1: .*{message}"):
        read(tmp_path, {"video": "a.mp4", "question": "Who?", "answer": "dog"}, row)


def test_half_a_file_is_an_error(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"video": "a.mp4", "question": "Who?", "answer": "dog"}\n{"video": "b.mp')
    with pytest.raises(ValueError, match="line 2 is not JSON: it ends too early"):
        list(read_questions(tmp_path / "q.jsonl", tmp_path))
    (tmp_path / "q.json").write_text('[{"video": "a.mp4"')
    with pytest.raises(ValueError, match="is not JSON: .*it ends too early"):
        list(read_questions(tmp_path / "q.json", tmp_path))
