"""Makes the rows of a shard: encode → generate → check → judge → row.

A plain class that runs without Ray: it is handed an engine, and prompts. Each row is a coroutine,
so that a sample goes to the judge the moment it is generated, on an engine that other rows keep
busy meanwhile.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from negtemp_data.engine.compile import ArmParameters
from negtemp_data.engine.engine import Engine, Generation, check_schedules
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.errors import RowError
from negtemp_data.jobspec import Job
from negtemp_data.judging import Judgement, RubricJudge, Sample, Verdict, decide, run_checks
from negtemp_data.prompts import PlannedRow, Prompt, group_seed, planned_ids, row_seed
from negtemp_data.sampling import Siblings

Row = dict[str, Any]
"""A row of `negtemp_data.storage.ROW_SCHEMA`."""


class ShardMaker:
    """Generates and judges samples on one engine; safe to use from several threads."""

    def __init__(self, job: Job, engine: Engine) -> None:
        """Compiles the job for this engine.

        Raises:
            JobError: The judge's scale does not suit the model.
            EngineStartError: A schedule can't draw from this model's tokens.
        """
        self._job = job
        self._engine = engine
        self._encoder = PromptEncoder(
            engine.tokenizer, engine.max_model_len - 1, job.generate.chat_template_kwargs
        )
        self._arms = {
            arm: ArmParameters(job.generate, job.schedules[arm]) for arm in job.generate.samples
        }
        check_schedules(engine, {arm: p.schedule for arm, p in self._arms.items()})
        config = job.verify.judge
        self._judge = RubricJudge(config, engine, self._encoder) if config else None

    def make(self, prompts: Sequence[Prompt], on_row: Callable[[Row], None]) -> list[Row]:
        """All planned rows of `prompts`, in the plan's order.

        Args:
            prompts: The prompts of a shard.
            on_row: Told of each row as soon as it is done.

        Raises:
            EngineDeadError: The engine died; none of the rows is lost, all can be made again.
        """
        return asyncio.run(self._make_all(prompts, on_row))

    async def _make_all(
        self, prompts: Sequence[Prompt], on_row: Callable[[Row], None]
    ) -> list[Row]:
        async def finish(
            prompt: Prompt, token_ids: list[int] | RowError, planned: PlannedRow
        ) -> Row:
            row = await self._make_row(prompt, token_ids, planned)
            on_row(row)
            return row

        tasks = []
        for prompt in prompts:
            token_ids = self._encode(prompt)
            tasks += [
                asyncio.ensure_future(finish(prompt, token_ids, planned))
                for planned in planned_ids(prompt.id, self._job.generate.samples)
            ]
            # Lets the engine have these while the next prompt is encoded.
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    def _encode(self, prompt: Prompt) -> list[int] | RowError:
        try:
            return self._encoder.encode(prompt, self._job.prompts.system)
        except RowError as error:
            return error

    async def _make_row(
        self, prompt: Prompt, token_ids: list[int] | RowError, planned: PlannedRow
    ) -> Row:
        seed = row_seed(self._job.seed, prompt.id, planned.sample)
        row = _blank_row(prompt, planned, seed)
        if isinstance(token_ids, RowError):
            return row | _verdict_columns(Verdict("failed", error=str(token_ids)))
        row["prompt_tokens"] = len(token_ids)
        params = self._arms[planned.arm].sampling_params(
            planned.id,
            seed,
            self._engine.max_model_len - len(token_ids),
            Siblings(group_seed(self._job.seed, prompt.id), planned.sample),
        )
        use_lora = self._job.generate.lora is not None
        try:
            submitted = self._engine.submit(token_ids, params, use_lora=use_lora)
            generation = await asyncio.wrap_future(submitted)
        except RowError as error:
            return row | _verdict_columns(Verdict("failed", error=str(error)))
        text = generation.text
        if text is None:
            text = self._engine.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
        row |= _generation_columns(generation, text)
        sample = Sample(
            request=_request_text(prompt),
            completion=text,
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            injected=[injection.position for injection in generation.trace.injections],
        )
        return row | _verdict_columns(await self._verify(sample))

    async def _verify(self, sample: Sample) -> Verdict:
        checks = run_checks(self._job.verify.checks, sample)
        config, judgement = self._job.verify.judge, None
        if self._judge is not None and all(check.passed for check in checks):
            try:
                judgement = await self._ask(self._judge, sample)
            except RowError as error:
                return Verdict("failed", tuple(checks), error=str(error))
        return decide(checks, judgement, config.accept_at if config else None)

    async def _ask(self, judge: RubricJudge, sample: Sample) -> Judgement:
        answers = judge.ask(sample)
        await asyncio.gather(*map(asyncio.wrap_future, answers), return_exceptions=True)
        return judge.read(answers)


def _request_text(prompt: Prompt) -> str:
    """The prompt as the judge reads it."""
    if prompt.messages is None:
        return prompt.text or ""
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.messages)


def _blank_row(prompt: Prompt, planned: PlannedRow, seed: int) -> Row:
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
        "completion": None,
        "token_ids": None,
        "logprobs": None,
        "ranks": None,
        "injections": None,
        "deferred": None,
        "finish_reason": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "rationale": None,
        "attempt": 0,
        "attempts": [],
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
        "scores": [asdict(score) for score in judgement.scores] if judgement else [],
        "checks": [asdict(check) for check in verdict.checks],
        "error": verdict.error,
    }
