"""Finds, opens and digests the files behind `prompts.source`.

A local path is opened without fsspec, which takes its time to load. Knows the formats by extension
only, and nothing of rows.
"""

import glob
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from negtemp_data.errors import PromptSourceError
from negtemp_data.jobspec import PromptsConfig

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
}
"""Format of a file, by its extension in lower case."""

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of prompts."""

    name: str
    """Base name; where two files share one, the path from the folder that all have in common."""
    path: str
    """Path in its file system."""
    format: str
    """One of the values of `FORMATS`."""
    filesystem: Any = None
    """fsspec file system; None: the local one, without fsspec."""

    def open(self) -> BinaryIO:
        """Opens the file for reading bytes; the handle can seek if its file system can."""
        if self.filesystem is None:
            return open(self.path, "rb")
        # fsspec's own files have no readline(size).
        return io.BufferedReader(self.filesystem.open(self.path, "rb"))

    def digest(self) -> str:
        """Hash of the file's bytes, or its etag where the store has one."""
        if self.filesystem is not None:
            # Not fs.ukey: by default it hashes all of info(), times included.
            # Source: fsspec 2026.9, spec.py; blob_id is huggingface_hub's name for it.
            info = self.filesystem.info(self.path)
            for key in ("ETag", "etag", "blob_id"):
                if info.get(key):
                    return str(info[key])
        hasher = hashlib.blake2b(digest_size=16)
        with self.open() as handle:
            while block := handle.read(_BLOCK_BYTES):
                hasher.update(block)
        return hasher.hexdigest()


def find_files(source: str) -> list[SourceFile]:
    """The files that `source` stands for, sorted by path.

    A directory stands for its direct children of known extension that are not hidden.

    Raises:
        PromptSourceError: There are none, their extension is unknown, or the URI can't be opened.
    """
    if "://" in source:
        filesystem, paths = _find_remote(source)
        # A URL may end in a query: data.jsonl?download=true.
        clean = [path.partition("?")[0] for path in paths]
    else:
        filesystem, paths = None, _find_local(os.path.expanduser(source))
        clean = paths
    if not paths:
        where = source if filesystem is not None else os.path.abspath(source)
        raise PromptSourceError(
            f"prompts.source: found no file, no directory with files of a known format, and no "
            f"match of a glob at {where}; known are {', '.join(FORMATS)}."
        )
    return [
        SourceFile(name, path, _format_of(plain), filesystem)
        for name, path, plain in zip(_names_of(clean), paths, clean, strict=True)
    ]


def source_digest(config: PromptsConfig) -> str:
    """Hash of the names and bytes of all files of a source; where they lie has no part in it.

    Raises:
        PromptSourceError: The files can't be found or read.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for file in find_files(config.source):
        try:
            digest = file.digest()
        except OSError as error:
            raise PromptSourceError(f"{file.path}: can't be read: {error}.") from error
        hasher.update(json.dumps([file.name, digest]).encode())
    return hasher.hexdigest()


def _find_local(source: str) -> list[str]:
    # A file may have brackets in its name, so it comes before the glob.
    if os.path.isfile(source):
        return [source]
    if os.path.isdir(source):
        paths = [os.path.join(source, name) for name in os.listdir(source) if _is_listed(name)]
    else:
        paths = glob.glob(source, recursive=True)
    return sorted(path for path in paths if os.path.isfile(path))


def _find_remote(source: str) -> tuple[Any, list[str]]:
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415

        filesystem, path = url_to_fs(source)
        # It may remember, with their etags, files that have changed since.
        filesystem.invalidate_cache()
        # isfile first: asking HTTP for a directory downloads it.
        if filesystem.isfile(path):
            return filesystem, [path]
        if filesystem.isdir(path):
            paths = [
                child["name"]
                for child in filesystem.ls(path, detail=True)
                if child["type"] == "file" and _is_listed(os.path.basename(child["name"]))
            ]
        else:
            paths = [p for p in filesystem.glob(path) if filesystem.isfile(p)]
    except Exception as error:  # Each file system behind fsspec raises exceptions of its own.
        raise PromptSourceError(
            f"prompts.source: {source} can't be opened: {type(error).__name__}: {error}."
        ) from error
    return filesystem, sorted(paths)


def _is_listed(name: str) -> bool:
    return not name.startswith(".") and _extension_of(name) in FORMATS


def _extension_of(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _format_of(path: str) -> str:
    try:
        return FORMATS[_extension_of(path)]
    except KeyError:
        raise PromptSourceError(
            f"prompts.source: {path} has the unknown extension {_extension_of(path)!r}; "
            f"accepted are {', '.join(FORMATS)}."
        ) from None


def _names_of(paths: Sequence[str]) -> list[str]:
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        root = os.path.commonpath(paths)
        names = [os.path.relpath(path, root) for path in paths]
    # Names become part of ids, which hold no control characters and have to be valid Unicode.
    return ["".join(c if c.isprintable() else "?" for c in name) for name in names]
