# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Answers to verdicts: by a real HTTP server that stalls, repeats, refuses and talks nonsense, and by a model."""

import json

import pytest
from evaluating import kill_when, lines_in, record, tiny_bert, write_run
from openai_server import Answer, openai_server, said
from tiny import tiny_judge
from transformers import AutoModelForCausalLM

from transformers_valley.endpoint import EndpointError
from transformers_valley.evaluation.bertscore import BertScorer
from transformers_valley.evaluation.judge import (
    ATTEMPTS,
    EndpointJudge,
    LocalJudge,
    check_agreement,
    judge,
    read_prompts,
    read_verdict,
    read_verdicts,
)
from transformers_valley.evaluation.records import read_json
from transformers_valley.evaluation.run import load_run


YES, NO = "{'pred': 'yes', 'score': 4.8}", "{'pred': 'no', 'score': 1}"


def answers(count):
    return [record(f"q:{i}", answer=f"answer {i}", question=f"Question {i}?") for i in range(count)]


def number(request) -> int:
    """Of the answer that a request is about."""
    text = next(m["content"] for m in request["messages"] if "Predicted Answer" in m["content"])
    return int(text.split("Predicted Answer: answer ")[1].split("\n")[0])


# --- What a reply says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "aspect", "expected"),
    [
        (YES, "qa", {"pred": "yes", "score": 4.8}),
        ('{"pred": "no", "score": 0}', "qa", {"pred": "no", "score": 0.0}),
        ("Sure! {'pred': 'yes',\n 'score': '3'} I hope this helps.", "qa", {"pred": "yes", "score": 3.0}),
        ("```python\n{'score': 2}\n```", "detail", {"score": 2.0}),
        ("{''score': 4.8}", "detail", {"score": 4.8}),
        ("{'score': 6}", "detail", None),
        ("{'score': True}", "detail", None),
        ("{'score': 3}", "qa", None),
        ("{'pred': 'yes'}", "qa", None),
        ("yes, 4", "qa", None),
        ("{'score': __import__('os')}", "detail", None),
        ("{'score': 3}" + " " * 20_000, "detail", None),
        ("{" * 5_000 + "}", "detail", None),
        ('{"maximum probability": "(b)"}', "choice", {"choice": "B"}),
        ('{"maximum probability": "Z"}', "choice", None),
    ],
)
def test_reply_is_read_or_not(reply, aspect, expected):
    assert read_verdict(reply, aspect, {"A": "red", "B": "blue"}) == expected


def test_prompts_are_those_of_the_protocol():
    """Lengths and marks of the published strings; their slips are kept, and gone from the corrected ones."""
    aspects = read_prompts("video_chatgpt")
    assert list(aspects) == ["qa", "correctness", "detail", "context", "temporal", "consistency"]
    system, user = (message["content"] for message in aspects["qa"]["protocol"])
    assert "task:------##INSTRUCTIONS: - Focus" in system and "is  a string" in user and "STRING.DO NOT" in user
    assert user.endswith("{'pred': 'yes', 'score': 4.8}.")
    for name, aspect in aspects.items():
        if name != "qa":
            assert aspect["protocol"][1]["content"].endswith("{''score': 4.8}.")
            assert "''" not in aspect["corrected"][1]["content"]


# --- A server ------------------------------------------------------------------------------------------------------


def test_request_is_the_published_one_with_the_answer_filled_in(tmp_path):
    odd = record("q:0", answer="{question} is 'it'", answers=("a {pred}",))
    with openai_server(lambda *_: YES, models=("m",)) as server:
        folder = judge(write_run(tmp_path, [odd]), EndpointJudge(server.url))
    (request,) = server.requests
    system, user = request["messages"]
    assert system == read_prompts("video_chatgpt")["qa"]["protocol"][0] and request["temperature"] == 0
    filled = "Question: What is it?\nCorrect Answer: a {pred}\nPredicted Answer: {question} is 'it'\n\n"
    assert filled in user["content"]
    settings = read_json(folder / "judge.json")
    assert settings["judge"]["model"] == "m" and settings["prompts"] == "protocol" and settings["created"]
    (verdict,) = read_verdicts(folder).values()
    assert verdict["replies"] == [YES] and (verdict["pred"], verdict["score"]) == ("yes", 4.8) and verdict["time"]


def test_judge_that_fails_in_every_way_is_asked_again_and_nothing_is_scored_wrong(tmp_path):
    """Of 12 answers: one reply is nonsense once, one always; some requests meet 429 and 500 first."""

    def respond(request, count):
        if count % 5 == 3:
            return Answer(status=429, headers={"Retry-After": "0.01"}, body="{}")
        if count % 7 == 5:
            return Answer(status=500, body="oops")
        i = number(request)
        if i == 2 and len(request["messages"]) == 2:
            return "I am not sure, maybe?"
        if i == 7:
            return "yes yes yes " * 50
        return Answer(YES if i % 2 else NO, delay=0.05 if i == 3 else 0)

    with openai_server(respond) as server:
        folder = judge(write_run(tmp_path, answers(12)), EndpointJudge(server.url))
    verdicts = {name: verdict for (_, name, _), verdict in read_verdicts(folder).items()}
    assert len(verdicts) == 12
    assert {name for name, v in verdicts.items() if v["unjudged"]} == {"q:7"}
    assert verdicts["q:7"]["unjudged"] == f"no verdict in {ATTEMPTS} replies" and len(verdicts["q:7"]["replies"]) == 3
    assert verdicts["q:2"]["replies"] == ["I am not sure, maybe?", NO]
    run = load_run(tmp_path)
    accuracy = run.columns["judge: right"]
    assert accuracy.count == 11 and run.unjudged() == 1


def test_second_request_shows_what_was_said(tmp_path):
    with openai_server(lambda request, _: YES if len(request["messages"]) > 2 else "hm") as server:
        judge(write_run(tmp_path, answers(1)), EndpointJudge(server.url))
    again = server.requests[1]["messages"]
    assert again[2] == {"role": "assistant", "content": "hm"} and "could not be read" in again[3]["content"]


def test_what_nobody_replied_to_is_judged_again_and_what_cannot_be_read_only_when_asked(tmp_path):
    run = write_run(tmp_path, answers(4))
    replies = {1: Answer(status=400, body="{}"), 2: "hm"}
    with openai_server(lambda r, _: replies.get(number(r), YES)) as server:
        folder = judge(run, EndpointJudge(server.url))
    verdicts = read_verdicts(folder)
    assert "400" in verdicts["clip", "q:1", "qa"]["unjudged"]
    assert verdicts["clip", "q:2", "qa"]["unjudged"] == "no verdict in 3 replies"
    with openai_server(lambda *_: NO) as server:
        judge(run, EndpointJudge(server.url))
        assert [number(request) for request in server.requests] == [1]
    assert read_verdicts(folder)["clip", "q:1", "qa"]["pred"] == "no"
    (folder / "replies.sqlite").unlink()
    with openai_server(lambda *_: NO) as server:
        judge(run, EndpointJudge(server.url), retry=True)
        assert [number(request) for request in server.requests] == [2]


def test_killed_judging_pays_little_twice_and_ends_alike(tmp_path):
    run = write_run(tmp_path, answers(60))
    with openai_server(lambda r, _: Answer(YES if number(r) % 3 else NO, delay=0.02)) as server:

        def work():
            judge(run, EndpointJudge(server.url, concurrency=4))

        kill_when(work, lambda: len(server.requests) >= 20)
        folder = judge(run, EndpointJudge(server.url, concurrency=4))
    assert 60 <= len(server.requests) <= 60 + 4 and lines_in(folder, "verdicts.jsonl") == 60
    said_yes = [verdict["pred"] == "yes" for verdict in read_verdicts(folder).values()]
    assert said_yes == [bool(i % 3) for i in range(60)]


def test_judges_have_folders_of_their_own_and_settings_that_hold(tmp_path):
    run = write_run(tmp_path, answers(2))
    with openai_server(lambda *_: YES, models=("one", "two")) as server:
        first = judge(run, EndpointJudge(server.url, "one"))
        second = judge(run, EndpointJudge(server.url, "two"))
        corrected = judge(run, EndpointJudge(server.url, "one"), prompts="corrected")
        assert [f.name for f in (first, second, corrected)] == ["judge-one", "judge-two", "judge-one-corrected"]
        with pytest.raises(ValueError, match=r"judge.temperature was 0.0, now 0.7"):
            judge(run, EndpointJudge(server.url, "one", temperature=0.7))
    with pytest.raises(ValueError, match="judged by one, one-corrected, two: their numbers share no table"):
        load_run(run)
    with pytest.raises(FileNotFoundError, match="not judged by 'three'; judges there: one"):
        load_run(run, "three")


def test_judge_that_is_not_there_and_key_that_is_wrong(tmp_path):
    run = write_run(tmp_path, answers(2))
    with openai_server(lambda *_: Answer(status=401, body='{"error": {"message": "Incorrect API key"}}')) as server:
        with pytest.raises(EndpointError, match="Incorrect API key"):
            judge(run, EndpointJudge(server.url, "m"))
    with pytest.raises(EndpointError, match="cannot be reached"):
        EndpointJudge(server.url)
    with pytest.raises(FileNotFoundError, match="The judge 'no/such' cannot be loaded"):
        LocalJudge("no/such")
    assert not any("verdicts.jsonl" in str(path) and path.stat().st_size for path in run.rglob("*"))


# --- Several answers, several aspects ------------------------------------------------------------------------------


def test_consistency_is_judged_with_both_answers(tmp_path):
    pair = {"type": "consistency", "answers": ("It runs.",)}
    facts = {"second": "consistency/0/2"}
    first = record("consistency/0/1", question="Does it run?", answer="yes it does", facts=facts)
    second = record("consistency/0/2", question="Is it running?", answer="it is")
    generic = record("generic/0", type="generic", answer="long")
    lonely = record("consistency/1/1", facts={"second": "consistency/1/2"}, answer="alone", **pair)
    lost = record("consistency/1/2", **pair, answer=None)
    records = [first | pair, second | pair, generic, lonely, lost]
    records = [{**each, "answers": list(each["answers"])} for each in records]
    with openai_server(lambda *_: "{'score': 4}") as server:
        folder = judge(write_run(tmp_path, records, "video_chatgpt"), EndpointJudge(server.url))
    aspects = [(name, aspect) for _, name, aspect in read_verdicts(folder)]
    assert sorted(aspects) == [
        ("consistency/0/1", "consistency"),
        *(("generic/0", aspect) for aspect in ("context", "correctness", "detail")),
    ]
    assert load_run(tmp_path).unjudged() == 0  # of the lonely one the other was not answered, which is told
    (asked,) = [said(r) for r in server.requests if "Question 1" in said(r)]
    assert "Question 1: Does it run?\nQuestion 2: Is it running?\nCorrect Answer: It runs." in asked
    assert "Predicted Answer to Question 1: yes it does\nPredicted Answer to Question 2: it is\n" in asked


def test_video_bench_is_asked_as_its_script_asks(tmp_path):
    told = record("MOT/1", answer="it's red", question="Which? A.red B.blue", choices={"A": "red", "B": "blue"})
    told |= {"answers": ["A"], "source": "MOT"}
    with openai_server(lambda *_: '{"maximum probability": "A"}') as server:
        judge(write_run(tmp_path, [told], "video_bench"), EndpointJudge(server.url))
    content = server.requests[0]["messages"][1]["content"]
    expected = str({"target sequcene": "it's red", "question": "Which? A.red B.blue"})
    assert server.requests[0]["messages"][1]["role"] == "assistant" and content.endswith(expected)


def test_benchmark_says_which_judge_it_takes(tmp_path):
    with pytest.raises(ValueError, match="ScienceQA needs no judge"):
        judge(write_run(tmp_path / "a", answers(1), "science_qa"), LocalJudge(tiny_judge(tmp_path / "judge", YES)))
    with pytest.raises(ValueError, match="MemeCap is judged by BERTScore, not by a LocalJudge"):
        judge(write_run(tmp_path / "b", answers(1), "meme_cap"), LocalJudge(str(tmp_path / "judge")))


# --- On this machine -----------------------------------------------------------------------------------------------


def test_local_judge_by_batches_and_alone(tmp_path):
    by = LocalJudge(tiny_judge(tmp_path / "judge", "{'pred':'yes','score':3}"), batch_size=2)
    folder = judge(write_run(tmp_path / "run", answers(3)), by)
    assert [(v["pred"], v["score"]) for v in read_verdicts(folder).values()] == [("yes", 3.0)] * 3
    assert read_json(folder / "judge.json")["judge"]["kind"] == "local"


def test_local_judges_of_one_name_are_told_apart_by_their_weights(tmp_path):
    run = write_run(tmp_path / "run", answers(1))
    judge(run, LocalJudge(tiny_judge(tmp_path / "first/judge", "{'pred':'yes','score':3}")))
    other = tiny_judge(tmp_path / "second/judge", "{'pred':'no','score':3}")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.lm_head.weight.data *= 2
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="holds another run: judge.weights was .*, now "):
        judge(run, LocalJudge(other))


def test_bertscore_is_a_judge_and_says_what_scored(tmp_path):
    run = write_run(tmp_path / "run", [record("m1", "a dog"), record("m2", "")], "meme_cap")
    folder = judge(run, BertScorer(tiny_bert(tmp_path), layer=2))
    scores = [verdict["score"] for verdict in read_verdicts(folder).values()]
    assert scores == [pytest.approx(1, abs=1e-5), 0.0]
    assert "layer 2, no idf, not rescaled" in load_run(run).describe_judge()


# --- Agreement -----------------------------------------------------------------------------------------------------


def test_agreement_of_two_judges(tmp_path):
    """Of 40 answers they differ on 10, by one point: kappa is 0.5 by hand, both saying yes to half."""
    run = write_run(tmp_path, answers(40))

    def second(request, _):
        i = number(request)
        yes = (i % 2 == 0) if i < 30 else (i % 2 == 1)
        return json.dumps({"pred": "yes" if yes else "no", "score": 4 if yes else 1})

    with openai_server(lambda r, _: YES if number(r) % 2 == 0 else NO, models=("one",)) as a:
        with openai_server(second, models=("two",)) as b:
            found = check_agreement(run, EndpointJudge(a.url), EndpointJudge(b.url))
            assert found["answers"] == 40 and found["same"] == 0.75 and found["kappa"] == pytest.approx(0.5)
            assert read_json(run / "judge-two/agreement.json") == found
            with pytest.raises(ValueError, match="needs two"):
                check_agreement(run, EndpointJudge(a.url), EndpointJudge(a.url))


def test_agreement_takes_the_same_answers_whatever_their_order(tmp_path):
    asked = []
    for order in (1, -1):
        run = write_run(tmp_path / str(order), answers(30)[::order])
        with openai_server(lambda *_: YES, models=("one",)) as a, openai_server(lambda *_: NO, models=("two",)) as b:
            check_agreement(run, EndpointJudge(a.url), EndpointJudge(b.url), count=5)
            asked.append(sorted(map(number, a.requests)))
    assert asked[0] == asked[1] and len(asked[0]) == 5
