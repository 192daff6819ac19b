"""Files that appear whole and synced, or not at all, and the errors of a disk in plain words.

Data is written to a temporary file first, in a folder of the same file system, and synced before
it gets its name; then the name's folder is synced. A temporary file never outlives the call.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from negtemp_data.errors import StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: "permission denied; give this user the right to write there",
    errno.ENOENT: "its folder is gone; bring it back (is the disk still mounted?)",
}

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What link(2) says on a file system without hard links."""

_ROOM_BYTES = 1 << 20
"""Without room for engines' logs, Ray's actors end with errors that say nothing of the disk."""


def create_file(path: Path, data: bytes, tmp: Path) -> bool:
    """Creates `path` with `data`, unless it exists: of many writers exactly one gets True.

    A hard link is the one operation that is atomic, refuses an existing name, and works on network
    file systems too; a rename would replace what is there.

    Args:
        path: The new file.
        data: Its content.
        tmp: Folder for the temporary file, on the same file system.

    Raises:
        StorageError: The disk refused; the message says what to do.
    """
    with _explain_errors(path), _stage(data, tmp) as staged:
        try:
            os.link(staged, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_HARD_LINKS:
                raise StorageError(
                    f"{path}: can't be committed: its file system has no hard links; choose an "
                    "output path on a file system that has them."
                ) from error
            raise
        _sync_folder(path.parent)
    return True


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where they are missing.

    Raises:
        StorageError: See `create_file`.
    """
    with _explain_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path) -> None:
    """Refuses a disk that has no room for what a run writes in its first seconds.

    Raises:
        StorageError: See `create_file`.
    """
    with _explain_errors(folder), _stage(bytes(_ROOM_BYTES), folder):
        pass


def replace_file(path: Path, data: bytes, tmp: Path) -> None:
    """Writes `path`; a reader sees the old content or the new one, never a part.

    Raises:
        StorageError: See `create_file`.
    """
    with _explain_errors(path), _stage(data, tmp) as staged:
        os.replace(staged, path)
        _sync_folder(path.parent)


def explain_error(path: Path, error: OSError) -> str:
    """Why `path` can't be written, and what to do about it."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return f"{path}: can't be written: {reason}"


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{explain_error(path, error)}, then run `negtemp resume` on this output; what is "
            "committed is safe."
        ) from error


@contextmanager
def _stage(data: bytes, tmp: Path) -> Iterator[Path]:
    """A synced temporary file with `data`, gone afterwards."""
    staged = tmp / uuid4().hex
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        # An error here would hide the one that matters; `Output.clean_tmp` takes what is left.
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
