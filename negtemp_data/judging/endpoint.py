"""The endpoint judge: rubric questions to an OpenAI-compatible server.

One request per criterion. Where the server gives log-probabilities the score is the expectation
over the scale's labels, and the mass outside them is known; else it is the number in the answer.
A server's failure costs a row, never a run.
"""

import asyncio
import html
import ipaddress
import json
import math
import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

import httpx
import numpy as np
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from negtemp_data.errors import JobError, JudgeError, quote
from negtemp_data.jobspec import EndpointJudgeConfig
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.ratings import find_choice, parse_json, read_rating
from negtemp_data.judging.rubric import conclude, question
from negtemp_data.judging.sample import Sample

_TOP_LOGPROBS = 20
"""The most that OpenAI's API gives, and vLLM's server unless told otherwise.

Source: vllm 0.32.0, config/model.py, max_logprobs.
"""

_MAX_TOKENS = 16
"""Room for words around the rating."""

_TRY_AGAIN = (408, 409, 425, 429)
"""Statuses beside 5xx that a later request may not get."""

_ABOUT_THE_KEY = (401, 403)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_LARGEST_ANSWER_BYTES = 16 << 20


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """What the server asks for."""


class EndpointJudge:
    """Asks a server the job's questions about samples; safe to use from any thread and loop."""

    def __init__(self, config: EndpointJudgeConfig, where: str = "verify.judge") -> None:
        """Reads the key; sends nothing yet.

        Raises:
            JobError: The environment variable of the key is not set or holds no key, or the url or
                the environment's proxy can't be used; the message names `where`, the judge's path
                in the job file.
        """
        self._config = config
        self._key = read_key(config, where)
        self._url, self._client = _make_client(config, self._key, where)
        self._scale = np.arange(config.scale[0], config.scale[1] + 1)
        self._retry = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(config.attempts),
            wait=_wait_s,
            sleep=asyncio.sleep,
            reraise=True,
        )
        # Connections and the limit of requests belong to one event loop; callers have many.
        self._free = asyncio.Semaphore(config.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="endpoint-judge", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends connections and thread; no judgement may be under way."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`."""
        judging = asyncio.run_coroutine_threadsafe(self._judge(sample), self._loop)
        return await asyncio.wrap_future(judging)

    async def _judge(self, sample: Sample) -> Judgement:
        asked = [asyncio.ensure_future(self._rate(sample, name)) for name in self._config.criteria]
        try:
            return conclude(self._config, await asyncio.gather(*asked))
        finally:
            # One failure is enough to fail the row.
            for rating in asked:
                rating.cancel()

    async def _rate(self, sample: Sample, criterion: str) -> CriterionScore:
        try:
            # Waits keep their place in the limit, so that a server in need gets fewer requests.
            async with self._free:
                choice: Mapping[str, Any] = await self._retry.copy()(
                    self._ask, self._body(sample, criterion)
                )
        except _PassingError as error:
            tries = f"attempt {self._config.attempts} of {self._config.attempts}"
            raise JudgeError(f"criterion {criterion!r}: {error} ({tries})") from error
        except JudgeError as error:
            raise JudgeError(f"criterion {criterion!r}: {error}") from error
        score = read_rating(choice, self._scale, criterion)
        if score is None:
            said = self._quote(choice["message"].get("content"))
            raise JudgeError(f"criterion {criterion!r}: the server's answer is no rating: {said}")
        return score

    def _body(self, sample: Sample, criterion: str) -> bytes:
        chat = []
        for example in self._config.examples:
            text = question(self._config, criterion, example.request, example.answer)
            chat.append({"role": "user", "content": text})
            chat.append({"role": "assistant", "content": str(example.rating)})
        text = question(self._config, criterion, sample.request, sample.completion)
        fields = {
            "model": self._config.model,
            "messages": [*chat, {"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
        } | self._config.extra_body
        kept = {name: value for name, value in fields.items() if value is not None}
        # A lone surrogate, which no encoding has, becomes a question mark.
        return json.dumps(kept, ensure_ascii=False).encode(errors="replace")

    async def _ask(self, body: bytes) -> Mapping[str, Any]:
        """The choice that the server answers with."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                response, answer = await self._send(body)
        except TimeoutError as error:
            raise _PassingError(f"no answer within {self._config.timeout_s:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            reason = self._mask(str(error)) or type(error).__name__
            raise _PassingError(f"{self._config.url} can't be reached: {reason}") from error
        status = response.status_code
        if status != 200:
            message = f"the server answered {status}{self._explain(response, answer)}"
            if status in _TRY_AGAIN or status >= 500:
                raise _PassingError(message, _wait_wanted_s(response))
            raise JudgeError(message)
        choice = find_choice(parse_json(answer))
        if choice is None:
            said = self._quote(answer.decode(errors="replace"))
            raise _PassingError(f"the server's answer is no chat completion: {said}")
        return choice

    async def _send(self, body: bytes) -> tuple[httpx.Response, bytes]:
        """One request; the response without its body, and the body."""
        answer = bytearray()
        async with self._client.stream("POST", self._url, content=body) as response:
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > _LARGEST_ANSWER_BYTES:
                    raise JudgeError(f"the answer is larger than {_LARGEST_ANSWER_BYTES} bytes")
        return response, bytes(answer)

    def _explain(self, response: httpx.Response, answer: bytes) -> str:
        """What the server says beside its status, ready to follow it."""
        if response.status_code in _ABOUT_THE_KEY:
            # Nothing is quoted: a refused key may be repeated in any form, whole or in part.
            if self._config.api_key_env is None:
                return "; it may want a key: api_key_env names the variable that holds one"
            return f"; it does not take the key in {self._config.api_key_env}"
        if response.has_redirect_location:
            return f"; it sends us to {self._quote(response.headers['location'])}"
        said = _message_of(parse_json(answer)) or answer.decode(errors="replace")
        return f": {self._quote(said)}" if said else ""

    def _quote(self, text: object) -> str:
        # First, since quote may cut the key.
        return quote(self._mask(text) if isinstance(text, str) else text)

    def _mask(self, text: str) -> str:
        """`text` without the key, which a server may repeat."""
        if self._key is None:
            return text
        in_json = json.dumps(self._key)[1:-1]
        spellings = {
            self._key,
            in_json,
            in_json.replace("/", r"\/"),
            html.escape(self._key),
            percent_encode(self._key, safe=""),
        }
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, "***")
        return text


def read_key(config: EndpointJudgeConfig, where: str) -> str | None:
    """The key from its environment variable; None where the job names none.

    Raises:
        JobError: The variable is not set, or holds what no header can.
    """
    if config.api_key_env is None:
        return None
    # Keys that come from files end with a line break.
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise JobError(
            f"{where}.api_key_env: the environment variable {config.api_key_env} is not set on "
            "this machine; set it, on every machine where the run works."
        )
    if not key.isascii() or not key.isprintable():
        raise JobError(
            f"{where}.api_key_env: what the environment variable {config.api_key_env} holds is no "
            "key; keys consist of printable ASCII characters."
        )
    return key


def _make_client(
    config: EndpointJudgeConfig, key: str | None, where: str
) -> tuple[httpx.URL, httpx.AsyncClient]:
    """Where to send requests, and what sends them.

    Raises:
        JobError: The url, or what the environment says of proxies and certificates, is unusable.
    """
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        parts = urlsplit(config.url)
        path = f"{parts.path.rstrip('/')}/chat/completions"
        url = httpx.URL(parts._replace(path=path).geturl())
        client = httpx.AsyncClient(
            headers=headers,
            # asyncio.timeout limits a request as a whole; httpx's own limits are each read's.
            timeout=None,
            # The semaphore is the limit; a second one would count its queue as time of a request.
            limits=httpx.Limits(max_keepalive_connections=config.concurrency),
            # Proxies and certificates. httpx exempts no address from them by itself.
            trust_env=not _is_loopback(url.host),
        )
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise JobError(
            f"{where}.url: {config.url} can't be used, or not with the proxy and certificates "
            f"that the environment names: {error}"
        ) from error
    return url, client


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _wait_s(state: RetryCallState) -> float:
    """As long as the server says at least, else longer each time."""
    error = state.outcome.exception() if state.outcome else None
    wanted_s = error.wait_s if isinstance(error, _PassingError) else 0.0
    backoff = wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
    return min(max(wanted_s, backoff(state)), _LONGEST_WAIT_S)


def _wait_wanted_s(response: httpx.Response) -> float:
    """What the server asks to wait; 0 where it does not say so in seconds."""
    try:
        wait_s = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return 0.0
    return wait_s if 0 <= wait_s < math.inf else 0.0


def _message_of(answer: Any) -> str | None:
    """The message of an error in OpenAI's form."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
