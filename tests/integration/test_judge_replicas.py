"""Replicas of a judge that come and go: Ray and its actors are real, their engines are not."""

import asyncio
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from negtemp_data.engine.engine import Generation
from negtemp_data.errors import EngineStartError, JudgeError
from negtemp_data.judging.asking import Question
from negtemp_data.pipeline.replicas import EngineFacts, RemoteEngine
from negtemp_data.pipeline.session import ray_session
from negtemp_data.sampling import Trace

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
            return pickle.dumps(EngineFacts(self._model_path, 2048))

        async def answer(self, question):
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

    def ask(self, n=1):
        return [self.engine.submit(Question("text", [1], (), 1)) for _ in range(n)]

    def answers(self, futures):
        return {future.result(DEADLINE_S).text for future in futures}

    def hold(self, name, what):
        (self._folder / f"{name}.{what}").touch()

    def release(self, name, what):
        (self._folder / f"{name}.{what}").unlink()

    def kill(self, name):
        ray.kill(self.actors[name], no_restart=False)

    def wait_for(self, *names):
        end = time.monotonic() + DEADLINE_S
        while self.answers(self.ask(8)) != set(names):
            assert time.monotonic() < end, f"{names} do not answer"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(local_ray, smol_model, tmp_path_factory):
    return Replicas(tmp_path_factory.mktemp("replicas"), smol_model)


@pytest.fixture
def replicas(whole):
    """Both of them; a test leaves them so that they come back."""
    whole.wait_for("a", "b")
    return whole


def test_what_a_lost_replica_was_asked_the_others_answer(replicas):
    replicas.hold("b", "works")
    asked = replicas.ask(8)
    assert not all(future.done() for future in asked)
    replicas.hold("b", "starts")  # as if there were no room for it any more
    replicas.kill("b")
    assert replicas.answers(asked) == {"a"}
    assert replicas.answers(replicas.ask(20)) == {"a"}
    replicas.release("b", "works")
    replicas.release("b", "starts")
    replicas.wait_for("a", "b")


def test_requests_wait_where_all_replicas_are_gone(replicas):
    for name in replicas.names:
        replicas.hold(name, "works")
    asked = replicas.ask(8)
    for name in replicas.names:
        replicas.hold(name, "starts")
        replicas.kill(name)
    asked += replicas.ask(8)
    time.sleep(2)
    assert not any(future.done() for future in asked)
    replicas.release("b", "works")
    replicas.release("b", "starts")
    assert replicas.answers(asked) == {"b"}
    replicas.release("a", "works")
    replicas.release("a", "starts")


def test_a_request_that_kills_each_replica_fails_and_others_do_not(replicas):
    poison = replicas.engine.submit(Question("text", [POISON], (), 1))
    with pytest.raises(JudgeError, match="died 4 times under this request"):
        poison.result(DEADLINE_S)
    replicas.wait_for("a", "b")


def test_a_worker_need_not_wait_for_all_replicas(local_ray, smol_model, tmp_path):
    (tmp_path / "a.starts").touch()
    replicas = Replicas(tmp_path, smol_model)
    assert replicas.answers(replicas.ask(8)) == {"b"}
    replicas.release("a", "starts")
    replicas.wait_for("a", "b")


def test_a_replica_whose_engine_does_not_start_is_left_out(local_ray, smol_model, tmp_path):
    (tmp_path / "a.fails").touch()
    replicas = Replicas(tmp_path, smol_model)
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
    for name in replicas.names:
        replicas.hold(name, "works")
    asked = replicas.ask(4)
    for name in replicas.names:
        replicas.hold(name, "fails")
        replicas.kill(name)
    asked += replicas.ask(4)
    for future in asked:
        assert isinstance(future.exception(DEADLINE_S), EngineStartError)
