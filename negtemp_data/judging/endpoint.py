"""The endpoint judge: rubric questions to an OpenAI-compatible server.

One request per criterion. Where the server gives log-probabilities the score is the expectation
over the scale's labels among the most likely first tokens, and the mass outside them is known;
else the answer's first whole number is the score. A server's failure costs a row, never a run.
"""

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import regex
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base

from negtemp_data.errors import JobError, JudgeError, quote
from negtemp_data.jobspec import EndpointJudgeConfig
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.rubric import conclude, question, score_labels
from negtemp_data.judging.sample import Sample

_TOP_LOGPROBS = 20
"""The most that OpenAI's API gives."""

_TRY_AGAIN = (408, 409, 425, 429)
"""Statuses beside 5xx that a later request may not get."""

_LONGEST_WAIT_S = 60.0
_FIRST_WAIT_S = 0.5
_MAX_TOKENS = 8
_NUMBER = regex.compile(r"(?<![\d.])\d+(?![\d]|\.\d)")


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _Wait(wait_base):
    """As long as the server says, else longer each time."""

    _backoff = wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)

    def __call__(self, retry_state: Any) -> float:
        error = retry_state.outcome.exception()
        if error.wait_s is not None:
            return min(float(error.wait_s), _LONGEST_WAIT_S)
        return float(self._backoff(retry_state))


class EndpointJudge:
    """Asks a server the job's questions about samples; safe to use from several threads."""

    def __init__(self, config: EndpointJudgeConfig, where: str = "verify.judge") -> None:
        """Reads the key; sends nothing yet.

        Raises:
            JobError: The environment variable of the key is not set.
        """
        self._config = config
        self._key = read_key(config, where)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            base_url=config.url, headers=headers, timeout=config.timeout_s, trust_env=False
        )
        self._scale = np.arange(config.scale[0], config.scale[1] + 1)
        # The pool's size is the limit; an asyncio one would not hold across event loops.
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")
        self._retry = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(config.attempts),
            wait=_Wait(),
            reraise=True,
        )

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`."""
        asked = [
            asyncio.wrap_future(self._pool.submit(self._rate, sample, name))
            for name in self._config.criteria
        ]
        return conclude(self._config, await asyncio.gather(*asked))

    def _rate(self, sample: Sample, criterion: str) -> CriterionScore:
        text = question(self._config, criterion, sample.request, sample.completion)
        chat = []
        for example in self._config.examples:
            asked = question(self._config, criterion, example.request, example.answer)
            chat.append({"role": "user", "content": asked})
            chat.append({"role": "assistant", "content": str(example.rating)})
        body = {
            "model": self._config.model,
            "messages": [*chat, {"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
        }
        try:
            answer = self._retry.copy()(self._post, body)
            return self._score(answer, criterion)
        except _PassingError as error:
            raise JudgeError(
                f"criterion {criterion!r}: {error}, {self._config.attempts} times"
            ) from error
        except JudgeError as error:
            raise JudgeError(f"criterion {criterion!r}: {error}") from error

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _PassingError(f"no answer within {self._config.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise _PassingError(f"{self._config.url} can't be reached: {error}") from error
        status = response.status_code
        if status in _TRY_AGAIN or status >= 500:
            raise _PassingError(f"the server answered {status}", _wait_wanted(response))
        if status != 200:
            raise JudgeError(f"the server answered {status}: {self._quote(response.text)}")
        try:
            choice = response.json()["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _PassingError(
                f"the server's answer is no chat completion: {self._quote(response.text)}"
            ) from error
        if not isinstance(choice, dict):
            raise _PassingError(f"the server's choice is no object: {self._quote(choice)}")
        return choice

    def _score(self, choice: dict[str, Any], criterion: str) -> CriterionScore:
        p = self._probabilities(choice)
        if p is not None and p.sum() > 0:
            return score_labels(p, self._scale, criterion)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        found = _NUMBER.search(content) if isinstance(content, str) else None
        if found is None or int(found[0]) not in self._scale:
            raise JudgeError(f"the server's answer is no rating: {self._quote(content)}")
        return CriterionScore(criterion, float(found[0]), None)

    def _probabilities(self, choice: dict[str, Any]) -> Any:
        """Probability of each label as the first token; None where the server does not say."""
        try:
            first = choice["logprobs"]["content"][0]["top_logprobs"]
            pairs = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in first]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        p = np.zeros(len(self._scale))
        labels = {str(label): i for i, label in enumerate(self._scale.tolist())}
        for token, logprob in pairs:
            if token in labels and logprob <= 0:
                p[labels[token]] += math.exp(logprob)
        return p

    def _quote(self, text: object) -> str:
        # A server may repeat the key that it refuses; first, since quote may cut it.
        said = str(text).replace(self._key, "***") if self._key else text
        return quote(said)


def read_key(config: EndpointJudgeConfig, where: str) -> str | None:
    """The key from its environment variable; None where the job names none.

    Raises:
        JobError: The variable is not set.
    """
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise JobError(
            f"{where}.api_key_env: the environment variable {config.api_key_env} is not set on "
            "this machine; set it, on every machine where the run works."
        )
    return key


def _wait_wanted(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; None where it does not say so in seconds."""
    try:
        wait_s = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return wait_s if 0 <= wait_s < math.inf else None
