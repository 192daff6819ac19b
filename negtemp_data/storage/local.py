"""A folder of a local or mounted file system, and the errors of a disk in plain words.

Data is written to a temporary file first, in a folder of the same file system, and synced before
it gets its name; then the name's folder is synced. A temporary file never outlives the call.
"""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa

from negtemp_data.errors import OutputError, StorageError
from negtemp_data.storage.store import Store

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: "permission denied; give this user the right to write there",
    errno.ENOENT: "its folder is gone; bring it back (is the disk still mounted?)",
}

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What link(2) says on a file system without hard links."""


def explain_error(path: object, error: OSError) -> str:
    """Why `path` can't be written, and what to do about it."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return f"{path}: can't be written: {reason}"


class LocalStore(Store):
    """A folder."""

    def __init__(
        self, path: str | os.PathLike[str], tmp: str = "", *, tmp_folder: Path | None = None
    ) -> None:
        """The folder `path`, whose temporary files lie in its folder `tmp`, or in `tmp_folder`."""
        # Workers on other machines have working directories of their own.
        self.folder = Path(path).absolute()
        self.root = str(self.folder)
        self.tmp = tmp_folder or self.folder / tmp

    def at(self, name: str) -> "LocalStore":
        """See `Store`."""
        return LocalStore(self.folder / name, tmp_folder=self.tmp)

    def prepare(self, folders: Iterable[str]) -> None:
        """See `Store`."""
        try:
            for folder in (self.tmp, *(self.folder / name for name in folders)):
                folder.mkdir(parents=True, exist_ok=True)
            # Folders that were there before say nothing about whether files can be written.
            with tempfile.TemporaryFile(dir=self.tmp):
                pass
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputError(
                f"{self.root}: is a file or lies inside one, but an output is a folder; choose "
                "another --out."
            ) from error
        except OSError as error:
            raise OutputError(
                f"{explain_error(self.root, error)}, or choose another --out."
            ) from error

    def make(self) -> None:
        """See `Store`."""
        with explained_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[str]:
        """See `Store`."""
        try:
            return sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sizes(self) -> dict[str, int]:
        """See `Store`."""
        try:
            with os.scandir(self.folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        """See `Store`."""
        return (self.folder / name).read_bytes()

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """See `Store`."""
        found = {}
        for name in names:
            with suppress(OSError):
                found[name] = self.read(name)
        return found

    def load(self, name: str) -> pa.Buffer:
        """See `Store`."""
        # Mapped, not read: a damaged length must not become an allocation of that size.
        with pa.memory_map(str(self.folder / name)) as file:
            return file.read_buffer()

    def load_private(self, name: str) -> pa.Buffer:
        """See `Store`."""
        with (self.folder / name).open("rb") as file:
            return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def open(self, name: str) -> pa.NativeFile:
        """See `Store`."""
        return pa.memory_map(str(self.folder / name))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`.

        A hard link is the one operation that is atomic, refuses an existing name, and works on
        network file systems too; a rename would replace what is there.
        """
        path = self.folder / name
        with explained_errors(path), self._stage(data) as staged:
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

    def replace(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with self.writing(name) as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`."""
        path = self.folder / name
        with explained_errors(path), self._staged_file() as file:
            yield file
            _end_file(file)
            os.replace(file.name, path)
            _sync_folder(path.parent)

    def append(self, name: str, line: bytes) -> None:
        """See `Store`."""
        path = self.folder / name
        with explained_errors(path):
            # One write to a file opened for appending: lines of several processes do not mix.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`."""
        for name in names:
            with _explain_removal(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)

    def remove_tree(self, name: str = "") -> None:
        """See `Store`."""
        path = self.folder / name
        with _explain_removal(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def clean_tmp(self) -> None:
        """See `Store`."""
        for name in os.listdir(self.tmp):
            LocalStore(self.tmp).remove_tree(name)

    @contextmanager
    def _stage(self, data: bytes) -> Iterator[Path]:
        """A synced temporary file with `data`, gone afterwards."""
        with self._staged_file() as file:
            file.write(data)
            _end_file(file)
            yield Path(file.name)

    @contextmanager
    def _staged_file(self) -> Iterator[BinaryIO]:
        staged = self.tmp / uuid4().hex
        try:
            with staged.open("xb") as file:
                yield file
        finally:
            # An error here would hide the one that matters; `clean_tmp` takes what is left.
            with suppress(OSError):
                staged.unlink(missing_ok=True)


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    """Turns what the disk says while the block writes `path` into an error that says what to do.

    Raises:
        StorageError: The disk refused.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{explain_error(path, error)}, then run `negtemp resume` on this output; what is "
            "committed is safe."
        ) from error


@contextmanager
def _explain_removal(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: can't be removed: {error.strerror or error}; remove it by hand, or choose "
            "another --out."
        ) from error


def _end_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
