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

from filelock import FileLock, Timeout

from negtemp_data.errors import OutputError, OutputLockedError
from negtemp_data.storage.output import Output


@contextmanager
def hold_lock(output: Output) -> Iterator[None]:
    """Holds the lock of an output whose folders exist; the lock dies with its process.

    Raises:
        OutputLockedError: Another run holds it.
        OutputError: The file system has no locks, or the lock file can't be opened.
    """
    # A soft lock is a mere file, which a killed process leaves behind.
    lock = FileLock(output.lock_path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputLockedError(
            f"{output.root}: another run{_describe_holder(output)} writes to it; wait for it, stop "
            "it, or choose another --out."
        ) from error
    except OSError as error:
        raise OutputError(
            f"{output.lock_path}: can't be locked: {error.strerror or error}; choose an --out that "
            "can be written, on a file system with locks."
        ) from error
    try:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        output.write_json(output.lock_holder_path, holder)
        yield
    finally:
        with suppress(OSError):
            output.lock_holder_path.unlink(missing_ok=True)
        lock.release()


def is_held(output: Output) -> bool:
    """Whether a run holds the lock of an output at this moment; read-only outputs can say too."""
    try:
        descriptor = os.open(output.lock_path, os.O_RDONLY)
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


def _describe_holder(output: Output) -> str:
    """Who says to hold the lock; empty in the moment before that is written."""
    try:
        holder = json.loads(output.lock_holder_path.read_bytes())
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
