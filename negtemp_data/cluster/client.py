"""Ray's own client of its Jobs API, with errors of ours and the cluster's nodes.

Ray reads the address (RAY_API_SERVER_ADDRESS, RAY_ADDRESS) and its token (RAY_AUTH_MODE,
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) from the environment; RAY_JOB_HEADERS its command line alone.
Source: ray 2.60, dashboard/modules/job/cli.py and dashboard/modules/dashboard_sdk.py.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from negtemp_data.errors import ClusterError, ClusterTokenError, quote

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""What Ray takes where nothing is given."""

_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of each upload; Ray sets a level of their own for two of them."""

_TIMEOUT_S = 60.0
_COMING_UP_S = 60.0
"""Seconds for which a cluster may say that it is not ready yet."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive."""

    hostname: str
    gpus: float
    """GPUs that Ray counts there."""
    gpu_memory_gib: tuple[float, ...]
    """Memory of each GPU that the driver shows."""


def _is_coming_up(reply: Any) -> bool:
    """Whether the head has no agent yet that could start a job; nothing was started then.

    Source: ray 2.60, dashboard/modules/job/job_head.py, submit_job.
    """
    return reply.status_code == 500 and "No available agent" in reply.text


class JobsClient(JobSubmissionClient):
    """A connection to the head of a cluster."""

    def __init__(self, address: str | None) -> None:
        """Connects, and compares versions.

        Raises:
            ClusterError: The address is no dashboard's, or nobody answers there.
        """
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        where = address or next((os.environ[name] for name in _ADDRESSES if name in os.environ), "")
        with explained(where), _without_addresses() if address else nullcontext():
            super().__init__(address, headers=_headers())

    @property
    def cluster_version(self) -> str:
        """Ray's version on the cluster."""
        return str(self._server_ray_version)

    @property
    def own_version(self) -> str:
        """Ray's version here."""
        return str(ray.__version__)

    def nodes(self) -> list[Node]:
        """The machines that are alive.

        Raises:
            ClusterError: The dashboard does not say.
        """
        with explained(self.get_address()):
            reply = self._do_request("GET", "/nodes?view=summary")
            if reply.status_code != 200:
                self._raise_error(reply)
            summaries = reply.json()["data"]["summary"]
            return [_node(each) for each in summaries if each["raylet"]["state"] == "ALIVE"]

    def is_this_machine(self) -> bool:
        """Whether the cluster has no other machine than this one.

        An address on loopback would not show it: that may be a forwarded port.
        """
        return {node.hostname for node in self.nodes()} == {socket.gethostname()}

    @retry(
        retry=retry_if_result(_is_coming_up),
        wait=wait_fixed(2),
        stop=stop_after_delay(_COMING_UP_S),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        options.setdefault("timeout", _TIMEOUT_S)
        return super()._do_request(method, endpoint, **options)


def _headers() -> dict[str, Any] | None:
    """Headers from RAY_JOB_HEADERS.

    Raises:
        ClusterError: It is not a JSON object.
    """
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return None
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        raise ClusterError('RAY_JOB_HEADERS: has to be a JSON object such as {"KEY": "VALUE"}.')
    return headers


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Hides the variables that Ray would take in place of the address that it is given.

    Source: ray 2.60, dashboard/utils.py, get_address_for_submission_client.
    """
    hidden = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def explained(where: str | None) -> Iterator[None]:
    """Turns whatever Ray's client raises into one paragraph.

    Raises:
        ClusterError: In place of anything but errors of ours.
    """
    try:
        yield
    except ClusterError:
        raise
    except AuthenticationError as error:
        raise ClusterTokenError(
            f"the Ray cluster at {where or DEFAULT_ADDRESS} wants a token: set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH unless it lies in "
            "~/.ray/auth_token; "
            "a proxy's header goes into RAY_JOB_HEADERS."
        ) from error
    except Exception as error:  # whatever requests raises, or a RuntimeError with the server's page
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = quote(lines[-1] if lines else type(error).__name__)
        raise ClusterError(
            f"the Ray cluster at {where or DEFAULT_ADDRESS}: {reason}; --address takes "
            "the address of its dashboard, http://HOST:8265, and `negtemp doctor --address` "
            "looks at it."
        ) from error


def _node(summary: dict[str, Any]) -> Node:
    resources = summary["raylet"].get("resourcesTotal", {})
    memory = (gpu.get("memoryTotal") for gpu in summary.get("gpus") or ())  # MiB
    return Node(
        # Its agent reports a hostname, too, but later.
        hostname=summary["raylet"]["nodeManagerHostname"],
        gpus=float(resources.get("GPU", 0.0)),
        gpu_memory_gib=tuple(mib / 1024 for mib in memory if mib),
    )
