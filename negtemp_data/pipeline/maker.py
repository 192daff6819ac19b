"""Makes the rows of a shard: encode → generate → check → judge → row.

A plain class that runs without Ray: it is handed an engine, and prompts. Each row is a coroutine,
so that a sample goes to the judge the moment it is generated, on an engine that other rows keep
busy meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from negtemp_data.engine.compile import ArmParameters
from negtemp_data.engine.engine import Engine, Generation, check_schedules
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.errors import JudgeError, RowError
from negtemp_data.jobspec import Job, NearDuplicateCheckConfig, needs_twin, single_judges
from negtemp_data.judging import Judge, Sample, Verdict, decide, run_checks
from negtemp_data.prompts import (
    PlannedRow,
    Prompt,
    group_seed,
    planned_ids,
    request_text,
    row_seed,
)
from negtemp_data.sampling import Siblings
from negtemp_data.storage import ATTEMPT_COLUMNS

Row = dict[str, Any]
"""A row of `negtemp_data.storage.ROW_SCHEMA`."""

GENERATION_COLUMNS = (
    "completion",
    "token_ids",
    "logprobs",
    "ranks",
    "injections",
    "deferred",
    "finish_reason",
    "completion_tokens",
)
"""What generation leaves in a row."""


class Listener(Protocol):
    """Who is told of rows as they come about."""

    def on_generated(self, row: Row) -> None:
        """A row is generated, in one of its attempts; what a verdict says is missing in it."""

    def on_done(self, row: Row) -> None:
        """A row has its verdict."""


class NoListener:
    """For who only wants the rows."""

    def on_generated(self, row: Row) -> None:
        """See `Listener`."""

    def on_done(self, row: Row) -> None:
        """See `Listener`."""


@dataclass(frozen=True)
class Earlier:
    """Rows that exist already, by id."""

    done: Mapping[str, Row] = field(default_factory=dict)
    """Nothing is left to do for these."""
    generated: Mapping[str, Row] = field(default_factory=dict)
    """These are not generated again, only verified."""


_NOTHING = Earlier()


class ShardMaker:
    """Generates and judges samples on one engine; safe to use from several threads."""

    def __init__(self, job: Job, engine: Engine, judge: Judge | None) -> None:
        """Compiles the job for this engine.

        Raises:
            EngineStartError: A schedule can't draw from this model's tokens.
        """
        self._job = job
        self._engine = engine
        self._judge = judge
        self._encoder = PromptEncoder(
            engine.tokenizer, engine.max_model_len - 1, job.generate.chat_template_kwargs
        )
        self._arms = {
            arm: ArmParameters(job.generate, job.schedules[arm]) for arm in job.generate.samples
        }
        check_schedules(engine, {arm: p.schedule for arm, p in self._arms.items()})
        self._wants_siblings = any(
            isinstance(check, NearDuplicateCheckConfig) for check in job.verify.checks
        )
        self._wants_twin = any(needs_twin(each) for _, each in single_judges(job.verify.judge))

    def make(
        self,
        prompts: Sequence[Prompt],
        listener: Listener,
        earlier: Earlier = _NOTHING,
        wanted: Container[str] | None = None,
    ) -> list[Row]:
        """The planned rows of `prompts`, in the plan's order.

        Args:
            prompts: The prompts of a shard.
            listener: Told of each row that is made.
            earlier: Rows that exist already.
            wanted: Ids of the rows to make; None: all. Rows that are neither wanted nor done are
                left out; a twin must be done, or wanted too.

        Raises:
            EngineDeadError: The engine died; none of the rows is lost, all can be made again.
        """
        return asyncio.run(self._make_all(prompts, listener, earlier, wanted))

    def fail(self, prompt: Prompt, row_id: str, reason: str, generated: Row | None) -> Row:
        """The row of a sample that is given up, with what was generated for it."""
        planned = next(
            row for row in planned_ids(prompt.id, self._job.generate.samples) if row.id == row_id
        )
        seed = row_seed(self._job.seed, prompt.id, planned.sample)
        row = _blank_row(prompt, planned, seed, 0, []) | (generated or {})
        return row | _verdict_columns(Verdict("failed", error=reason))

    async def _make_all(
        self,
        prompts: Sequence[Prompt],
        listener: Listener,
        earlier: Earlier,
        wanted: Container[str] | None,
    ) -> list[Row]:
        tasks: list[asyncio.Task[Row]] = []
        for prompt in prompts:
            tasks += self._start_rows(prompt, listener, earlier, wanted)
            # Lets the engine have these while the next prompt is encoded.
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    def _start_rows(
        self,
        prompt: Prompt,
        listener: Listener,
        earlier: Earlier,
        wanted: Container[str] | None,
    ) -> "list[asyncio.Task[Row]]":
        """A task for each row of a prompt, in the plan's order."""
        token_ids: list[int] | RowError | None = None
        planned = list(planned_ids(prompt.id, self._job.generate.samples))
        tasks: dict[str, asyncio.Task[Row]] = {}
        # A row may wait for those that were started before it, and twins are waited for.
        control = self._job.control_arm
        for row in sorted(planned, key=lambda row: row.arm != control):
            if row.id in earlier.done:
                tasks[row.id] = asyncio.ensure_future(_known(earlier.done[row.id]))
                continue
            if wanted is not None and row.id not in wanted:
                continue
            if token_ids is None:
                token_ids = self._encode(prompt)
            siblings = list(tasks.values()) if self._wants_siblings else []
            twin = None
            if self._wants_twin and row.arm != control:
                twin = tasks[f"{prompt.id}/{control}/{row.sample}"]
            old = earlier.generated.get(row.id)
            making = self._make_row(prompt, token_ids, row, old, siblings, twin, listener)
            tasks[row.id] = asyncio.ensure_future(_and_tell(making, listener))
        return [tasks[row.id] for row in planned if row.id in tasks]

    def _encode(self, prompt: Prompt) -> list[int] | RowError:
        try:
            return self._encoder.encode(prompt, self._job.prompts.system)
        except RowError as error:
            return error

    async def _make_row(
        self,
        prompt: Prompt,
        token_ids: list[int] | RowError,
        planned: PlannedRow,
        old: Row | None,
        earlier: "Sequence[asyncio.Task[Row]]",
        twin: "asyncio.Task[Row] | None",
        listener: Listener,
    ) -> Row:
        """The last attempt at a sample.

        Args:
            prompt: Its prompt.
            token_ids: The prompt's, or why it has none.
            planned: What the plan says of it.
            old: Its row from before, which saves the attempts up to that one.
            earlier: Its siblings.
            twin: Its twin, where it is wanted.
            listener: Told when it is generated.
        """
        attempts: list[Row] = old["attempts"] if old else []
        begin = old["attempt"] if old else 0
        for attempt in range(begin, max(begin + 1, self._job.verify.attempts)):
            seed = row_seed(self._job.seed, prompt.id, planned.sample, attempt)
            row = _blank_row(prompt, planned, seed, attempt, attempts)
            if isinstance(token_ids, RowError):
                return row | _verdict_columns(Verdict("failed", error=str(token_ids)))
            row["prompt_tokens"] = len(token_ids)
            try:
                if old is not None and attempt == begin:
                    row |= {name: old[name] for name in GENERATION_COLUMNS}
                else:
                    row |= await self._generate(prompt, token_ids, planned, seed)
                    listener.on_generated(row)
                sample = await _as_sample(prompt, row, earlier, twin)
            except RowError as error:
                return row | _verdict_columns(Verdict("failed", error=str(error)))
            row |= _verdict_columns(await self._verify(sample))
            if row["status"] != "rejected":
                break
            attempts = [*attempts, _attempt_of(row)]
        return row

    async def _generate(
        self, prompt: Prompt, token_ids: list[int], planned: PlannedRow, seed: int
    ) -> Mapping[str, Any]:
        params = self._arms[planned.arm].sampling_params(
            planned.id,
            seed,
            self._engine.max_model_len - len(token_ids),
            Siblings(group_seed(self._job.seed, prompt.id), planned.sample),
        )
        use_lora = self._job.generate.lora is not None
        submitted = self._engine.submit(token_ids, params, use_lora=use_lora)
        generation = await asyncio.wrap_future(submitted)
        text = generation.text
        if text is None:
            text = self._engine.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
        return _generation_columns(generation, text)

    async def _verify(self, sample: Sample) -> Verdict:
        checks = await run_checks(self._job.verify.checks, sample)
        judgement = None
        if self._judge is not None and all(check.passed for check in checks):
            try:
                judgement = await self._judge.judge(sample)
            except RowError as error:
                return Verdict("failed", tuple(checks), error=str(error))
        return decide(checks, judgement)


async def _known(row: Row) -> Row:
    return row


async def _and_tell(making: Awaitable[Row], listener: Listener) -> Row:
    row = await making
    listener.on_done(row)
    return row


async def _as_sample(
    prompt: Prompt,
    row: Row,
    earlier: "Sequence[asyncio.Task[Row]]",
    twin: "asyncio.Task[Row] | None",
) -> Sample:
    """What verifies a generated row sees of it, once the rows that it is held against are done."""
    siblings = [sibling for sibling in earlier if (await sibling)["status"] == "accepted"]
    if twin is not None and (await twin)["completion"] is None:
        raise JudgeError(f"the twin, {(await twin)['id']}, has failed")
    return Sample(
        request=_request_text(prompt),
        completion=row["completion"],
        token_ids=row["token_ids"],
        logprobs=np.asarray(row["logprobs"], dtype=np.float32),
        injected=[injection["position"] for injection in row["injections"]],
        source=prompt.source,
        siblings=[sibling.result()["completion"] for sibling in siblings],
        twin=None if twin is None else twin.result()["completion"],
    )


def _attempt_of(row: Row) -> Row:
    """What a rejected row leaves behind in the row of the next attempt."""
    return {name: row[name] for name in ATTEMPT_COLUMNS}


def _request_text(prompt: Prompt) -> str:
    messages = prompt.messages
    turns = None if messages is None else [message._asdict() for message in messages]
    return request_text(prompt.text, turns)


def _blank_row(
    prompt: Prompt, planned: PlannedRow, seed: int, attempt: int, attempts: list[Row]
) -> Row:
    messages = None
    if prompt.messages is not None:
        messages = [message._asdict() for message in prompt.messages]
    return {
        "id": planned.id,
        "prompt_id": prompt.id,
        "arm": planned.arm,
        "sample": planned.sample,
        "seed": seed,
        "prompt": prompt.text,
        "messages": messages,
        "source": prompt.source,
        **dict.fromkeys(GENERATION_COLUMNS),
        "prompt_tokens": None,
        "attempt": attempt,
        "attempts": attempts,
    }


def _generation_columns(generation: Generation, text: str) -> Mapping[str, Any]:
    return {
        "completion": text,
        "token_ids": generation.token_ids,
        "logprobs": generation.logprobs,
        "ranks": generation.ranks,
        "injections": [injection._asdict() for injection in generation.trace.injections],
        "deferred": generation.trace.deferred,
        "finish_reason": generation.finish_reason,
        "completion_tokens": len(generation.token_ids),
    }


def _verdict_columns(verdict: Verdict) -> Row:
    judgement = verdict.judgement
    return {
        "status": verdict.status,
        "score": judgement.score if judgement else None,
        "rationale": judgement.rationale if judgement else None,
        "scores": [asdict(score) for score in judgement.scores] if judgement else [],
        "checks": [asdict(check) for check in verdict.checks],
        "error": verdict.error,
    }
