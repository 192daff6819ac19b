"""The Hugging Face layout: `datasets.load_from_disk` opens the output at any time of a run.

One process writes it, from the committed shards. Source: datasets 5.2, arrow_dataset.py,
`Dataset.save_to_disk` and `Dataset.load_from_disk`.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negtemp_data.storage.ledger import ShardEntry
from negtemp_data.storage.output import INFO_FILE, STATE_FILE, Output, shard_name
from negtemp_data.storage.schema import ROW_SCHEMA


def write_layout(output: Output, entries: Mapping[int, ShardEntry]) -> None:
    """Writes `dataset_info.json`, unless it is sound, and `state.json`, which lists `entries`.

    Without any shard nothing is written: a data set of no files can't be loaded.

    Raises:
        StorageError: The disk refused.
    """
    if not entries:
        return
    if not describes_columns(output):
        output.store.replace(INFO_FILE, _describe_columns())
    shards = sorted(entries)
    checksums = "".join(entries[shard].checksum for shard in shards)
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard_name(shard)} for shard in shards],
        "_fingerprint": hashlib.blake2b(checksums.encode(), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    output.store.replace_json(STATE_FILE, state)


def describes_columns(output: Output) -> bool:
    """Whether `dataset_info.json` is there and names the columns of a shard."""
    try:
        info = json.loads(output.store.read(INFO_FILE))
        return bool(list(info["features"]) == ROW_SCHEMA.names)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe_columns() -> bytes:
    """Content of `dataset_info.json`, as datasets itself writes it."""
    # Takes seconds to import, and only the first layout of an output needs it.
    from datasets import DatasetInfo, Features

    info = DatasetInfo(features=Features.from_arrow_schema(ROW_SCHEMA))
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder, pretty_print=True)
        return (Path(folder) / INFO_FILE).read_bytes()
