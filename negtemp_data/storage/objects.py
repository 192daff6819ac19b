"""An object store behind fsspec: s3://, gs://, az://.

An object appears whole or not at all, and the commit is a conditional PUT: create, if absent. Only
file systems are taken that are known to ask their server for it, because fsspec's own `create`
looks first and then writes; and the server is tried before anything is written, because some accept
the condition and ignore it. Addresses and keys are those of the usual environment variables.
"""

import errno
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

import pyarrow as pa

from negtemp_data.errors import OutputError, StorageError
from negtemp_data.storage.store import Store


class _Kind(NamedTuple):
    """A kind of object store whose file system does a conditional PUT."""

    library: str
    """Its module."""
    install: str
    """What brings its library."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Arguments of a conditional PUT."""


# Source: s3fs 2026.9, core.py, `_pipe_file`: If-None-Match; gcsfs 2026.10, core.py,
# `simple_upload` and `initiate_upload`: ifGenerationMatch=0; adlfs 2026.8, spec.py, `_pipe_file`:
# upload_blob(overwrite=False), which sends If-None-Match.
_S3 = _Kind(
    "s3fs",
    "'negtemp-data[s3]'",
    # One PUT, up to S3's 5 GB: s3fs would upload 100 MB in parts, whose completion is another
    # request, and not the one that was tried.
    MappingProxyType({"chunksize": 5 * 2**30}),
)
_KINDS = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _Kind("gcsfs", "'negtemp-data[gcs]'"),
    "gcs": _Kind("gcsfs", "'negtemp-data[gcs]'"),
    "az": _Kind("adlfs", "adlfs"),
    "abfs": _Kind("adlfs", "adlfs"),
}

_WILDCARDS = frozenset("*?[]")


def check_uri(uri: str) -> str:
    """`uri` as `ObjectStore` takes it.

    Raises:
        OutputError: Of another kind, without a bucket, with wildcards, or its library is missing.
    """
    scheme, _, path = uri.partition("://")
    if scheme not in _KINDS:
        raise OutputError(
            f"{uri}: an output can't be on {scheme}://, which has no conditional PUT that is known "
            "to work; accepted are a folder, and s3://, gs:// and az:// URIs."
        )
    path = path.rstrip("/")
    if not path.partition("/")[0] or _WILDCARDS.intersection(path):
        raise OutputError(
            f"{uri}: must name a bucket, and a folder in it if you like, without any of * ? [ ]."
        )
    if find_spec(_KINDS[scheme].library) is None:
        raise OutputError(
            f"{uri}: outputs on {scheme}:// need {_KINDS[scheme].library}, which is not installed; "
            f"run pip install {_KINDS[scheme].install}."
        )
    return f"{scheme}://{path}"


class _File:
    """An open object whose errors are a store's, too; what Arrow asks of a file."""

    def __init__(self, file: Any, reading: Callable[[], AbstractContextManager[None]]) -> None:
        self._file, self._reading = file, reading
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, n_bytes: int) -> bytes:
        with self._reading():
            data: bytes = self._file.read(n_bytes)
        return data


class ObjectStore(Store):
    """Objects whose keys begin alike; folders are what slashes in keys make of them."""

    def __init__(self, uri: str, tmp: str = "tmp") -> None:
        """Opens nothing yet; `uri` has no slash at its end."""
        self.root = uri
        self._tmp = tmp

    @property
    def _fs(self) -> Any:
        # fsspec keeps instances, one for each process that forks. Listings are never kept: other
        # machines write here too.
        import fsspec  # noqa: PLC0415

        return fsspec.filesystem(self.root.partition("://")[0], use_listings_cache=False)

    @property
    def _folder(self) -> str:
        path: str = self._fs._strip_protocol(self.root)
        return path

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def at(self, name: str) -> "ObjectStore":
        """See `Store`."""
        return ObjectStore(self.where(name))

    def prepare(self, folders: Iterable[str]) -> None:
        """See `Store`; an object store has no folders."""
        probe = f"{self._tmp}/{uuid4().hex}"
        try:
            created = [self.create(probe, data) for data in (b"first", b"second")]
            is_safe = created == [True, False] and self.read(probe) == b"first"
            self.remove([probe])
        except (StorageError, OSError) as error:
            reason = _reason(error.__cause__ or error)
            raise OutputError(
                f"{self.root}: no object can be created there: {reason}; check the bucket's name, "
                "the endpoint, the keys and their rights, or choose another --out."
            ) from error
        if not is_safe:
            raise OutputError(
                f"{self.root}: the store ignores conditional PUTs (If-None-Match), so that two "
                "writers could overwrite each other; choose another --out, or a store that has "
                "them."
            )

    def make(self) -> None:
        """See `Store`."""

    def entries(self) -> list[str]:
        """See `Store`."""
        return sorted(name for name, _, _ in self._list())

    def sizes(self) -> dict[str, int]:
        """See `Store`."""
        return {name: size for name, kind, size in self._list() if kind == "file"}

    def _list(self) -> Iterator[tuple[str, str, int]]:
        path = self._folder
        with suppress(FileNotFoundError), self._reading(""):
            for entry in self._fs.ls(path, detail=True):
                # A console's placeholder for a folder is an object with the folder's own name.
                name = entry["name"].rstrip("/").removeprefix(f"{path}/")
                if name != path:
                    yield name, entry["type"], entry["size"] or 0

    def exists(self, name: str) -> bool:
        """See `Store`."""
        with suppress(FileNotFoundError), self._reading(name):
            return bool(self._fs.info(self._path(name))["type"] == "file")
        return False

    def read(self, name: str) -> bytes:
        """See `Store`."""
        with self._reading(name):
            data: bytes = self._fs.cat_file(self._path(name))
        return data

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """See `Store`; many requests at a time."""
        wanted = list(names)
        found = {}
        with self._reading(""):
            # Not `cat`, which first asks for each object whether it is there.
            paths = [self._path(name) for name in wanted]
            answers = self._fs.cat_ranges(paths, None, None, on_error="return")
            for name, answer in zip(wanted, answers, strict=True):
                if isinstance(answer, bytes):
                    found[name] = answer
                elif not isinstance(answer, FileNotFoundError):
                    raise answer
        return found

    def load(self, name: str) -> pa.Buffer:
        """See `Store`."""
        return pa.py_buffer(self.read(name))

    def load_private(self, name: str) -> pa.Buffer:
        """See `Store`."""
        return pa.py_buffer(bytearray(self.read(name)))

    def open(self, name: str) -> pa.NativeFile:
        """See `Store`."""
        with self._reading(name):
            file = self._fs.open(self._path(name), "rb", cache_type="none")
        return pa.PythonFile(_File(file, partial(self._reading, name)), "r")

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`."""
        kind = _KINDS.get(self.root.partition("://")[0])
        try:
            options = kind.options if kind else {}
            self._fs.pipe_file(self._path(name), data, mode="create", **options)
        except FileExistsError:
            return False
        except Exception as error:
            # An answer got lost, or a store words its refusal in a way that fsspec does not know:
            # what counts is whether the object is there.
            with suppress(StorageError):
                if self.exists(name):
                    return False
            raise self._refused(name, error) from error
        return True

    def replace(self, name: str, data: bytes) -> None:
        """See `Store`."""
        try:
            self._fs.pipe_file(self._path(name), data)
        except Exception as error:
            raise self._refused(name, error) from error

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`; uploads a temporary file of this machine."""
        # Not fsspec's own file for writing, which uploads what it has when the block fails.
        with tempfile.NamedTemporaryFile() as file:
            yield file  # type: ignore[misc]  # a wrapper, not a BinaryIO by name
            file.flush()
            try:
                self._fs.put_file(file.name, self._path(name))
            except Exception as error:
                raise self._refused(name, error) from error

    def append(self, name: str, line: bytes) -> None:
        """See `Store`; objects can't grow, so that each line is an object below `name`."""
        self.create(f"{name}/{time.time_ns():020d}-{uuid4().hex[:8]}", line)

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`."""
        paths = [self._path(name) for name in names]
        with self._clearing():
            try:
                self._fs.rm(paths)
            except FileNotFoundError:  # some stop at the first one that is not there
                for path in paths:
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(path)

    def remove_tree(self, name: str = "") -> None:
        """See `Store`."""
        with self._clearing(), suppress(FileNotFoundError):
            self._fs.rm(self._path(name) if name else self._folder, recursive=True)

    def clean_tmp(self) -> None:
        """See `Store`; an upload that was cut off has left no object."""

    @contextmanager
    def _clearing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise StorageError(
                f"{self.root}: can't be cleared: {_reason(error)}; remove it by hand, or choose "
                "another --out."
            ) from error

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        where = self.where(name).rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "No such object", where) from error
        except Exception as error:  # each library below fsspec has exceptions of its own
            raise StorageError(
                f"{where}: can't be read: {_reason(error)}; check the endpoint, the keys and their "
                "rights."
            ) from error

    def _refused(self, name: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.where(name)}: can't be written: {_reason(error)}; check the endpoint, the keys "
            "and their rights, then run `negtemp resume` on this output; what is committed is safe."
        )


def _reason(error: BaseException) -> str:
    """What a library says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
