"""Where an output's files are: a folder of a file system, or an object store.

    Store ─┬─ LocalStore    a folder: hard links, atomic renames, memory mapping
           └─ ObjectStore   s3://, gs://, az://: conditional PUTs, whole objects

Names are those of files directly in the store; `at` gives the store of a folder in it. Knows what
is safe and what is not, and nothing of shards.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import pyarrow as pa


class Store(ABC):
    """Files by name. Holds nothing but where they are, so it pickles.

    What reads raises FileNotFoundError where there is no such file, and OSError or StorageError
    where it can't be read; what writes or removes raises StorageError.
    """

    root: str
    """Absolute path or URI."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def where(self, name: str) -> str:
        """Path or URI of a file."""
        return f"{self.root}/{name}"

    @abstractmethod
    def at(self, name: str) -> "Store":
        """The store of a folder in this one, which need not be there."""

    @abstractmethod
    def prepare(self, folders: Iterable[str]) -> None:
        """Makes folders, and makes sure that files can be created here, once and whole.

        Raises:
            OutputError: They can't.
        """

    @abstractmethod
    def make(self) -> None:
        """Makes this store's own folder, where folders are made at all.

        Raises:
            StorageError: It can't be made.
        """

    @abstractmethod
    def entries(self) -> list[str]:
        """Names of the files and folders directly in it, sorted; none where it is not there."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of each file directly in it, by name."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes."""

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of many small files, by name; what is not there or is broken is left out."""

    @abstractmethod
    def load(self, name: str) -> pa.Buffer:
        """A file's bytes: the file's own pages where it can be mapped, else a copy."""

    @abstractmethod
    def load_private(self, name: str) -> pa.Buffer:
        """As `load`, but what is written to the buffer stays in this process."""

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """A file to read at any place, of which no more is read than is asked for."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Creates a file, unless it exists: of many writers at most one gets True.

        False: the file exists. It is whole, whoever wrote it.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Writes a file; a reader sees the old content or the new one, never a part."""

    def replace_json(self, name: str, data: Any) -> None:
        """Writes `data` as JSON to a file, as `replace` does."""
        self.replace(name, (json.dumps(data, indent=2) + "\n").encode())

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write at length; it takes the place of `name` when the block ends well."""

    @abstractmethod
    def append(self, name: str, line: bytes) -> None:
        """Adds a line to a log that several processes write to."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Removes files, as far as they are there."""

    @abstractmethod
    def remove_tree(self, name: str = "") -> None:
        """Removes a file, or a folder and all that is in it, as far as it is there.

        Without a name: the store's own folder.
        """

    @abstractmethod
    def clean_tmp(self) -> None:
        """Removes what a killed run left half written. Call it with the lock held."""


def open_store(path: str | os.PathLike[str], tmp: str) -> Store:
    """The store at a path or URI; nothing has to be there.

    Args:
        path: A folder, or a URI of an object store.
        tmp: Folder in it for what is being written, where files have to be moved into place.

    Raises:
        OutputError: The URI is of a kind that can't hold an output, or needs a library that is not
            installed.
    """
    if "://" in os.fspath(path):
        from negtemp_data.storage.objects import ObjectStore, check_uri  # noqa: PLC0415

        return ObjectStore(check_uri(os.fspath(path)), tmp)
    from negtemp_data.storage.local import LocalStore  # noqa: PLC0415

    return LocalStore(path, tmp)
