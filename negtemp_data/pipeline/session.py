"""The Ray that a run works on."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from negtemp_data.errors import RunError

_OBJECT_STORE_BYTES = 128 << 20
"""On a Ray that the run starts itself; nothing but numbers and settings passes through it."""


@contextmanager
def ray_session(address: str | None, log: Path) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the cluster at `address`.

    Raises:
        RunError: Ray does not start, or the cluster does not answer.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        # Ray starts workers with a niceness of 15, for machines where they keep its own processes
        # from running; these need little here, and all that runs beside an engine holds it up.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # ray raises ConnectionError, ValueError, RuntimeError, …
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise RunError(f"{where} can't be used: {error}; see {log}.") from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler ends the process on the spot; a run has to say how to go on.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
