"""Machines that leave a cluster under a run.

Ray starts their workers anew where there is room. Where there is none, the shards of those workers
wait for another machine, for ever and without a word; this module gives the waiting an end.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from negtemp_data.pipeline.progress import Tally

_LOOK_EVERY_S = 5.0
_LONGEST_WAIT_S = 60.0
_LONGEST_START_S = 900.0


class LostMachines:
    """Notices that nothing is left to do but what lost machines had begun."""

    def __init__(self, board: Any) -> None:
        """Knows the machines that are there now."""
        self.reason: str | None = None
        """Why the run was ended; None: it was not."""
        self._board = board
        self._known = _alive_machines()

    def look(self) -> bool:
        """Ends the run's workers, and with them the run, if all waits in vain; returns whether."""
        alive = _alive_machines()
        self._known |= alive
        n_lost = len(self._known - alive)
        tally: Tally = ray.get(self._board.read.remote())
        if not n_lost or not is_still(tally, time.time()):
            return False
        self.reason = (
            f"{n_lost} of {len(self._known)} machines left the cluster, and what it was making "
            f"has waited {_LONGEST_WAIT_S:.0f} s for another one with room for a worker"
        )
        for worker in ray.get(self._board.workers.remote()):
            # Ray hands on the failure of a worker's shards only once it may not start it again.
            ray.kill(worker, no_restart=True)
        return True


@contextmanager
def watch_machines(board: Any) -> Iterator[LostMachines]:
    """Looks every few seconds, from a thread of its own, while the block runs."""
    machines = LostMachines(board)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S) and not machines.look():
            pass

    thread = threading.Thread(target=watch, name="machines", daemon=True)
    thread.start()
    try:
        yield machines
    finally:
        stop.set()
        thread.join()


def is_still(tally: Tally, now: float) -> bool:
    """Whether no worker has had a shard under way, and no engine was starting, for a while."""
    starts = [at for at in tally.starting.values() if now - at < _LONGEST_START_S]
    return not starts and now - tally.worked_at > _LONGEST_WAIT_S


def _alive_machines() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
