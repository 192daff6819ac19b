"""Committed rows as an iterable torch data set: mapped, shuffled by shard, resumable.

Shards are dealt out among the workers of a DataLoader. `state_dict` and `load_state_dict` are the
protocol of torchdata's StatefulDataLoader, which keeps the position of each worker; with torch's
own DataLoader the position is known where `num_workers` is 0.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.dlpack import from_dlpack

from negtemp_data.storage import Store


class TorchRows(IterableDataset[dict[str, Any]]):
    """Rows as dicts; lists of numbers are tensors on the file's pages, all else Python objects.

    The pages are private: what is written to a tensor never reaches the file.
    """

    def __init__(
        self, store: Store, names: Sequence[str], columns: Sequence[str], seed: int | None
    ) -> None:
        """See `CommittedRows.torch`."""
        self._store = store
        self._names = list(names)
        self._columns = list(columns)
        self._seed = seed
        self._epoch = self._position = self._start = 0

    def state_dict(self) -> dict[str, int]:
        """Where this worker is: the epoch, and the rows that it has given out in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on at `state`."""
        self._epoch, self._start = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows of one epoch: all of them, or those after the state that was loaded last."""
        self._position = n_skipped = self._start
        self._start = 0
        for shard in self._own_shards():
            rows = _MappedShard(self._store, self._names[shard], self._columns)
            order = self._shuffle(rows.n_rows, shard + 1)
            for row in order[n_skipped:]:
                # Before the row is given out: a state that is saved then goes on after it.
                self._position += 1
                yield rows.read(row)
            n_skipped = max(0, n_skipped - rows.n_rows)
        self._epoch, self._position = self._epoch + 1, 0

    def _own_shards(self) -> list[int]:
        worker = get_worker_info()
        shards = self._shuffle(len(self._names), 0)
        return shards if worker is None else shards[worker.id :: worker.num_workers]

    def _shuffle(self, n: int, stream: int) -> list[int]:
        """0…n−1 in the order of this epoch; `stream` keeps shuffles apart."""
        if self._seed is None:
            return list(range(n))
        generator = np.random.default_rng([self._seed, self._epoch, stream])
        return [int(i) for i in generator.permutation(n)]


class _MappedShard:
    """Random access to the rows of one shard's file."""

    def __init__(self, store: Store, name: str, columns: Sequence[str]) -> None:
        # Private pages: torch knows no read-only tensors, and writing to one must not crash.
        with pa.ipc.open_stream(store.load_private(name)) as reader:
            self._batches = [batch.select(columns) for batch in reader]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.n_rows = self._ends[-1] if self._ends else 0

    def read(self, row: int) -> dict[str, Any]:
        index = bisect_right(self._ends, row)
        batch = self._batches[index]
        offset = row - (self._ends[index] - batch.num_rows)
        return {name: _to_value(batch.column(name)[offset]) for name in batch.schema.names}


def _to_value(scalar: pa.Scalar) -> Any:
    is_numbers = pa.types.is_list(scalar.type) and pa.types.is_primitive(scalar.type.value_type)
    if is_numbers and scalar.is_valid and scalar.values.null_count == 0:
        return from_dlpack(scalar.values)
    return scalar.as_py()
