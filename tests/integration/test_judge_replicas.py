"""Replicas of a judge that come and go: Ray and its actors are real, their engines are not."""

import asyncio
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from negtemp_data.engine.engine import EngineSpec, Generation
from negtemp_data.errors import EngineStartError, JudgeError, NegtempError
from negtemp_data.judging.asking import Question
from negtemp_data.pipeline.board import Board
from negtemp_data.pipeline.judges import JudgePool, JudgeReplica, JudgeSettings, lost_judge
from negtemp_data.pipeline.replicas import EngineFacts, RemoteEngine
from negtemp_data.pipeline.session import ray_session
from negtemp_data.sampling import Trace
from negtemp_data.storage import Output

POISON = 0
DEADLINE_S = 60


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory):
    with ray_session(None, tmp_path_factory.mktemp("ray")):
        yield


def replica_class():
    # In a function, so that it travels by value: workers can't import this module.
    class Replica:
        """Answers with its name.

        `NAME.starts` keeps it from starting, `NAME.works` from answering; with `NAME.fails` its
        engine does not start.
        """

        def __init__(self, folder, name, model_path):
            self._folder, self._name, self._model_path = Path(folder), name, model_path
            while self._sees("starts"):
                time.sleep(0.05)

        async def describe(self):
            if self._sees("fails"):
                return pickle.dumps(EngineStartError(f"{self._name} has no memory"))
            return pickle.dumps(EngineFacts(self._model_path, 2048, {}))

        async def answer(self, question):
            if self._sees("fails"):
                raise EngineStartError(f"{self._name} has no memory")
            if question.prompt_token_ids == [POISON]:
                os._exit(70)
            while self._sees("works"):
                await asyncio.sleep(0.05)
            none = np.zeros(0)
            return Generation([], none, none, self._name, "stop", Trace([], 0))

        def _sees(self, what):
            return (self._folder / f"{self._name}.{what}").exists()

    return ray.remote(Replica).options(num_cpus=0, max_restarts=-1, max_concurrency=100)


class Replicas:
    """Two of them, and the engine that they are to a worker."""

    names = ("a", "b")

    def __init__(self, folder, model_path):
        self._folder = folder
        kind = replica_class()
        self.actors = {name: kind.remote(str(folder), name, model_path) for name in self.names}
        self.engine = RemoteEngine(list(self.actors.values()), model_path)

    def ask(self, n=1, token_id=1):
        return [self.engine.submit(Question("text", [token_id], (), 1)) for _ in range(n)]

    def answers(self, futures):
        return {future.result(DEADLINE_S).text for future in futures}

    def hold(self, what, *names):
        for name in names:
            (self._folder / f"{name}.{what}").touch()

    def release(self, what, *names):
        for name in names:
            (self._folder / f"{name}.{what}").unlink(missing_ok=True)

    def kill(self, *names):
        for name in names:
            ray.kill(self.actors[name], no_restart=False)

    def wait_for(self, *names):
        wait_until(lambda: self.answers(self.ask(8)) == set(names))


def wait_until(is_so):
    end = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(local_ray, smol_model, tmp_path_factory):
    return Replicas(tmp_path_factory.mktemp("replicas"), smol_model)


@pytest.fixture
def replicas(whole):
    """Both of them; they come back whatever a test does."""
    whole.wait_for("a", "b")
    yield whole
    for what in ("works", "starts"):
        whole.release(what, "a", "b")


def test_what_a_lost_replica_was_asked_the_others_answer(replicas):
    replicas.hold("works", "b")
    asked = replicas.ask(8)
    wait_until(lambda: sum(future.done() for future in asked) >= 4)
    assert not all(future.done() for future in asked)
    replicas.hold("starts", "b")  # as if there were no room for it any more
    replicas.kill("b")
    assert replicas.answers(asked) == {"a"}
    assert replicas.answers(replicas.ask(20)) == {"a"}
    replicas.release("works", "b")
    replicas.release("starts", "b")
    replicas.wait_for("a", "b")


def test_requests_wait_where_all_replicas_are_gone(replicas):
    replicas.hold("works", "a", "b")
    asked = replicas.ask(8)
    replicas.hold("starts", "a", "b")
    replicas.kill("a", "b")
    asked += replicas.ask(8)
    time.sleep(2)
    assert not any(future.done() for future in asked)
    replicas.release("works", "b")
    replicas.release("starts", "b")
    assert replicas.answers(asked) == {"b"}


def test_a_request_that_kills_each_replica_fails_and_others_do_not(replicas):
    replicas.hold("works", "a", "b")
    innocent = replicas.ask(8)
    (poison,) = replicas.ask(token_id=POISON)
    replicas.release("works", "a", "b")
    with pytest.raises(JudgeError, match="died 4 times under this request"):
        poison.result(DEADLINE_S)
    assert replicas.answers(innocent) <= {"a", "b"}


def test_a_worker_need_not_wait_for_all_replicas(local_ray, smol_model, tmp_path):
    (tmp_path / "a.starts").touch()
    replicas = Replicas(tmp_path, smol_model)
    assert replicas.answers(replicas.ask(8)) == {"b"}
    replicas.release("starts", "a")
    replicas.wait_for("a", "b")
    # One that is asked nothing dies, and its engine does not start again.
    replicas.hold("fails", "a")
    replicas.kill("a")
    assert replicas.answers(replicas.ask(8)) == {"b"}
    assert replicas.answers(replicas.ask(8)) == {"b"}


@pytest.mark.slow
def test_where_no_engine_starts_the_reason_is_told(local_ray, smol_model, tmp_path):
    for name in Replicas.names:
        (tmp_path / f"{name}.fails").touch()
    with pytest.raises(EngineStartError, match="no memory"):
        Replicas(tmp_path, smol_model)


@pytest.mark.slow
def test_requests_fail_once_no_engine_starts_any_more(local_ray, smol_model, tmp_path):
    replicas = Replicas(tmp_path, smol_model)
    replicas.hold("works", "a", "b")
    asked = replicas.ask(4)
    replicas.hold("fails", "a", "b")
    replicas.kill("a", "b")
    asked += replicas.ask(4)
    for future in asked:
        assert isinstance(future.exception(DEADLINE_S), EngineStartError)


def test_a_replica_that_gives_up_says_why_and_stays_so(local_ray, tmp_path):
    output = Output(tmp_path / "out")
    output.create()
    pool = JudgePool("no-such-model", "/nowhere", "{}", 1, 0.0, False)
    engine = EngineSpec("/nowhere", {}, is_cpu=True, replicas=1)
    board = ray.remote(Board).options(num_cpus=0).remote()
    settings = JudgeSettings("run", pool, 0, engine, output)
    actor = ray.remote(JudgeReplica).options(num_cpus=0, max_restarts=-1)
    replica = actor.remote(settings, board)

    def events():
        lines = Path(output.root, "_run", "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def says_why():
        with pytest.raises(NegtempError, match="no-such-model"):
            RemoteEngine([replica], pool.model)
        assert "no-such-model" in lost_judge([pool], ray.get(board.read.remote()), since=0.0)

    says_why()
    assert [event["event"] for event in events()] == ["judge_starts", "judge_failed"]
    assert "no-such-model" in events()[1]["reason"]
    ray.kill(replica, no_restart=False)
    wait_until(lambda: len(events()) == 3)
    assert events()[2]["event"] == "judge_failed"  # without another try
    says_why()
