"""Where rows go: Arrow shards that are committed once, their ledger, and what makes a data set.

    rows ─ WipWriter ─ build_shard ─ commit_shard ─ describe_shard ─ write_entry ─ write_layout

A shard's file is its commit; ledger, layout and card are made from the shards at any time. Knows
nothing of how rows come about.
"""

from negtemp_data.storage.account import ShardAccount
from negtemp_data.storage.card import render_card, write_card
from negtemp_data.storage.check import CheckReport, check_output
from negtemp_data.storage.layout import write_layout
from negtemp_data.storage.ledger import (
    ShardEntry,
    describe_shard,
    read_entry,
    read_ledger,
    rebuild_ledger,
    write_entry,
)
from negtemp_data.storage.lock import Lock, hold_lock, is_held
from negtemp_data.storage.output import JOB_FILE, Output, shard_name
from negtemp_data.storage.samples import read_rows
from negtemp_data.storage.schema import (
    ATTEMPT_COLUMNS,
    COLUMNS,
    ROW_SCHEMA,
    STATUSES,
    Status,
    generated_tokens,
    rows_to_table,
)
from negtemp_data.storage.shards import build_shard, commit_shard, encode_shard, read_batches
from negtemp_data.storage.store import Store, open_store
from negtemp_data.storage.summary import ArmTotals, Totals, summarise
from negtemp_data.storage.wip import WipRows, WipWriter, read_wip, remove_wip, wip_shards

__all__ = [
    "ATTEMPT_COLUMNS",
    "COLUMNS",
    "JOB_FILE",
    "ROW_SCHEMA",
    "STATUSES",
    "ArmTotals",
    "CheckReport",
    "Lock",
    "Output",
    "ShardAccount",
    "ShardEntry",
    "Status",
    "Store",
    "Totals",
    "WipRows",
    "WipWriter",
    "build_shard",
    "check_output",
    "commit_shard",
    "describe_shard",
    "encode_shard",
    "generated_tokens",
    "hold_lock",
    "is_held",
    "open_store",
    "read_batches",
    "read_entry",
    "read_ledger",
    "read_rows",
    "read_wip",
    "rebuild_ledger",
    "remove_wip",
    "render_card",
    "rows_to_table",
    "shard_name",
    "summarise",
    "wip_shards",
    "write_card",
    "write_entry",
    "write_layout",
]
