"""Prometheus metrics, exported by Ray with its own, which puts `ray_` before their names.

Each process counts what it does itself, so that sums over all series are the truth of a run.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter


class WorkerMetrics:
    """What a worker makes."""

    def __init__(self, run: str) -> None:
        """Counts under the name of a job."""
        self._rows = _counter(run, "rows", "Rows that got their verdict", "arm", "status")
        self._tokens = _counter(run, "tokens", "Generated tokens, all attempts together", "arm")
        self._injections = _counter(run, "injections", "Injected tokens among them", "arm")

    def generated(self, row: Mapping[str, Any]) -> None:
        """Counts the tokens of an attempt at a row."""
        arm = {"arm": row["arm"]}
        if row["token_ids"]:  # a counter refuses an increment of 0
            self._tokens.inc(len(row["token_ids"]), arm)
        if row["injections"]:
            self._injections.inc(len(row["injections"]), arm)

    def made(self, row: Mapping[str, Any]) -> None:
        """Counts a row that got its verdict."""
        self._rows.inc(1, {"arm": row["arm"], "status": row["status"]})


class JudgeMetrics:
    """What a judge's engine reads."""

    def __init__(self, run: str, model: str) -> None:
        """Counts under the names of a job and a model."""
        self._tokens = _counter(run, "judge_tokens", "Tokens that judges' engines read", "model")
        self._model = model
        self._n_tokens = 0

    def saw_tokens(self, n_tokens: int) -> None:
        """Takes the number of tokens so far."""
        if n_tokens > self._n_tokens:
            self._tokens.inc(n_tokens - self._n_tokens, {"model": self._model})
            self._n_tokens = n_tokens


class DriverMetrics:
    """What the driver sees; workers may be gone before anybody asks them."""

    def __init__(self, run: str) -> None:
        """Counts under the name of a job."""
        self._starts = _counter(run, "engine_starts", "Starts of generating engines")
        self._shards = _counter(run, "shards_committed", "Committed shards")
        self._n_starts = 0

    def saw_starts(self, n_starts: int) -> None:
        """Takes the number of engine starts so far."""
        if n_starts > self._n_starts:
            self._starts.inc(n_starts - self._n_starts)
            self._n_starts = n_starts

    def committed(self) -> None:
        """Counts a shard."""
        self._shards.inc(1)


def _counter(run: str, what: str, description: str, *tags: str) -> Counter:
    counter = Counter(f"negtemp_{what}_total", description, tag_keys=("run", *tags))
    counter.set_default_tags({"run": run})
    return counter
