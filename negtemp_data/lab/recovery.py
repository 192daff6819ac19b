"""How a text recovers from an injection: how improbable the tokens after it are, token by token.

The k-th token after an injection is held against the twin's token in the same place, until the
next injection. Up to its first injection a sample is its twin, so there the difference is what the
injection did; after later ones both texts have gone ways of their own.

Rows pass by one prompt at a time. Shapes: T tokens of a text, K tokens after an injection, B
resamples.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise

import numpy as np

from negtemp_data.errors import RequestError, RowError
from negtemp_data.jobspec import Job
from negtemp_data.lab.measures import Interval, PromptMeans, Scores, resampled_interval
from negtemp_data.lab.reading import Reader, Reading, RecordedReader, Row, model_reader
from negtemp_data.storage import Output, read_batches, read_ledger

_COLUMNS = ["prompt_id", "arm", "sample", "prompt", "messages", "completion", "token_ids"]
_COLUMNS += ["logprobs", "injections"]

_FEWEST = 10
"""Prompts from which on a mean is worth an interval."""

_PROMPTS_AT_A_TIME = 32
"""What fills an engine's batch and is kept in memory."""


@dataclass(frozen=True)
class Point:
    """The k-th token after an injection, in the mean over injections; nats."""

    k: int
    n: int
    """Injections after which, and after whose place in the twin, there is such a token."""
    surprise: float
    """−log-probability."""
    twin: float
    """The twin's."""
    excess: Interval
    """The first less the second."""


@dataclass(frozen=True)
class HalfLife:
    """Tokens after the first until the excess is half of the first one's; its 95% interval.

    None: more than are measured.
    """

    tokens: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ArmRecovery:
    """What was found for one arm."""

    n_prompts: int
    """Prompts with an injection that could be compared."""
    n_injections: int
    n_without_twin: int
    """Samples left out because no twin of theirs is committed."""
    n_unread: int
    """Samples left out because the model could not read them or their twins."""
    points: list[Point]
    """For each k from 1 on that enough prompts have."""
    half_life: HalfLife | None
    """None: the first token's excess is not above 0, by its interval, or there is none."""


@dataclass(frozen=True)
class RecoveryReport:
    """The recovery of a job's arms."""

    reader: str
    """Model that finds tokens improbable, and in whose tokens k counts."""
    is_generator: bool
    control: str
    """Arm of the twins."""
    arms: dict[str, ArmRecovery]


def measure_recovery(
    output: Output,
    job: Job,
    n_tokens: int,
    model: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RecoveryReport:
    """Measures the committed rows of an output.

    Args:
        output: The output; a run may go on there.
        job: Its job.
        n_tokens: K, the most tokens after an injection.
        model: Who reads the texts; None: the generator.
        on_progress: Told now and then: rows read, and rows in all shards.

    Raises:
        RequestError: The job has no injections or no twins, nothing is committed, or the model is
            the generator.
        RunError: The model's engine did not start, or a shard is damaged.
    """
    control = job.control_arm
    arms = [arm for arm in job.generate.samples if job.schedules[arm].inject]
    if not arms:
        raise RequestError("no arm of the job injects anything, so there is nothing to recover.")
    if control is None:
        raise RequestError(
            "generate.samples has no arm without injections, whose samples show what the same "
            "places are like without one; `negtemp run JOB --reuse OLD` adds such an arm."
        )
    entries = read_ledger(output)
    if not entries:
        raise RequestError(f"{output.root}: no shard is committed yet.")
    n_rows = sum(entry.rows for entry in entries.values())

    def tell(n_read: int) -> None:
        on_progress(n_read, n_rows)

    prompts = _prompts(output, list(entries))
    sums = {arm: _ArmSums(n_tokens) for arm in arms}
    if model is None:
        asyncio.run(_add_prompts(prompts, control, RecordedReader(), sums, tell))
    else:
        with model_reader(model, output, job) as reader:
            asyncio.run(_add_prompts(prompts, control, reader, sums, tell))
    return RecoveryReport(
        reader=model or job.generate.model,
        is_generator=model is None,
        control=control,
        arms={arm: found.conclude() for arm, found in sums.items()},
    )


@dataclass
class _Compared:
    """An arm's samples of one prompt."""

    pairs: list[tuple[Scores, Scores]] = field(default_factory=list)
    """Surprise of the tokens after each injection, and of the twin's in the same place."""
    n_without_twin: int = 0
    n_unread: int = 0


class _ArmSums:
    """What is kept of an arm's rows."""

    def __init__(self, n_tokens: int) -> None:
        self._n_prompts = 0
        self._n_injections = 0
        self._n_without_twin = 0
        self._n_unread = 0
        self._prompts_K = np.zeros(n_tokens, dtype=np.int64)
        self._counts_K = np.zeros(n_tokens, dtype=np.int64)
        self._own_K = np.zeros(n_tokens)
        self._twin_K = np.zeros(n_tokens)
        self._excess = PromptMeans(n_tokens)

    def add_prompt(self, compared: _Compared) -> None:
        self._n_without_twin += compared.n_without_twin
        self._n_unread += compared.n_unread
        if not compared.pairs:
            return
        counts_K = np.zeros_like(self._counts_K)
        own_K, twin_K = np.zeros_like(self._own_K), np.zeros_like(self._twin_K)
        for own, twin in compared.pairs:
            n = min(len(own), len(twin), len(counts_K))
            # Labelled samples that no model wrote have no log-probabilities.
            is_known = np.isfinite(own[:n]) & np.isfinite(twin[:n])
            counts_K[:n] += is_known
            own_K[:n] += np.where(is_known, own[:n], 0)
            twin_K[:n] += np.where(is_known, twin[:n], 0)
        self._n_prompts += 1
        self._n_injections += len(compared.pairs)
        self._prompts_K += counts_K > 0
        self._counts_K += counts_K
        self._own_K += own_K
        self._twin_K += twin_K
        self._excess.add(own_K - twin_K, counts_K)

    def conclude(self) -> ArmRecovery:
        """What all of it comes to."""
        n_known = int(np.cumprod(self._prompts_K >= _FEWEST).sum())
        excess_BK = self._excess.means_BK()[:, :n_known]
        points = [
            Point(
                k=k + 1,
                n=int(self._counts_K[k]),
                surprise=float(self._own_K[k] / self._counts_K[k]),
                twin=float(self._twin_K[k] / self._counts_K[k]),
                excess=resampled_interval(excess_BK[:, k]),
            )
            for k in range(n_known)
        ]
        has_half_life = bool(points) and points[0].excess.low > 0
        return ArmRecovery(
            n_prompts=self._n_prompts,
            n_injections=self._n_injections,
            n_without_twin=self._n_without_twin,
            n_unread=self._n_unread,
            points=points,
            half_life=_half_life(excess_BK) if has_half_life else None,
        )


def _half_life(excess_BK: Scores) -> HalfLife:
    found = resampled_interval(np.array([halved_after(excess_K) for excess_K in excess_BK]))
    value, low, high = (
        None if np.isinf(tokens) else tokens for tokens in (found.value, found.low, found.high)
    )
    return HalfLife(value, low, high)


def halved_after(curve_K: Scores) -> float:
    """Steps until the curve is at half of its first value, between two by a line; inf: never."""
    half = curve_K[0] / 2
    at_most = np.flatnonzero(curve_K <= half)
    if not at_most.size:
        return float("inf")
    behind = int(at_most[0])
    if behind == 0:  # a curve that begins at 0 or below
        return 0.0
    before, after = curve_K[behind - 1], curve_K[behind]
    return float(behind - 1 + (before - half) / (before - after))


async def _add_prompts(
    prompts: Iterator[list[Row]],
    control: str,
    reader: Reader,
    sums: Mapping[str, _ArmSums],
    tell: Callable[[int], None],
) -> None:
    n_read = 0
    while chunk := list(islice(prompts, _PROMPTS_AT_A_TIME)):
        # In their order, so that the resamples are the same each time.
        for compared in await asyncio.gather(
            *(_compare(rows, control, reader, list(sums)) for rows in chunk)
        ):
            for arm, of_arm in compared.items():
                sums[arm].add_prompt(of_arm)
        n_read += sum(map(len, chunk))
        tell(n_read)


def _prompts(output: Output, shards: Sequence[int]) -> Iterator[list[Row]]:
    """The rows of each prompt; those of one prompt are all in one shard."""
    rows = (
        row
        for shard in shards
        for batch in read_batches(output, shard)
        for row in batch.select(_COLUMNS).to_pylist()
    )
    for _, of_prompt in groupby(rows, key=lambda row: row["prompt_id"]):
        yield list(of_prompt)


async def _compare(
    rows: Sequence[Row], control: str, reader: Reader, arms: Sequence[str]
) -> dict[str, _Compared]:
    """The samples of one prompt, against their twins."""
    samples = [row for row in rows if row["arm"] in arms and row["injections"]]
    wanted = {row["sample"] for row in samples}
    twins = {
        row["sample"]: asyncio.ensure_future(_read(reader, row))
        for row in rows
        if row["arm"] == control and row["sample"] in wanted and row["completion"] is not None
    }
    compared = {arm: _Compared() for arm in arms}
    for row in samples:
        of_arm = compared[row["arm"]]
        if row["sample"] not in twins:
            of_arm.n_without_twin += 1
            continue
        own, twin = await asyncio.gather(_read(reader, row), twins[row["sample"]])
        if own is None or twin is None:
            of_arm.n_unread += 1
        else:
            of_arm.pairs += _after_injections(row, own, twin)
    return compared


async def _read(reader: Reader, row: Row) -> Reading | None:
    try:
        return await reader.read(row)
    except RowError:
        return None


def _after_injections(row: Row, own: Reading, twin: Reading) -> Iterator[tuple[Scores, Scores]]:
    """The tokens after each injection up to the next, and the twin's from the same place on."""
    n_tokens = len(row["token_ids"])
    positions = sorted({injection["position"] for injection in row["injections"]})
    for position, following in pairwise([*positions, n_tokens]):
        begin = position + 1
        yield own.between(begin, following), twin.between(begin, begin + n_tokens)
