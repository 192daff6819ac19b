"""The endpoint judge against a server that answers well, badly, late, too much or not at all."""

import asyncio
import json
import logging
import math
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from negtemp_data.errors import JobError, JudgeError
from negtemp_data.jobspec import CRITERIA, EndpointJudgeConfig, build_job
from negtemp_data.judging import CriterionScore, Judgement, Sample
from negtemp_data.judging.endpoint import EndpointJudge
from test_judging import judge_with, make_sample

SECRET = 'sk-Zq9/x<7>&"kept-out-of-sight'
"""Has characters that JSON, HTML and URLs may write in another way."""

PATIENCE_S = 10

A_TEXT = {"text": "Is it good?"}


class Reply(NamedTuple):
    """What the server sends."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


class Asked(NamedTuple):
    """What the server got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float


class Server(ThreadingHTTPServer):
    """Gives its replies in turn, the last of them for ever; a callable makes its reply itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.reset()

    def reset(self) -> None:
        self.replies: list[Reply | Callable[[Handler], Reply | None]] = []
        self.asked: list[Asked] = []
        self.is_over = threading.Event()
        """Ends replies that never end."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are expected."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            replies = self.server.replies
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            self.server.asked.append(Asked(self.path, headers, body, time.monotonic()))
        sent = reply(self) if callable(reply) else reply
        if sent is not None:
            self.send_response(sent.status)
            for name, value in {"content-length": str(len(sent.body)), **sent.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""


@pytest.fixture(scope="module")
def started_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        # First, since the server waits for the connections that judges keep.
        for judge in JUDGES.values():
            judge.close()
        JUDGES.clear()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(started_server: Server) -> Iterator[Server]:
    started_server.reset()
    yield started_server
    started_server.is_over.set()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negtemp_data.judging.endpoint._FIRST_WAIT_S", 0)


JUDGES: dict[str, EndpointJudge] = {}
"""Those of the module so far: each costs 20 ms, which are OpenSSL's."""


def config_of(url: str, changes: Mapping[str, Any]) -> EndpointJudgeConfig:
    config = {
        "kind": "endpoint",
        "url": url,
        "model": "judge-1",
        "criteria": {"coherence": {}},
        "accept_at": 3.0,
        "timeout_s": PATIENCE_S,
        "attempts": 2,
    }
    return EndpointJudgeConfig.model_validate(config | dict(changes))


@contextmanager
def judge_at(url: str, **changes: Any) -> Iterator[EndpointJudge]:
    """A judge of its own."""
    judge = EndpointJudge(config_of(url, changes))
    try:
        yield judge
    finally:
        judge.close()


def judge_once(url: str, sample: Sample | None = None, **changes: Any) -> Judgement:
    config = config_of(url, changes)
    key = config.model_dump_json()
    if key not in JUDGES:
        JUDGES[key] = EndpointJudge(config)
    return judge_with(JUDGES[key], sample or make_sample())


def score_of(server: Server, **changes: Any) -> CriterionScore:
    (score,) = judge_once(server.url, **changes).scores
    return score


def failure(url: str, sample: Sample | None = None, **changes: Any) -> str:
    with pytest.raises(JudgeError) as caught:
        judge_once(url, sample, **changes)
    assert str(caught.value).startswith("criterion 'coherence': ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def say(content: Any, logprobs: Any = None) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return as_json({"object": "chat.completion", "choices": [choice]})


def as_json(answer: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(json.dumps(answer).encode(), status, headers)


def spell(*tokens: str, **likely: float) -> dict[str, Any]:
    """Log-probabilities in OpenAI's form; `likely` has the probabilities, the same everywhere."""
    top = [{"token": token.strip("_"), "logprob": math.log(p)} for token, p in likely.items()]
    return {"content": [{"token": t, "logprob": -0.1, "top_logprobs": top} for t in tokens]}


# --- what it asks


def test_a_request_holds_the_examples_as_turns_and_then_the_question(server: Server) -> None:
    server.replies = [say("4")]
    examples = [
        {"request": "A first.", "answer": "Good.", "rating": 5},
        {"request": "A second.", "answer": "Bad.", "rating": 1},
    ]
    judge_once(server.url + "/", examples=examples)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert "authorization" not in asked.headers
    messages = asked.body.pop("messages")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert [messages[1]["content"], messages[3]["content"]] == ["5", "1"]
    for message, answer in zip(messages[::2], ["Good.", "Bad.", "A fine answer."], strict=True):
        assert f"### Answer\n{answer}\n" in message["content"]
        assert CRITERIA["coherence"] in message["content"]
    assert asked.body == {
        "model": "judge-1",
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_extra_fields_come_beside_ours_or_replace_them_or_take_them_out(server: Server) -> None:
    server.replies = [say("4")]
    extra = {
        "max_tokens": None,
        "max_completion_tokens": 500,
        "top_logprobs": 5,
        "reasoning": {"effort": "low", "budget": None},
    }
    judge_once(server.url, extra_body=extra)
    body = server.asked[0].body
    assert "max_tokens" not in body
    del extra["max_tokens"]
    assert body | extra == body  # a null further in is the server's business


def test_a_query_stays_behind_the_path(server: Server) -> None:
    server.replies = [say("4")]
    judge_once(f"{server.url}/a%2Fb?api-version=3")
    assert server.asked[0].path == "/v1/a%2Fb/chat/completions?api-version=3"


def test_each_criterion_is_a_request_and_the_mean_is_weighted(server: Server) -> None:
    def answer(handler: Handler) -> Reply:
        text = server.asked[-1].body["messages"][0]["content"]
        return say("5" if "Is it short?" in text else "2")

    server.replies = [answer]
    criteria = {"coherence": {"weight": 3.0}, "brevity": {"text": "Is it short?"}}
    judgement = judge_once(server.url, criteria=criteria, concurrency=1, accept_at=2.75)
    assert judgement.scores == (
        CriterionScore("coherence", 2.0, None),
        CriterionScore("brevity", 5.0, None),
    )
    assert judgement.score == pytest.approx((3 * 2 + 5) / 4)
    assert judgement.accepted
    assert judgement.rationale is None


def test_a_completion_of_any_size_and_with_surrogates_is_sent(server: Server) -> None:
    server.replies = [say("4")]
    completion = "\ud800" + "x" * 100_000 + "\udfff\x00\x1b[31m<|im_end|>😀"
    judge_once(server.url, make_sample(completion))
    sent = server.asked[0].body["messages"][0]["content"]
    assert "?" + "x" * 100_000 + "?\x00\x1b[31m<|im_end|>😀" in sent


# --- what it makes of the answer


def test_the_score_is_the_expectation_over_the_labels_and_the_mass_is_told(server: Server) -> None:
    # (0.4·4 + 0.1·4 + 0.2·5) / 0.7 = 3 / 0.7; " 4" and "4" are the same label, 9 is none.
    likely = {"4": 0.4, " 4": 0.1, "5": 0.2, "9": 0.2, "I": 0.05}
    server.replies = [say("4", spell("4", "<|im_end|>", **likely))]
    score = score_of(server)
    assert score.score == pytest.approx(3 / 0.7)
    assert score.mass == pytest.approx(0.3)


def test_probabilities_are_those_of_the_token_that_states_the_rating(server: Server) -> None:
    here, there = spell("4", **{"4": 0.5, "2": 0.5}), spell("Rating", ":", **{"1": 0.001})
    content = there["content"] + spell(" ", **{"5": 0.9})["content"] + here["content"]
    server.replies = [say("Rating: 4", {"content": content})]
    score = score_of(server)
    assert (score.score, score.mass) == pytest.approx((3.0, 0.0))


def test_tokens_of_reasoning_before_the_text_are_passed_over(server: Server) -> None:
    thought = spell("<think>", "Is", " it", " 2", "?", "</think>", **{"4": 0.9})
    content = thought["content"] + spell("2", **{"2": 0.8})["content"]
    server.replies = [say("2", {"content": content})]
    score = score_of(server)
    assert (score.score, score.mass) == pytest.approx((2.0, 0.2))


def test_a_text_without_a_number_is_scored_by_its_first_token(server: Server) -> None:
    server.replies = [say("Fine.", spell("Fine", ".", **{"Fine": 0.9, "4": 0.03, "3": 0.01}))]
    score = score_of(server)
    assert score.score == pytest.approx(3.75)
    assert score.mass == pytest.approx(0.96)


@pytest.mark.parametrize(
    ("tokens", "likely", "expected"),
    [
        (["10"], {"10": 0.5, "1": 0.25}, (7.0, 0.25)),  # (0.5·10 + 0.25·1) / 0.75
        (["7"], {"7": 0.5, "8": 0.3, "10": 0.1}, (6.9 / 0.9, 0.1)),
        # Here the tokenizer splits numbers: 1 stands for 1 and for 10, so only the text counts.
        (["1", "0"], {"1": 0.9, "7": 0.1}, (10.0, None)),
        (["7"], {"7": 0.9, "1": 0.1}, (7.0, None)),
        (["1", "00"], {"100": 0.5, "1": 0.4}, None),
    ],
)
def test_labels_of_several_digits_need_tokens_of_their_own(
    server: Server,
    tokens: list[str],
    likely: dict[str, float],
    expected: tuple[float, float | None] | None,
) -> None:
    server.replies = [say("".join(tokens), spell(*tokens, **likely))]
    if expected is None:
        assert "is no rating: '100'" in failure(server.url, scale=[1, 10])
    else:
        score = score_of(server, scale=[1, 10])
        assert (score.score, score.mass) == pytest.approx(expected)


def test_a_token_that_spells_more_than_the_rating_leaves_the_text(server: Server) -> None:
    server.replies = [say("4/5", spell("4/5", **{"4/5": 0.9, "3": 0.1}))]
    assert score_of(server) == CriterionScore("coherence", 4.0, None)


@pytest.mark.parametrize(
    ("content", "score"),
    [
        ("4", 4),
        (" 4.\n", 4),
        ("Rating: **4**", 4),
        ("4.0", 4),
        ("4/5", 4),
        ("4 / 5", 4),
        ("5 out of 5", 5),
        ("I'd say 4 of 5, so 4.", 4),
        ("4.5", None),
        ("4,5", None),
        ("between 3 and 4", None),
        ("3-4", None),
        ("-3", None),
        ("4/10", None),
        ("4 of 54", None),
        ("x" * 1000 + "4", None),
        ("0", None),
        ("6", None),
        ("05", None),
        ("7" * 100_000, None),
        ("1 2 " * 100_000, None),
        ("four", None),
        ("\ud800", None),
        ("", None),
        (None, None),
        ([{"type": "text", "text": "4"}], None),
        (4, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_without_log_probabilities_the_only_number_is_the_score(
    server: Server, content: Any, score: int | None
) -> None:
    server.replies = [say(content)]
    if score is None:
        message = failure(server.url)
        assert "the server's answer is no rating: " in message
        assert len(message) < 300
        message.encode()
        assert len(server.asked) == 1  # the next answer would be the same
    else:
        assert score_of(server) == CriterionScore("coherence", float(score), None)


def one_token(**changes: Any) -> dict[str, Any]:
    entry = {"token": "2", "logprob": -0.1}
    return {"content": [{"token": "2", "logprob": -0.1, "top_logprobs": [entry]} | changes]}


@pytest.mark.parametrize(
    "logprobs",
    [
        [],
        {},
        "none",
        {"content": None},
        {"content": []},
        {"content": {"0": {}}},
        {"content": [None]},
        {"content": [{"token": 2}]},
        one_token(token="3"),
        one_token(top_logprobs=None),
        one_token(top_logprobs=[]),
        one_token(top_logprobs=[None]),
        one_token(top_logprobs=[{"token": "2"}]),
        one_token(top_logprobs=[{"token": 2, "logprob": -0.1}]),
        one_token(top_logprobs=[{"token": "2", "logprob": "-0.1"}]),
        one_token(top_logprobs=[{"token": "2", "logprob": False}]),
        one_token(top_logprobs=[{"token": "2", "logprob": math.nan}]),
        one_token(top_logprobs=[{"token": "2", "logprob": math.inf}]),
        one_token(top_logprobs=[{"token": "2", "logprob": -math.inf}]),
        one_token(top_logprobs=[{"token": "2", "logprob": 0.5}]),
        one_token(top_logprobs=[{"token": "2", "logprob": 10**400}]),
        one_token(top_logprobs=[{"token": "2", "logprob": -(10**400)}]),
        one_token(top_logprobs=[{"token": "2", "logprob": -0.1}] * 2),  # more than certain
    ],
    ids=lambda value: repr(value)[:70],
)
def test_log_probabilities_of_a_wrong_form_leave_the_text(server: Server, logprobs: Any) -> None:
    server.replies = [say("2", logprobs)]
    assert score_of(server) == CriterionScore("coherence", 2.0, None)


def test_rounding_above_certainty_is_certainty(server: Server) -> None:
    server.replies = [say("2", one_token(top_logprobs=[{"token": "2", "logprob": 1e-7}]))]
    assert score_of(server) == CriterionScore("coherence", 2.0, 0.0)


# --- what fails, and what is tried again


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"<html><body>Bad gateway</body></html>",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"7",
        b"[" * 100_000,
        b"9" * 5000,
        b"{}",
        b'{"error": {"message": "overloaded"}}',
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": {"0": 1}}',
        b'{"choices": [null]}',
        b'{"choices": ["4"]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": "4"}]}',
        b'{"choices": [{"text": "4"}]}',
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_answer_that_is_no_chat_completion_is_tried_again(server: Server, body: bytes) -> None:
    server.replies = [Reply(body, headers={"content-type": "application/json; charset=zlib"})]
    message = failure(server.url)
    assert "the server's answer is no chat completion: " in message
    assert message.endswith("(attempt 2 of 2)")
    assert len(message) < 350
    assert len(server.asked) == 2
    server.replies = [Reply(body), say("4")]
    assert score_of(server).score == 4


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_status_that_may_pass_is_tried_again(server: Server, status: int) -> None:
    error = as_json({"error": {"message": "come\nback later"}}, status)
    server.replies = [error, say("4")]
    assert score_of(server).score == 4
    server.replies = [error]
    message = failure(server.url, attempts=3)
    assert f"the server answered {status}: 'come\\nback later' (attempt 3 of 3)" in message
    assert len(server.asked) == 2 + 3


@pytest.mark.parametrize("status", [201, 204, 400, 404, 405, 413, 422])
def test_another_status_fails_at_once(server: Server, status: int) -> None:
    server.replies = [as_json({"message": "no such thing"}, status)]
    if status == 204:  # which has no body
        server.replies = [Reply(b"", status)]
    assert f"the server answered {status}" in failure(server.url)
    assert len(server.asked) == 1


def test_a_wait_that_the_server_asks_for_is_granted_up_to_a_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negtemp_data.judging.endpoint._LONGEST_WAIT_S", 0.3)
    busy = [as_json({}, 429, **{"retry-after": wait}) for wait in ("0.2", "3600", "0", "soon")]
    server.replies = [*busy, as_json({}, 503, **{"retry-after": "nan"}), say("4")]
    assert score_of(server, attempts=6).score == 4
    times = [asked.at_s for asked in server.asked]
    waits = [after - before for before, after in pairwise(times)]
    assert waits[0] >= 0.2
    assert 0.3 <= waits[1] < PATIENCE_S


def test_waits_grow_where_the_server_names_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negtemp_data.judging.endpoint._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    server.replies = [Reply(b"", 500)]
    failure(server.url, attempts=4)
    times = [asked.at_s for asked in server.asked]
    waits = [after - before for before, after in pairwise(times)]
    assert all(wait >= limit for wait, limit in zip(waits, [0.01, 0.02, 0.04], strict=True))


def silence(handler: Handler) -> None:
    handler.server.is_over.wait(PATIENCE_S)


def drip(handler: Handler) -> None:
    """Sends a byte now and then, each of them in time."""
    is_over = handler.server.is_over
    handler.send_response(200)
    handler.end_headers()
    while not is_over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def cut_short(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.close_connection = True


def babble(handler: Handler) -> None:
    handler.wfile.write(b"This is not HTTP.\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("reply", [silence, drip])
def test_an_answer_that_takes_too_long_is_tried_again_and_fails_the_row(
    server: Server, reply: Callable[[Handler], None]
) -> None:
    server.replies = [reply]
    begun = time.monotonic()
    message = failure(server.url, timeout_s=0.15)
    assert message.endswith("no answer within 0.15 s (attempt 2 of 2)")
    assert 0.3 <= time.monotonic() - begun < PATIENCE_S / 2
    server.replies = [reply, say("4")]
    assert score_of(server, timeout_s=0.15, attempts=20).score == 4


@pytest.mark.parametrize("reply", [hang_up, cut_short, babble])
def test_a_connection_that_breaks_is_tried_again(
    server: Server, reply: Callable[[Handler], None]
) -> None:
    server.replies = [reply, say("4")]
    assert score_of(server).score == 4
    server.replies = [reply]
    assert f"{server.url} can't be reached: " in failure(server.url)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_dead_server_fails_the_row(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/v1"
    assert f"{url} can't be reached: " in failure(url)


def test_a_host_without_an_address_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert "can't be reached: " in failure("http://nowhere.invalid/v1", attempts=1)


def test_a_redirect_is_told_and_not_followed(server: Server) -> None:
    location = {"location": f"{server.url}/elsewhere"}
    server.replies = [Reply(b"", 307, location)]
    message = failure(server.url)
    assert f"answered 307; it sends us to '{server.url}/elsewhere'" in message
    assert len(server.asked) == 1


def test_an_answer_of_many_megabytes_is_not_read_to_its_end(server: Server) -> None:
    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b" " * 2**20)

    server.replies = [flood]
    assert failure(server.url).endswith("the answer is larger than 16777216 bytes")
    assert len(server.asked) == 1
    server.replies = [Reply(say("4").body + b" " * 15 * 2**20)]
    assert score_of(server).score == 4


def test_a_failed_criterion_ends_the_others_and_frees_their_places(server: Server) -> None:
    is_full = threading.Barrier(2)

    def fail(handler: Handler) -> Reply:
        is_full.wait(PATIENCE_S)
        return Reply(b"", 400)

    def hang(handler: Handler) -> None:
        is_full.wait(PATIENCE_S)
        silence(handler)

    def answer(handler: Handler) -> Reply:
        is_full.wait(PATIENCE_S / 2)
        return say("4")

    server.replies = [hang, fail, answer]
    with judge_at(server.url, concurrency=2, criteria={"a": A_TEXT, "b": A_TEXT}) as judge:
        begun = time.monotonic()
        with pytest.raises(JudgeError, match="the server answered 400"):
            judge_with(judge, make_sample())
        assert judge_with(judge, make_sample()).score == 4
        assert time.monotonic() - begun < PATIENCE_S / 2


# --- many at once


def test_requests_under_way_never_exceed_the_limit(server: Server) -> None:
    limit, n_samples = 3, 12
    counts: list[int] = []
    under_way: list[Handler] = []
    is_full = threading.Barrier(limit)

    def answer(handler: Handler) -> Reply:
        with server.lock:
            under_way.append(handler)
            counts.append(len(under_way))
        is_full.wait(PATIENCE_S)  # as many as allowed, all of the time
        server.is_over.wait(0.02)  # and time for one too many to come
        with server.lock:
            under_way.remove(handler)
        return say("4")

    server.replies = [answer]
    with judge_at(server.url, concurrency=limit, criteria={"coherence": {}, "relevance": {}}) as j:

        async def judge_many() -> None:
            samples = [make_sample(str(i)) for i in range(n_samples // 2)]
            await asyncio.gather(*(j.judge(sample) for sample in samples))

        # Threads with event loops of their own, as a worker's shards are.
        with ThreadPoolExecutor(2) as pool:
            for shard in [pool.submit(lambda: asyncio.run(judge_many())) for _ in range(2)]:
                shard.result()
    assert len(counts) == 2 * n_samples
    assert max(counts) == limit


def test_time_in_the_queue_is_no_time_of_a_request(server: Server) -> None:
    def answer(handler: Handler) -> Reply:
        server.is_over.wait(0.5)
        return say("4")

    server.replies = [answer]
    # Three fit into the time of one; the last ones wait for longer than that.
    with judge_at(server.url, concurrency=1, timeout_s=2, attempts=1) as judge:

        async def judge_many() -> list[Judgement]:
            return await asyncio.gather(*(judge.judge(make_sample()) for _ in range(6)))

        assert len(asyncio.run(judge_many())) == 6


def test_a_judgement_that_is_given_up_frees_its_place(server: Server) -> None:
    server.replies = [silence, say("4")]
    with judge_at(server.url, concurrency=1) as judge:

        async def give_up() -> Judgement:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(judge.judge(make_sample()), 0.1)
            return await judge.judge(make_sample())

        assert asyncio.run(give_up()).score == 4


def test_connections_are_used_again(server: Server) -> None:
    ports = set()

    def answer(handler: Handler) -> Reply:
        ports.add(handler.client_address[1])
        return say("4")

    server.replies = [answer]
    with judge_at(server.url, concurrency=1) as judge:
        for _ in range(5):
            judge_with(judge, make_sample())
    assert len(ports) == 1


# --- the key


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", f" {SECRET}\n")  # as from a file
    return "JUDGE_KEY"


REPEATED = [
    SECRET,
    json.dumps({"error": {"message": f"wrong key: {SECRET}"}}),
    json.dumps({"detail": SECRET}),
    r'{"detail": "sk-Zq9\/x<7>&\"kept-out-of-sight"}',
    "<p>wrong key: sk-Zq9/x&lt;7&gt;&amp;&quot;kept-out-of-sight</p>",
    "?key=sk-Zq9%2Fx%3C7%3E%26%22kept-out-of-sight",
    "x" * 190 + SECRET,
]


@pytest.mark.parametrize("status", [200, 307, 400, 401, 403, 429, 500])
@pytest.mark.parametrize("body", REPEATED, ids=lambda body: body[:20])
def test_a_key_that_the_server_repeats_is_found_nowhere(
    server: Server, key: str, caplog: pytest.LogCaptureFixture, status: int, body: str
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.replies = [Reply(body.encode(), status, {"location": f"/{SECRET}"})]
    with pytest.raises(JudgeError) as caught:
        judge_once(server.url, api_key_env=key)
    error = caught.value
    assert server.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    texts = [
        str(error),
        repr(error),
        *map(repr, JUDGES.values()),
        "".join(traceback.format_exception(error)),
    ]
    assert_without_key("\n".join(texts))
    assert_without_key(pickle.dumps(error).decode("latin-1"))
    logged = [record.getMessage() for record in caplog.records]
    assert any("send_request_headers" in message for message in logged)
    # httpcore logs the headers of answers, at DEBUG, before we see them.
    ours = [message for message in logged if "receive_response_headers" not in message]
    assert_without_key("\n".join(ours))


def assert_without_key(text: str) -> None:
    assert "kept-out" not in text
    assert "Zq9" not in text


def test_a_rating_that_holds_the_key_is_quoted_without_it(server: Server, key: str) -> None:
    server.replies = [say(f"Your key is {SECRET}, 3 or 4")]
    assert "is no rating: 'Your key is ***, 3 or 4'" in failure(server.url, api_key_env=key)


def test_a_refused_key_is_told_by_its_variable(server: Server, key: str) -> None:
    server.replies = [as_json({"error": {"message": "Incorrect API key: sk-Zq***ight"}}, 401)]
    message = failure(server.url, api_key_env=key)
    assert message.endswith("the server answered 401; it does not take the key in JUDGE_KEY")
    assert "api_key_env names the variable" in failure(server.url)
    assert len(server.asked) == 2


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_key_that_is_not_set_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(JobError, match="variable JUDGE_KEY is not set"):
        judge_once("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY")


@pytest.mark.parametrize("value", [f"{SECRET}é", f"{SECRET}\r\nX: y", f"{SECRET}\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(JobError, match="what the environment variable JUDGE_KEY holds") as caught:
        judge_once("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY")
    assert_without_key("".join(traceback.format_exception(caught.value)))


# --- proxies


@pytest.fixture
def proxied(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the server the proxy of the environment."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    return "http://judge.invalid:8000/v1"


def test_a_server_elsewhere_is_asked_through_the_proxy(server: Server, proxied: str) -> None:
    server.replies = [say("4")]
    with judge_at(proxied) as judge:
        judge_with(judge, make_sample())
    assert server.asked[0].path == f"{proxied}/chat/completions"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "a.localhost"])
def test_a_server_on_this_machine_is_not_asked_through_the_proxy(
    server: Server, proxied: str, closed_port: int, host: str
) -> None:
    server.replies = [say("4")]
    with (
        judge_at(f"http://{host}:{closed_port}/v1") as judge,
        pytest.raises(JudgeError, match="can't be reached"),
    ):
        judge_with(judge, make_sample())
    assert server.asked == []


@pytest.mark.parametrize("proxy", ["socks5://user:word@127.0.0.1:9", "gopher://user:word@x", ":x"])
def test_a_proxy_that_can_not_be_used_is_told_without_its_password(
    proxied: str, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(JobError, match=r"verify.judge.url: .* the environment names") as caught:
        EndpointJudge(config_of(proxied, {}))
    assert "word" not in str(caught.value)


# --- the job file


def job_with(**changes: Any) -> Any:
    judge = {
        "kind": "endpoint",
        "url": "http://localhost:8000/v1",
        "model": "judge-1",
        "criteria": {"coherence": {}},
        "accept_at": 3.0,
    }
    return build_job(
        {
            "version": 1,
            "name": "judged",
            "seed": 1,
            "prompts": {"source": "prompts.jsonl"},
            "generate": {"model": "tiny", "samples": {"control": 1}},
            "schedules": {"control": {}},
            "verify": {"judge": judge | changes},
            "output": {"path": "out"},
        },
        "job.yaml",
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "https://api.example.com/v1/",
        "http://[::1]:8000",
        "https://example.com/openai?api-version=3",
        "http://bücher.example/v1",
    ],
)
def test_an_address_is_taken(url: str) -> None:
    assert job_with(url=url).verify.judge.url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "^https"),
        ("ftp://localhost", "^https"),
        ("http://", "must be an address such as"),
        ("http:///v1", "must be an address such as"),
        ("http://[::1/v1", "must be an address such as"),
        ("http://localhost:99999/v1", "must be an address such as"),
        ("http://localhost:port/v1", "must be an address such as"),
        ("http://local host/v1", "must be an address such as"),
        ("http://localhost/\n", "must be an address such as"),
        ("http://localhost/\x00", "must be an address such as"),
        ("http://a..b/v1", "must be an address such as"),
        (f"http://{'a' * 64}.example/v1", "must be an address such as"),
        ("http://localhost/v1#part", "must be an address such as"),
        ("http://user:word@localhost/v1", "must hold no user name or password"),
        ("http://localhost/v1/chat/completions/", "must end before /chat/completions"),
    ],
)
def test_what_is_no_address_is_refused(url: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        job_with(url=url)
    assert "verify.judge.url" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("extra_body", "message"),
    [
        ({"stream": True}, "stream can't be set here"),
        ({"messages": []}, "messages can't be set here"),
        ({"top_p": math.nan}, "must hold no nan or inf"),
        ({"stop": [math.nan]}, "must hold no nan or inf"),
    ],
)
def test_a_field_that_no_request_can_have_is_refused(
    extra_body: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        job_with(extra_body=extra_body)


def test_attempts_and_timeouts_are_bounded() -> None:
    config = job_with().verify.judge
    for change in ({"attempts": 0}, {"timeout_s": 0.0}, {"concurrency": 0}):
        with pytest.raises(ValidationError):
            EndpointJudgeConfig.model_validate(config.model_dump() | change)
