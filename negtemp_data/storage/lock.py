"""One run at a time: the lock of an output.

It spares two runs the same work and keeps apart what only one process may write (layout, card,
ledger). Shards do not need it: a commit is safe among any number of processes.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from filelock import FileLock, Timeout

from negtemp_data.errors import OutputError, OutputLockedError
from negtemp_data.storage.lease import Lease, describe, is_alive
from negtemp_data.storage.local import LocalStore
from negtemp_data.storage.output import LOCK, LOCK_HOLDER_FILE, Output


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Stops a run that has lost the lock, as far as that can happen.

        Raises:
            RunError: Another run has it.
        """


class _FileLock:
    """The operating system's lock: who has it keeps it."""

    def check(self) -> None:
        """See `Lock`."""


@contextmanager
def hold_lock(output: Output) -> Iterator[Lock]:
    """Holds the lock of an output whose folders exist.

    In a folder the lock dies with its process; on an object store it is free after 60 s without a
    sign of life.

    Raises:
        OutputLockedError: Another run holds it.
        OutputError: The file system has no locks, or the lock file can't be opened.
    """
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if isinstance(output.run, LocalStore):
        with _hold_file(output, output.run.folder / LOCK, holder):
            yield _FileLock()
    else:
        with _hold_lease(output, holder) as lease:
            yield lease


def is_held(output: Output) -> bool:
    """Whether a run holds the lock of an output at this moment; read-only outputs can say too."""
    if not isinstance(output.run, LocalStore):
        return is_alive(output.run.at(LOCK))
    try:
        descriptor = os.open(output.run.folder / LOCK, os.O_RDONLY)
    except OSError:
        return False  # nobody ran here, or who asks may not know
    try:
        # Shared, so that who looks never keeps another from looking. Source: filelock 3,
        # _unix.py, which locks with flock(2) as well.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _hold_file(output: Output, path: Path, holder: dict[str, Any]) -> Iterator[None]:
    # A soft lock is a mere file, which a killed process leaves behind.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputLockedError(
            f"{output.root}: another run{_describe_holder(output)} writes to it; wait for it, stop "
            "it, or choose another --out."
        ) from error
    except OSError as error:
        raise OutputError(
            f"{path}: can't be locked: {error.strerror or error}; choose an --out that can be "
            "written, on a file system with locks."
        ) from error
    try:
        output.run.replace_json(LOCK_HOLDER_FILE, holder)
        yield
    finally:
        with suppress(OSError):
            (path.parent / LOCK_HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def _describe_holder(output: Output) -> str:
    """Who says to hold the lock; empty in the moment before that is written."""
    try:
        return f" ({describe(json.loads(output.run.read(LOCK_HOLDER_FILE)))})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _hold_lease(output: Output, holder: dict[str, Any]) -> Iterator[Lease]:
    lease = Lease(output.run.at(LOCK), output.root, holder | {"id": uuid4().hex})
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()
