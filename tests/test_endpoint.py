# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Many requests to a server that stalls, refuses and fails: each is answered or says why not, and is paid once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
from openai_server import Answer, openai_server, said


pytest.importorskip("openai")

from transformers_valley.endpoint import Endpoint, EndpointError, _seconds, request_key  # noqa: E402


def requests(*texts: str) -> list[dict]:
    return [{"messages": [{"role": "user", "content": text}], "temperature": 0} for text in texts]


def numbered(count: int) -> list[dict]:
    return requests(*map(str, range(count)))


def echo(request: dict, count: int) -> str:
    return f"answer to {said(request)}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_replies_come_in_the_order_of_the_requests():
    def respond(request, count):
        return Answer(echo(request, count), delay=0.02 * (5 - int(said(request))))

    with openai_server(respond) as server:
        replies = Endpoint("judge", server.url).ask(numbered(5))
    assert [reply.text for reply in replies] == [f"answer to {i}" for i in range(5)]
    assert {reply.model for reply in replies} == {"judge"}


def test_no_more_requests_are_in_flight_than_asked_for():
    with openai_server(lambda *_: Answer("yes", delay=0.05)) as server:
        Endpoint("judge", server.url, concurrency=3).ask(numbered(9))
    assert server.most_in_flight == 3


def test_requests_are_taken_as_they_can_be_sent():
    taken = []

    def endless():
        for request in numbered(6):
            taken.append(len(server.requests))
            yield request

    with openai_server(lambda *_: Answer("yes", delay=0.02)) as server:
        Endpoint("judge", server.url, concurrency=1).ask(endless())
    assert taken == list(range(6))


def test_equal_requests_are_sent_once():
    with openai_server(lambda *_: Answer("yes", delay=0.05)) as server:
        replies = Endpoint("judge", server.url).ask(requests("a", "a", "b", "a"))
    assert len(server.requests) == 2
    assert sorted(reply.is_cached for reply in replies) == [False, False, True, True]


def test_model_is_the_only_one_that_is_served():
    with openai_server(echo) as server:
        assert Endpoint(base_url=server.url).model == "judge"
    with openai_server(echo, models=("a", "b")) as server, pytest.raises(EndpointError, match="serves 2 models"):
        Endpoint(base_url=server.url)


def test_works_where_an_event_loop_runs_already():
    async def notebook():
        return Endpoint("judge", server.url).ask(numbered(2))

    with openai_server(echo) as server:
        assert [reply.text for reply in asyncio.run(notebook())] == ["answer to 0", "answer to 1"]


def test_tokens_and_cost_are_counted_and_what_is_cached_costs_nothing(tmp_path):
    with openai_server(echo) as server:
        for _ in range(2):
            endpoint = Endpoint("judge", server.url, cache=tmp_path / "replies.sqlite", prices=(2.0, 5.0))
            endpoint.ask(numbered(4))
            totals = endpoint.totals
            if totals.cached == 0:
                assert (totals.sent, totals.prompt_tokens, totals.completion_tokens) == (4, 40, 8)
                assert totals.cost == pytest.approx((40 * 2 + 8 * 5) / 1e6)
    assert (totals.sent, totals.cached, totals.cost) == (0, 4, 0)


# --- Failures ------------------------------------------------------------------------------------------------------


def test_failure_is_cached_with_its_reason_and_sent_again_on_request(tmp_path):
    def respond(request, count):
        return Answer(status=400, body='{"error": {"message": "too long"}}') if count == 0 else "yes"

    with openai_server(respond) as server:
        endpoint = Endpoint("judge", server.url, cache=tmp_path / "replies.sqlite")
        for retry, expected in ((False, "too long"), (False, "too long"), (True, None)):
            (reply,) = endpoint.ask(numbered(1), retry_failed=retry)
            assert (reply.error is None) if expected is None else (expected in reply.error)
    assert reply.text == "yes" and len(server.requests) == 2


@pytest.mark.parametrize("status", [500, 503, 408])
def test_server_error_is_tried_again(status):
    with openai_server(lambda r, count: Answer(status=status, body="{}") if count == 0 else "yes") as server:
        assert Endpoint("judge", server.url).ask(numbered(1))[0].text == "yes"


def test_stall_is_tried_again_and_then_a_failure_that_says_so():
    with openai_server(lambda r, count: Answer("yes", delay=2 if said(r) == "0" else 0)) as server:
        replies = Endpoint("judge", server.url, timeout=0.3, max_retries=1).ask(numbered(2))
    assert replies[0].error == "no answer within 0.3 seconds" and replies[1].text == "yes"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body="<html>Bad gateway</html>", headers={"Content-Type": "text/html"}),
        Answer(body='{"choices": []}'),
        Answer(body="{"),
        Answer(body='{"choices": null}'),
    ],
)
def test_nonsense_is_a_failure_of_its_request(answer):
    with openai_server(lambda r, count: answer if said(r) == "0" else "yes") as server:
        replies = Endpoint("judge", server.url, max_retries=1).ask(numbered(2))
    assert "no chat completion" in replies[0].error and replies[1].text == "yes"


def test_answer_without_text_is_a_failure():
    with openai_server(lambda *_: Answer(None, finish_reason="content_filter")) as server:
        assert "content_filter" in Endpoint("judge", server.url).ask(numbered(1))[0].error


def test_server_that_fails_everything_ends_the_run():
    with openai_server(lambda *_: Answer(status=500, body="{}")) as server:
        with pytest.raises(EndpointError, match="in a row.*HTTP 500"):
            Endpoint("judge", server.url, concurrency=2, max_retries=0).ask(numbered(50))
    assert len(server.requests) < 10


def test_wrong_key_is_one_error_and_is_written_nowhere(tmp_path):
    key = "sk-secret-1234567890"
    body = f'{{"error": {{"message": "Incorrect API key provided: {key}"}}}}'
    with openai_server(lambda *_: Answer(status=401, body=body)) as server:
        with pytest.raises(EndpointError, match="Incorrect API key") as caught:
            Endpoint("judge", server.url, api_key=key, cache=tmp_path / "replies.sqlite").ask(numbered(3))
    assert key not in str(caught.value)
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert server.keys[0] == f"Bearer {key}"


def test_server_that_is_not_there_is_one_error():
    with pytest.raises(EndpointError, match="cannot be reached.*running"):
        Endpoint("judge", f"http://127.0.0.1:{free_port()}/v1", max_retries=1).ask(numbered(3))


def test_cache_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, and longer than its header would be" * 9)
    with pytest.raises(EndpointError, match="not a cache"):
        Endpoint("judge", "http://127.0.0.1:9/v1", cache=tmp_path / "notes.txt")


# --- Pace ----------------------------------------------------------------------------------------------------------


def test_429_pauses_everybody_until_retry_after():
    def respond(request, count):
        return Answer(status=429, body="{}", headers={"Retry-After": "1"}) if count == 3 else Answer("yes", delay=0.02)

    with openai_server(respond) as server:
        replies = Endpoint("judge", server.url, concurrency=4).ask(numbered(20))
    assert all(reply.text == "yes" for reply in replies)
    refused = server.times[3]
    assert not [when for when in server.times if refused + 0.1 < when < refused + 0.95]
    assert len(server.requests) == 21


def test_spent_budget_is_waited_for():
    def respond(request, count):
        headers = {"x-ratelimit-remaining-requests": str(max(0, 2 - count)), "x-ratelimit-reset-requests": "700ms"}
        return Answer("yes", headers=headers if count < 3 else {})

    with openai_server(respond) as server:
        Endpoint("judge", server.url, concurrency=1).ask(numbered(5))
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert gaps[2] > 0.6 and max(gaps[:2] + gaps[3:]) < 0.5


def test_429_for_hours_and_spent_quota_end_the_run():
    with openai_server(lambda *_: Answer(status=429, body="{}", headers={"Retry-After": "7200"})) as server:
        with pytest.raises(EndpointError, match="another 7200 seconds"):
            Endpoint("judge", server.url).ask(numbered(3))
    body = '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    with openai_server(lambda *_: Answer(status=429, body=body)) as server:
        with pytest.raises(EndpointError, match="quota"):
            Endpoint("judge", server.url).ask(numbered(3))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12", 12),
        ("0.5", 0.5),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3s", 3723),
        ("soon", None),
        (None, None),
        ("", None),
    ],
)
def test_waiting_times_are_read(text, seconds):
    assert _seconds(text) == seconds


def test_waiting_time_may_be_a_date():
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


# --- Killed --------------------------------------------------------------------------------------------------------

# The file alone: importing the package would take longer than the run.
KILLED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("endpoint", sys.argv[3])
sys.modules["endpoint"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["endpoint"])
from endpoint import Endpoint
requests = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(60)]
Endpoint("judge", sys.argv[1], cache=sys.argv[2], concurrency=4).ask(requests)
"""


def test_killed_run_pays_again_only_for_what_was_in_flight(tmp_path):
    with openai_server(lambda *_: Answer("yes", delay=0.05)) as server:
        command = [sys.executable, "-c", KILLED, server.url, str(tmp_path / "replies.sqlite")]
        command.append(sys.modules[Endpoint.__module__].__file__)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(server.requests) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert 20 <= len(server.requests) < 60
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        times = Counter(said(request) for request in server.requests)
    assert set(times) == {str(i) for i in range(60)}
    assert sum(times.values()) <= 60 + 4


def test_key_of_a_request_does_not_depend_on_the_order_of_its_fields():
    assert request_key({"a": 1, "b": [2]}) == request_key({"b": [2], "a": 1}) != request_key({"a": 1, "b": [3]})
