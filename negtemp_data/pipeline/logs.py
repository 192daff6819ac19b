"""Keeps vLLM's and Ray's chatter off the screen: their output goes to files of the run."""

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from negtemp_data.storage.local import explained_errors

_ROOM_BYTES = 1 << 20
"""Without room for engines' logs, Ray's actors end with errors that say nothing of the disk."""


def require_room(folder: Path) -> None:
    """Refuses a disk that has no room for the logs of a start.

    Raises:
        StorageError: With what to do.
    """
    with explained_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            if file.write(bytes(_ROOM_BYTES)) < _ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def send_output_to(path: Path) -> None:
    """Points this process's stdout and stderr, those of C code and children too, at a file.

    Its folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


@contextmanager
def captured_output(path: Path) -> Iterator[None]:
    """Sends the process's output to `path` inside the block.

    Who has something to say to the user meanwhile needs a duplicate of stderr from before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    send_output_to(path)
    try:
        yield
    finally:
        _flush_or_drop()
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)


def _flush_or_drop() -> None:
    """Writes what is buffered; what a full disk refuses must not come out on the screen later."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()
