"""The output: where its files are, and the small ones that describe the run.

Shards are written by `shards`, their accounts by `ledger`; here are only their names.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from negtemp_data.errors import OutputError, StorageError
from negtemp_data.jobspec.fingerprint import Fingerprint, differences
from negtemp_data.storage.local import LocalStore, explain_error
from negtemp_data.storage.store import Store, open_store

RUN = "_run"
"""Folder of everything that is not the data set itself; it marks a negtemp output."""
JOB_FILE = "job.yaml"
"""In the run's folder: the resolved job."""
FINGERPRINT_FILE = "fingerprint.json"
"""In the run's folder: what the data set is made from."""
EVENTS_FILE = "events.jsonl"
"""In the run's folder: what happened in the runs, one JSON object a line."""
PROGRESS_FILE = "progress.json"
"""In the run's folder: how far the run under way is, by its own account."""
LOCK = "lock"
"""In the run's folder: the lock that a run holds; on object stores a folder."""
LOCK_HOLDER_FILE = "lock.json"
"""In the run's folder: who holds the lock, for people; not on object stores."""
INFO_FILE = "dataset_info.json"
"""The Hugging Face layout's description of the columns."""
STATE_FILE = "state.json"
"""The Hugging Face layout's list of files."""
CARD_FILE = "README.md"
"""The dataset card."""

_SHARD_FILE = re.compile(r"shard-(\d{5,})\.arrow")


def shard_name(index: int) -> str:
    """File name of a shard: `shard-00000.arrow`."""
    return f"shard-{index:05d}.arrow"


class Output:
    """An output: a folder, or a place on an object store. It pickles.

    Raises:
        OutputError: No output can be at such a URI.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store: Store = open_store(path, f"{RUN}/tmp")

    def __repr__(self) -> str:
        return f"Output({self.root!r})"

    @property
    def root(self) -> str:
        """Absolute path or URI."""
        return self.store.root

    @property
    def run(self) -> Store:
        """What is not the data set itself."""
        return self.store.at(RUN)

    @property
    def shards(self) -> Store:
        """The ledger: one JSON file per committed shard."""
        return self.run.at("shards")

    @property
    def wip(self) -> Store:
        """Rows whose shard is not finished."""
        return self.run.at("wip")

    @property
    def logs(self) -> Path:
        """Folder of log files: in the run's own, or of this machine where that is on a store."""
        if isinstance(self.run, LocalStore):
            return self.run.folder / "logs"
        name = re.sub(r"[^\w.-]+", "-", self.root)[-80:]
        digest = hashlib.blake2b(self.root.encode(), digest_size=4).hexdigest()
        return user_state_path("negtemp-data") / "logs" / f"{name}-{digest}"

    def shard_sizes(self) -> dict[int, int]:
        """Bytes of the shards that are committed, in order."""
        found = {_shard_of(name): size for name, size in self.store.sizes().items()}
        return {index: found[index] for index in sorted(i for i in found if i is not None)}

    def committed_shards(self) -> list[int]:
        """Indices of the shards that are committed, in order."""
        found = map(_shard_of, self.store.entries())
        return sorted(index for index in found if index is not None)

    def is_committed(self, index: int) -> bool:
        """Whether a shard is committed."""
        return self.store.exists(shard_name(index))

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.run.exists(FINGERPRINT_FILE)

    def create(self) -> None:
        """Makes the folders, where they are missing.

        Raises:
            OutputError: The path is a file, can't be written, or holds files of someone else; or
                the store is not one on which a shard can be committed once.
        """
        try:
            entries = self.store.entries()
        except OSError as error:
            raise OutputError(
                f"{self.root}: can't be read: {error.strerror or error}; choose another --out."
            ) from error
        except StorageError as error:
            raise OutputError(f"{error} Or choose another --out.") from error
        if entries and RUN not in entries:
            raise OutputError(
                f"{self.root}: the folder has files in it and is no negtemp output; choose "
                "another --out, or an empty folder."
            )
        self.store.prepare([f"{RUN}/shards", f"{RUN}/wip"])
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{explain_error(self.logs, error)}.") from error

    def reset(self) -> None:
        """Removes all that runs have written here and nothing else; `create` starts over.

        Call it with the lock held: the lock's own files stay, so that no second run slips in.

        Raises:
            StorageError: Something can't be removed.
        """
        entries = self.run.entries()
        if not entries:
            return
        # What lists the shards goes before them; the fingerprint goes last, so that an output that
        # is only half removed still refuses another job.
        shards = map(shard_name, self.committed_shards())
        self.store.remove([STATE_FILE, INFO_FILE, CARD_FILE, *shards])
        for name in entries:
            if name not in (LOCK, LOCK_HOLDER_FILE, FINGERPRINT_FILE):
                self.run.remove_tree(name)
        self.run.remove([FINGERPRINT_FILE])

    def clean_tmp(self) -> None:
        """Removes what a killed run left half written. Call it with the lock held."""
        self.store.clean_tmp()

    def write_job(self, text: str) -> None:
        """Saves the resolved job, as YAML."""
        self.run.replace(JOB_FILE, text.encode())

    def read_job(self) -> str:
        """The resolved job, as YAML.

        Raises:
            OutputError: There is none.
        """
        return self._read(JOB_FILE)

    def write_fingerprint(self, fingerprint: Fingerprint) -> None:
        """Saves what the data set is made from; from now on the output `exists`."""
        self.run.replace_json(FINGERPRINT_FILE, asdict(fingerprint))

    def read_fingerprint(self) -> Fingerprint:
        """What the data set is made from.

        Raises:
            OutputError: There is none, or it can't be read.
        """
        text = self._read(FINGERPRINT_FILE)
        try:
            return Fingerprint(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise OutputError(
                f"{self.run.where(FINGERPRINT_FILE)}: is no fingerprint ({error}); start over with "
                "--fresh, or choose another --out."
            ) from error

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces what the run under way says of itself.

        Raises:
            StorageError: The disk refused.
        """
        self.run.replace_json(PROGRESS_FILE, progress)

    def read_progress(self) -> Any:
        """What the last run said of itself, JSON of whatever kind; None: nothing readable."""
        try:
            return json.loads(self.run.read(PROGRESS_FILE))
        except (OSError, StorageError, ValueError):
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
        self.run.append(EVENTS_FILE, line.encode())

    def _read(self, name: str) -> str:
        """Text of a file of the run's folder."""
        try:
            return self.run.read(name).decode()
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.root}: is no negtemp output: {RUN}/{name} is missing; give the folder that "
                "`negtemp run` wrote."
            ) from error
        except StorageError as error:
            raise OutputError(str(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{self.run.where(name)}: can't be read: {error}.") from error


def _shard_of(name: str) -> int | None:
    match = _SHARD_FILE.fullmatch(name)
    return int(match[1]) if match else None
