"""Processes of a run killed at random moments: whatever dies, nothing finished is made again.

Two of five kills wait until the run has moved on, so that it gets somewhere and what is killed has
rows in flight; the others come at any moment of its start.
"""

import json
import random
import time
from collections import deque

import pytest
from runs import (
    SAMPLES,
    Command,
    assert_complete,
    assert_gone,
    digests,
    family,
    kept_rows,
    kill,
    read_events,
    safe_files,
    wait_until,
    workers,
    write_job,
)

N_PROMPTS = 24
MAX_TOKENS = 200
N_KILLS = 10
LONGEST_START_S = 12
KINDS = {"everything": 2, "worker": 6, "driver": 2, "ray": 1}


def kill_something(kind, process):
    """Kills a part of a run; all of it while it starts and has no workers yet."""
    members = family(process)
    victims = {
        "worker": workers(process),
        "driver": members[:1],
        "ray": [p for p in members if p.name() in ("raylet", "gcs_server")],
        "everything": members,
    }
    kill(victims[kind] if victims["worker"] else members)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("seed", "n_kills"),
    # Several runs instead of a long one, so that each is a few minutes.
    [(0, 2), *(pytest.param(seed, N_KILLS, marks=pytest.mark.slow) for seed in range(1, 6))],
)
def test_random_kills_lose_nothing_and_repeat_only_seconds(
    tiny_model, negtemp, tmp_path, seed, n_kills
):
    rng = random.Random(seed)
    drawn = rng.choices([*KINDS], [*KINDS.values()], k=n_kills - 2)
    kinds = deque(("everything", "worker", *drawn))
    while kinds:  # a fast machine is through with an output before all of them are played
        folder = tmp_path / f"{len(kinds)}-left"
        folder.mkdir()
        # A kill lets two or three seconds of rows get done; there must be rows for all of them.
        n_prompts = N_PROMPTS * max(1, len(kinds) // 5)
        job = write_job(folder, tiny_model, n_prompts, max_tokens=MAX_TOKENS)
        play(job, folder / "out", n_prompts, kinds, rng, negtemp)
    print(f"{n_kills} kills")


def play(job, out, n_prompts, kinds, rng, negtemp):
    """Kills runs of a job until it is made or all kinds are played; then resumes and checks it."""
    kept, committed, safe, process, all_members = {}, {}, set(), None, []
    waits = iter(range(len(kinds)))

    def has_moved_on():
        return process.poll() is not None or (safe_files(out) - safe and workers(process))

    def has_new_engine():
        return len(read_events(out, "engine_starts")) > n_starts or process.poll() is not None

    while kinds:
        if process is None:
            process = Command("run", job)
        if next(waits) % 5 > 1:
            time.sleep(rng.uniform(0, LONGEST_START_S))
        else:
            wait_until(has_moved_on)
            time.sleep(rng.uniform(0, 3))
        if process.poll() is not None:
            break
        members = family(process)
        all_members += members
        n_starts = len(read_events(out, "engine_starts"))
        kind = kinds.popleft()
        kill_something(kind, process)
        if kind == "worker":
            wait_until(has_new_engine)
        if process.poll() == 0:
            break  # the worker had nothing left to do
        if kind != "worker" or process.poll() is not None:
            stderr = process.end()
            assert process.returncode != 0 and "Traceback" not in stderr, stderr
            process = None
        now = kept_rows(out)
        assert kept.items() <= now.items(), "a row that was kept has changed, or is gone"
        assert committed.items() <= digests(out).items(), "a committed shard has changed"
        kept, committed, safe = now, digests(out), safe_files(out)
    if process is not None:
        stderr = process.end(300)
        assert process.returncode == 0 and "Traceback" not in stderr, stderr
        kept, committed = kept_rows(out), digests(out)
    last = negtemp("resume", str(out), "--json")
    assert last.returncode == 0 and "Traceback" not in last.stderr, last.stderr
    rows = assert_complete(negtemp, out, n_prompts, committed)
    assert kept.items() <= dict(zip(rows["id"], rows["completion"], strict=True)).items()
    missing = n_prompts * SAMPLES - len(kept)
    made = json.loads(last.stdout)["tokens"] / MAX_TOKENS
    print(f"{len(kinds)} kills to go; the last run had {missing} rows to make, and made {made:g}")
    # Workers outlive a killed driver for a moment, and go on keeping rows.
    assert made <= missing, "rows were made again"
    # Ray's own agents take up to a minute to see that their raylet is gone.
    assert_gone(all_members, deadline_s=120)
