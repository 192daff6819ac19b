"""A folder that appears whole or not at all: written beside its place, renamed at the end.

A killed export leaves its unfinished folder, under a name with a leading dot, to the next export to
the same place, which clears it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from negtemp_data.errors import ExportError, StorageError
from negtemp_data.storage.local import explain_error


def check_destination(dest: Path) -> None:
    """Refuses a place where something is.

    Raises:
        ExportError: It is a file, or a folder with files in it.
    """
    try:
        is_taken = any(dest.iterdir())
    except FileNotFoundError:
        is_taken = dest.is_symlink()
    except NotADirectoryError:
        is_taken = True
    except OSError as error:
        raise ExportError(f"{explain_error(dest, error)}, or choose another DEST.") from error
    if is_taken:
        raise ExportError(
            f"{dest}: exists already, and an export replaces nothing; choose another DEST, or "
            "remove it."
        )


@contextmanager
def staged_folder(dest: Path) -> Iterator[Path]:
    """An empty folder that becomes `dest` when the block ends well, and vanishes when it does not.

    Raises:
        ExportError: `dest` is taken, can't be made, or another export to it is going on.
        StorageError: The disk refused.
    """
    staging = dest.with_name(f".{dest.name}.partial")
    with _locked_folder(staging, dest):
        try:
            # Only now: an export that held the lock may have finished meanwhile.
            check_destination(dest)
            for leftover in staging.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield staging
            for path in (*staging.rglob("*"), staging):
                _sync(path)
            staging.rename(dest)
            _sync(dest.parent)
        except BaseException as error:
            with suppress(OSError):  # what stopped the export is the news
                shutil.rmtree(staging)
            if isinstance(error, OSError):
                raise StorageError(
                    f"{explain_error(dest, error)}, then export again; nothing was left behind."
                ) from error
            raise


@contextmanager
def _locked_folder(folder: Path, dest: Path) -> Iterator[None]:
    """Makes `folder` and holds an OS lock on it, which dies with this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ExportError(f"{explain_error(dest, error)}, or choose another DEST.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"{dest}: another export to it is going on; wait for it, or choose another DEST."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
