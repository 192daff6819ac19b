"""Processes of a run killed at random moments: whatever dies, nothing finished is made again."""

import json
import random
import time

import pytest
from runs import (
    SAMPLES,
    assert_complete,
    assert_gone,
    digests,
    family,
    kept_rows,
    kill,
    read_events,
    start,
    wait_until,
    workers,
    write_job,
)

N_PROMPTS = 24
MAX_TOKENS = 200
KINDS = ("everything", "worker", "driver", "ray")


def kill_something(kind, process):
    """Kills a part of a run under way."""
    victims = {
        "worker": lambda: workers(process),
        "driver": lambda: family(process)[:1],
        "ray": lambda: [p for p in family(process) if p.name() in ("raylet", "gcs_server")],
        "everything": lambda: family(process),
    }
    kill(victims[kind]())


@pytest.mark.parametrize(
    ("seed", "n_kills"),
    [
        (0, 2),
        pytest.param(1, 25, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(2, 25, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_random_kills_lose_nothing_and_repeat_only_seconds(
    tiny_model, negtemp, tmp_path, seed, n_kills
):
    rng = random.Random(seed)
    out = tmp_path / "out"
    # A kill lets two or three seconds of rows get done; there must be rows for all of them.
    n_prompts = N_PROMPTS * max(1, n_kills // 4)
    job = write_job(tmp_path, tiny_model, n_prompts, max_tokens=MAX_TOKENS)
    kept, committed, process, all_members = {}, {}, None, []

    def has_moved_on():
        return len(kept_rows(out)) > len(kept) and workers(process)

    def has_new_engine():
        return len(read_events(out, "engine_starts")) > n_starts

    for kind in (*KINDS[:2], *rng.choices(KINDS, k=n_kills - 2)):
        if process is None:
            process = start("run", job)
        wait_until(has_moved_on, process)
        time.sleep(rng.uniform(0, 3))
        assert process.poll() is None, f"finished too early: {process.communicate()}"
        members = family(process)
        all_members += members
        n_starts = len(read_events(out, "engine_starts"))
        kill_something(kind, process)
        if kind == "worker":
            wait_until(has_new_engine, process)
            starts = read_events(out, "engine_starts")
            assert starts[-1]["replaces"] in [start["worker"] for start in starts[:-1]]
        else:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode != 0
            if kind == "ray":
                assert process.returncode == 1 and "Traceback" not in stderr, stderr
            process = None
        now = kept_rows(out)
        assert kept.items() <= now.items(), "a row that was kept has changed, or is gone"
        assert committed.items() <= digests(out).items(), "a committed shard has changed"
        kept, committed = now, digests(out)
    if process is not None:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0 and "Traceback" not in stderr, stderr
        kept, committed = kept_rows(out), digests(out)
    last = negtemp("resume", str(out), "--json")
    assert last.returncode == 0 and "Traceback" not in last.stderr, last.stderr
    rows = assert_complete(negtemp, out, n_prompts, committed)
    assert kept.items() <= dict(zip(rows["id"], rows["completion"], strict=True)).items()
    missing = n_prompts * SAMPLES - len(kept)
    # Workers outlive a killed driver for a moment, and go on keeping rows.
    assert json.loads(last.stdout)["tokens"] <= missing * MAX_TOKENS, "rows were made again"
    # Ray's own agents take up to a minute to see that their raylet is gone.
    assert_gone(all_members, deadline_s=120)
