"""One vLLM engine and the thread that steps it.

Any number of threads submit requests and wait on futures; one thread owns the engine, adds what has
arrived, steps, and resolves what has finished. So the batch stays full across shards, and the
engine and its CPU threads live in one place from start to end. On a CPU the engine runs in this
very process and ends with it; on a GPU vLLM puts it into a process of its own, which overlaps its
work with ours.
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from negtemp_data.engine.arguments import machine_defaults, prepare_environment
from negtemp_data.engine.compile import KEY
from negtemp_data.engine.cores import CoreShare
from negtemp_data.engine.steps import StepLog
from negtemp_data.errors import EngineDeadError, EngineStartError, GenerationError, quote
from negtemp_data.sampling import Injection, Schedule, Trace

if TYPE_CHECKING:
    from vllm import LLMEngine, PoolingParams, PoolingRequestOutput, RequestOutput, SamplingParams
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

_CLOSE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class EngineSpec:
    """What an engine needs to start; picklable."""

    model_path: str
    arguments: Mapping[str, Any]
    """vLLM engine arguments of the job."""
    is_cpu: bool
    replicas: int
    """Engines that may share this machine."""
    is_pooling: bool = False
    """Whether it runs a reward model, which gives numbers instead of tokens."""
    lora_path: str | None = None
    """Folder of the adapter that requests may ask for; `arguments` has to make room for it."""


@dataclass(frozen=True)
class Generation:
    """A finished request; the first three have one entry per generated token."""

    token_ids: list[int]
    logprobs: NDArray[np.float32]
    """Raw log-probability of each token, T = 1, before any processing. A request for certain token
    ids (`logprob_token_ids`) has those of the ids, in their order, behind its one token's."""
    ranks: NDArray[np.int32]
    """1-based rank of each token by raw log-probability."""
    text: str | None
    """The text, where stop strings made vLLM write it; else None."""
    finish_reason: str
    trace: Trace
    prompt_logprobs: NDArray[np.float32] | None = None
    """Raw log-probability of each prompt token, nan for the first; None where nobody asked."""
    pooled: NDArray[np.float32] | None = None
    """What a pooling model gives; None from one that generates."""


@dataclass(frozen=True)
class _Submission:
    prompt_token_ids: list[int]
    params: "SamplingParams | PoolingParams"
    use_lora: bool
    future: "Future[Generation]"


class Engine:
    """Runs requests; safe to use from any thread."""

    def __init__(self, spec: EngineSpec) -> None:
        """Starts the engine and returns when it takes requests.

        Raises:
            EngineStartError: vLLM did not start; the message holds its reason.
        """
        self._lora_path = spec.lora_path
        self._inbox: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._open: dict[str, _Submission] = {}
        # Prompt tokens of each request that has no place in the batch yet.
        self._waiting: deque[int] = deque()
        self._n_requests = 0
        self._death: EngineDeadError | None = None
        self._steps = StepLog()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(spec, started), name="engine", daemon=True
        )
        self._thread.start()
        started.result()

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""
        return self._llm.get_tokenizer()

    @property
    def model_path(self) -> str:
        """Folder of the model."""
        return str(self._llm.model_config.model)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and completion together, at most."""
        return int(self._llm.model_config.max_model_len)

    @property
    def max_num_seqs(self) -> int:
        """Requests that the engine runs at a time, at most."""
        return int(self._llm.vllm_config.scheduler_config.max_num_seqs)

    @property
    def steps(self) -> StepLog:
        """What its steps have cost so far."""
        return self._steps

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self._llm.model_config.get_vocab_size())

    def submit(
        self,
        prompt_token_ids: list[int],
        params: "SamplingParams | PoolingParams",
        *,
        use_lora: bool = False,
    ) -> "Future[Generation]":
        """Queues a request, to the model itself or to the model with the engine's adapter.

        The future raises GenerationError where vLLM refuses the request, and EngineDeadError where
        the engine dies before it is done.
        """
        future: Future[Generation] = Future()
        # So that it can't be cancelled: whoever no longer waits must not keep the engine from
        # setting its result.
        future.set_running_or_notify_cancel()
        self._inbox.put(_Submission(prompt_token_ids, params, use_lora, future))
        if self._death is not None:
            # The thread may have emptied the inbox for the last time before the put.
            self._fail_inbox(self._death)
        return future

    def close(self) -> None:
        """Finishes what is queued, then ends the engine."""
        self._inbox.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self, spec: EngineSpec, started: "Future[None]") -> None:
        cores = None
        try:
            prepare_environment(spec.is_cpu)
            if spec.is_cpu:
                cores = CoreShare(max(1, len(os.sched_getaffinity(0)) // spec.replicas))
            self._llm = _start(spec)
        except BaseException as error:  # vLLM raises whatever its parts raise
            started.set_exception(EngineStartError(_start_message(spec, error)))
            return
        started.set_result(None)
        try:
            self._serve(cores)
        except Exception as error:  # classified once: a step that raises leaves a dead engine
            self._death = EngineDeadError(f"the engine died: {type(error).__name__}: {error}")
            for submission in self._open.values():
                submission.future.set_exception(self._death)
            self._fail_inbox(self._death)
        finally:
            self._llm.engine_core.shutdown()

    def _serve(self, cores: CoreShare | None) -> None:
        while True:
            if cores is not None:
                cores.hold()
            is_open = self._admit(wait=not self._llm.has_unfinished_requests())
            if self._llm.has_unfinished_requests():
                outputs = self._step()
                self._resolve([output for output in outputs if output.finished])
            elif not is_open:
                return

    def _step(self) -> "list[RequestOutput | PoolingRequestOutput[Any]]":
        places = self.max_num_seqs
        n = min(len(self._open), places)
        # vLLM gives places in the order of arrival.
        n_waiting = len(self._open) - n
        prompt_tokens = 0
        while len(self._waiting) > n_waiting:
            prompt_tokens += self._waiting.popleft()
        begun = time.perf_counter()
        outputs = self._llm.step()
        seconds = time.perf_counter() - begun
        self._steps += StepLog.of_step(n, prompt_tokens, seconds, places)
        return outputs

    def _admit(self, wait: bool) -> bool:
        """Adds what has arrived; False when the engine is asked to close."""
        try:
            submission = self._inbox.get(block=wait)
            while submission is not None:
                self._add(submission)
                submission = self._inbox.get(block=False)
        except queue.Empty:
            return True
        self._inbox.put(None)  # stays the last word: asked again once the engine is idle
        return False

    def _add(self, submission: _Submission) -> None:
        from vllm.exceptions import VLLMValidationError  # noqa: PLC0415
        from vllm.inputs import TokensPrompt  # noqa: PLC0415

        self._n_requests += 1
        request_id = str(self._n_requests)
        prompt = TokensPrompt(prompt_token_ids=submission.prompt_token_ids)
        self._open[request_id] = submission  # first: an engine that has died says so here, too
        try:
            lora = None
            if submission.use_lora and self._lora_path:
                lora = lora_request(self._lora_path)
            self._llm.add_request(request_id, prompt, submission.params, lora_request=lora)
        except (ValueError, VLLMValidationError) as error:  # this request alone is refused
            del self._open[request_id]
            submission.future.set_exception(GenerationError(f"vLLM refused the request: {error}"))
        else:
            self._waiting.append(len(submission.prompt_token_ids))

    def _resolve(self, finished: "list[RequestOutput | PoolingRequestOutput[Any]]") -> None:
        lengths = {
            key: len(cast("RequestOutput", output).outputs[0].token_ids)
            for output in finished
            if (key := _trace_key(self._open[output.request_id].params)) is not None
        }
        traces = self._take_traces(lengths) if lengths else {}
        for output in finished:
            submission = self._open[output.request_id]
            trace = traces.get(_trace_key(submission.params) or "", Trace([], 0))
            try:
                submission.future.set_result(_result(output, submission.params, trace))
            except GenerationError as error:
                submission.future.set_exception(error)
            del self._open[output.request_id]

    def _take_traces(self, lengths: dict[str, int]) -> dict[str, Trace]:
        traces: dict[str, Trace] = {}
        # Every worker of a parallel engine answers; those that see no logits have empty traces.
        for answer in self._llm.collective_rpc("take_injection_traces", args=(lengths,)):
            for key, (injections, deferred) in answer:
                if key not in traces or injections or deferred:
                    traces[key] = Trace([Injection(*values) for values in injections], deferred)
        return traces

    def _fail_inbox(self, error: EngineDeadError) -> None:
        while True:
            try:
                submission = self._inbox.get(block=False)
            except queue.Empty:
                return
            if submission is not None:
                submission.future.set_exception(error)


def check_schedules(engine: Engine, schedules: Mapping[str, Schedule]) -> None:
    """Refuses schedules that can't draw anything from this model's tokens.

    Raises:
        EngineStartError: Names the arm.
    """
    import torch  # noqa: PLC0415

    from negtemp_data.engine.token_classes import token_table  # noqa: PLC0415
    from negtemp_data.sampling import ScheduleTables  # noqa: PLC0415

    tokens = token_table(engine.tokenizer, engine.model_path)
    tables = ScheduleTables(tokens, engine.vocab_size, torch.device("cpu"))
    for arm, schedule in schedules.items():
        try:
            tables.register(schedule)
        except ValueError as error:
            raise EngineStartError(f"schedules.{arm}: {error}.") from error


def _start(spec: EngineSpec) -> "LLMEngine":
    from vllm import EngineArgs, LLMEngine  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415

    arguments = engine_arguments(spec)
    if spec.is_pooling:
        arguments |= {"runner": "pooling", "convert": "classify"}
    else:
        arguments["worker_extension_cls"] = "negtemp_data.engine.extension.InjectionExtension"
    config = EngineArgs(**arguments, disable_log_stats=True).create_engine_config(
        UsageContext.ENGINE_CONTEXT
    )
    if not spec.is_pooling:
        # Each of vLLM's two model runners refuses the other's processors, and which of them runs
        # is known only now.
        config.model_config.logits_processors = [processor_for(config)]
    llm = LLMEngine.from_vllm_config(config, disable_log_stats=True)
    if spec.lora_path:
        # Else vLLM would find in the middle of a step that it can't carry out the adapter.
        llm.add_lora(lora_request(spec.lora_path))
    return llm


def lora_request(path: str) -> "LoRARequest":
    """The engine's adapter, as vLLM's requests name it."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    return LoRARequest("adapter", 1, path)


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """vLLM's engine arguments: the job's, and the machine's defaults for those it does not set."""
    from vllm import EngineArgs  # noqa: PLC0415

    defaults = machine_defaults(spec.is_cpu)
    # Mistral's own tokenizer, which vLLM prefers where there is one, does not tell what the project
    # asks of a tokenizer.
    defaults |= {"tokenizer_mode": "hf"}
    arguments = {**defaults, **spec.arguments, "model": spec.model_path}
    if spec.is_cpu and "max_num_batched_tokens" not in spec.arguments:
        # One step has to hold the longest prompt that the model takes.
        length = EngineArgs(**arguments).create_model_config().max_model_len
        arguments["max_num_batched_tokens"] = max(length, defaults["max_num_batched_tokens"])
    if spec.is_cpu and spec.lora_path:
        # vLLM's CPU kernels look up "no adapter" as the last place for one (vllm 0.32,
        # lora/ops/torch_ops/lora_ops.py), so that place has to stay empty.
        arguments["max_loras"] = 2
    return arguments


def processor_for(config: "VllmConfig") -> str:
    """Name of the processor class for the model runner that `config` leads to."""
    # vLLM before 0.28 has one model runner and no such attribute.
    version = "v2" if getattr(config, "use_v2_model_runner", False) else "v1"
    return f"negtemp_data.engine.processor_{version}:ScheduleProcessor"


def _start_message(spec: EngineSpec, error: BaseException) -> str:
    reason = " ".join(str(error).split()) or repr(error)
    return (
        f"vLLM could not start {spec.model_path} with generate.engine {dict(spec.arguments)}: "
        f"{type(error).__name__}: {quote(reason)}; the whole message is in the run's logs."
    )


def _trace_key(params: "SamplingParams | PoolingParams") -> str | None:
    return (getattr(params, "extra_args", None) or {}).get(KEY)


def _result(
    output: "RequestOutput | PoolingRequestOutput[Any]",
    params: "SamplingParams | PoolingParams",
    trace: Trace,
) -> Generation:
    from vllm import RequestOutput, SamplingParams  # noqa: PLC0415

    if isinstance(output, RequestOutput) and isinstance(params, SamplingParams):
        return _generation(output, params, trace)
    pooled = np.asarray(cast(Any, output).outputs.data, dtype=np.float32).reshape(-1)
    none = np.zeros(0)
    return Generation(
        [], none.astype(np.float32), none.astype(np.int32), None, "pooled", trace, pooled=pooled
    )


def _generation(output: "RequestOutput", params: "SamplingParams", trace: Trace) -> Generation:
    completion = output.outputs[0]
    if completion.finish_reason not in ("stop", "length"):
        raise GenerationError(f"vLLM ended the request with {completion.finish_reason!r}")
    flat = completion.logprobs
    token_ids = list(completion.token_ids)
    prompt_logprobs = None
    if params.prompt_logprobs is not None and output.prompt_logprobs is not None:
        # Of the first token nothing is known, and vLLM leaves it out.
        known = np.asarray(cast(Any, output.prompt_logprobs).logprobs, dtype=np.float32)
        prompt_logprobs = np.concatenate([np.full(1, np.nan, np.float32), known])
    return Generation(
        token_ids=token_ids,
        logprobs=np.asarray(getattr(flat, "logprobs", []), dtype=np.float32),
        ranks=np.asarray(getattr(flat, "ranks", []), dtype=np.int32),
        text=completion.text if params.detokenize else None,
        finish_reason=completion.finish_reason,
        trace=trace,
        prompt_logprobs=prompt_logprobs,
    )
