"""The output folder: where its files are, and the small ones that describe the run.

Shards are written by `shards`, their accounts by `ledger`; here are only their names.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from negtemp_data.errors import OutputError, StorageError
from negtemp_data.jobspec.fingerprint import Fingerprint, differences
from negtemp_data.storage.atomic import explain_error, replace_file

_SHARD_FILE = re.compile(r"shard-(\d{5,})\.arrow")


def shard_name(index: int) -> str:
    """File name of a shard: `shard-00000.arrow`."""
    return f"shard-{index:05d}.arrow"


class Output:
    """An output folder on a local file system. Holds nothing but its path, so it pickles.

    Raises:
        OutputError: The path is a URL.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "://" in os.fspath(path):
            raise OutputError(
                f"{path}: outputs on object stores are not supported yet; give a folder of a "
                "local or mounted file system."
            )
        # Workers on other machines have working directories of their own.
        self.root = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Output({str(self.root)!r})"

    @property
    def run(self) -> Path:
        """Folder of everything that is not the data set itself; it marks a negtemp output."""
        return self.root / "_run"

    @property
    def tmp(self) -> Path:
        """Folder of files that are being written."""
        return self.run / "tmp"

    @property
    def shards(self) -> Path:
        """Folder of the ledger: one JSON file per committed shard."""
        return self.run / "shards"

    @property
    def wip(self) -> Path:
        """Folder of rows whose shard is not finished."""
        return self.run / "wip"

    @property
    def logs(self) -> Path:
        """Folder of log files."""
        return self.run / "logs"

    @property
    def job_path(self) -> Path:
        """The resolved job."""
        return self.run / "job.yaml"

    @property
    def fingerprint_path(self) -> Path:
        """What the data set is made from."""
        return self.run / "fingerprint.json"

    @property
    def events_path(self) -> Path:
        """What happened in the runs, one JSON object a line."""
        return self.run / "events.jsonl"

    @property
    def progress_path(self) -> Path:
        """How far the run under way is, by its own account."""
        return self.run / "progress.json"

    @property
    def lock_path(self) -> Path:
        """The lock that a run holds."""
        return self.run / "lock"

    @property
    def lock_holder_path(self) -> Path:
        """Who holds the lock, for people."""
        return self.run / "lock.json"

    @property
    def info_path(self) -> Path:
        """The Hugging Face layout's description of the columns."""
        return self.root / "dataset_info.json"

    @property
    def state_path(self) -> Path:
        """The Hugging Face layout's list of files."""
        return self.root / "state.json"

    @property
    def card_path(self) -> Path:
        """The dataset card."""
        return self.root / "README.md"

    def shard_path(self, index: int) -> Path:
        """The file of a shard."""
        return self.root / shard_name(index)

    def committed_shards(self) -> list[int]:
        """Indices of the shards that are committed, in order."""
        if not self.root.is_dir():
            return []
        matches = (_SHARD_FILE.fullmatch(name) for name in os.listdir(self.root))
        return sorted(int(match[1]) for match in matches if match)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.fingerprint_path.is_file()

    def create(self) -> None:
        """Makes the folders, where they are missing.

        Raises:
            OutputError: The path is a file, can't be written, or holds files of someone else.
        """
        try:
            if self.root.is_dir() and not self.run.is_dir() and any(self.root.iterdir()):
                raise OutputError(
                    f"{self.root}: the folder has files in it and is no negtemp output; choose "
                    "another --out, or an empty folder."
                )
            for folder in (self.tmp, self.shards, self.wip, self.logs):
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

    def reset(self) -> None:
        """Removes all that runs have written here and nothing else; `create` starts over.

        Call it with the lock held: the lock's own files stay, so that no second run slips in.

        Raises:
            StorageError: Something can't be removed.
        """
        if not self.run.is_dir():
            return
        # What lists the shards goes before them; the fingerprint goes last, so that an output that
        # is only half removed still refuses another job.
        files = [self.state_path, self.info_path, self.card_path]
        files += [self.shard_path(index) for index in self.committed_shards()]
        kept = (self.lock_path, self.lock_holder_path, self.fingerprint_path)
        try:
            for path in files:
                path.unlink(missing_ok=True)
            for path in self.run.iterdir():
                if path not in kept:
                    _remove(path)
            self.fingerprint_path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.root}: can't be cleared: {error}; remove the folder by hand, or choose "
                "another --out."
            ) from error

    def clean_tmp(self) -> None:
        """Removes what a killed run left half written. Call it with the lock held."""
        for path in self.tmp.iterdir():
            _remove(path)

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file of this output, atomically.

        Raises:
            StorageError: The disk refused.
        """
        replace_file(path, text.encode(), self.tmp)

    def write_json(self, path: Path, data: Any) -> None:
        """Writes `data` as JSON to a file of this output, atomically.

        Raises:
            StorageError: The disk refused.
        """
        self.write_text(path, json.dumps(data, indent=2) + "\n")

    def write_job(self, text: str) -> None:
        """Saves the resolved job, as YAML."""
        self.write_text(self.job_path, text)

    def read_job(self) -> str:
        """The resolved job, as YAML.

        Raises:
            OutputError: There is none.
        """
        return self._read(self.job_path)

    def write_fingerprint(self, fingerprint: Fingerprint) -> None:
        """Saves what the data set is made from; from now on the output `exists`."""
        self.write_json(self.fingerprint_path, asdict(fingerprint))

    def read_fingerprint(self) -> Fingerprint:
        """What the data set is made from.

        Raises:
            OutputError: There is none, or it can't be read.
        """
        text = self._read(self.fingerprint_path)
        try:
            return Fingerprint(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise OutputError(
                f"{self.fingerprint_path}: is no fingerprint ({error}); start over with --fresh, "
                "or choose another --out."
            ) from error

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces what the run under way says of itself.

        Raises:
            StorageError: The disk refused.
        """
        self.write_json(self.progress_path, progress)

    def read_progress(self) -> Any:
        """What the last run said of itself, JSON of whatever kind; None: nothing readable."""
        try:
            return json.loads(self.progress_path.read_bytes())
        except (OSError, ValueError):
            return None

    def check_fingerprint(self, new: Fingerprint) -> None:
        """Refuses a job whose rows would differ from those that are here.

        Raises:
            OutputError: The message names the fields that differ.
        """
        changes = differences(self.read_fingerprint(), new)
        if changes:
            raise OutputError(
                f"{self.root}: was made by another job: {'; '.join(changes)}. Choose another "
                "--out, or start over with --fresh, which deletes what is there."
            )

    def append_event(self, kind: str, **fields: Any) -> None:
        """Notes that something happened, with the time (UTC), as one line of JSON.

        Raises:
            StorageError: The disk refused.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind, **fields}) + "\n"
        try:
            # One write to a file opened for appending: lines of several processes do not mix.
            descriptor = os.open(self.events_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"{explain_error(self.events_path, error)}.") from error

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.root}: is no negtemp output: {path.relative_to(self.root)} is missing; "
                "give the folder that `negtemp run` wrote."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{path}: can't be read: {error}.") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
