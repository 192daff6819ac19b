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


def kill_something(what, process):
    """Kills a part of a run under way; returns whether the run itself should end by that."""
    if what == "worker":
        kill(workers(process)[:1])
        return False
    if what == "driver":
        kill(family(process)[:1])
    elif what == "ray":
        kill([p for p in family(process) if p.name() in ("raylet", "gcs_server")])
    else:
        kill(family(process))
    return True


@pytest.mark.parametrize(
    ("seed", "n_kills"),
    [(0, 3), pytest.param(1, 25, marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
     pytest.param(2, 25, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
)  # fmt: skip
def test_random_kills_lose_nothing_and_repeat_only_seconds(
    tiny_model, negtemp, tmp_path, seed, n_kills
):
    rng = random.Random(seed)
    out = tmp_path / "out"
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=MAX_TOKENS)
    # In the quick form each kind once.
    modes = ["everything", "worker", "driver", *rng.choices(
        ["everything", "worker", "driver", "ray"], k=n_kills - 3
    )]  # fmt: skip
    kept, committed, process = {}, {}, None
    for number, what in enumerate(modes):
        if process is None:
            process = start("run", job)
        # Late enough for rows to be kept, so that runs move on; nothing else is certain.
        wait_until(lambda: workers(process) and len(kept_rows(out)) > len(kept), process)
        time.sleep(rng.uniform(0, 3))
        if process.poll() is not None:
            break
        members = family(process)
        ends = kill_something(what, process)
        if ends:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode != 0
            assert what != "ray" or "Traceback" not in stderr, stderr
            assert_gone(members)
            process = None
        else:
            process_workers = members
            wait_until(lambda: not process_workers or read_events(out, "engine_starts"), process)
        now = kept_rows(out)
        # Exactly what was kept is still there: the text of a row never changes.
        assert kept.items() <= now.items(), number
        assert committed.items() <= digests(out).items()
        kept, committed = now, digests(out)
        if len(kept) == N_PROMPTS * SAMPLES:
            break
    if process is not None:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        kept = kept_rows(out)
    last = negtemp("resume", str(out), "--json")
    assert last.returncode == 0 and "Traceback" not in last.stderr, last.stderr
    rows = assert_complete(negtemp, out, N_PROMPTS, committed)
    assert kept.items() <= dict(zip(rows["id"], rows["completion"], strict=True)).items()
    missing = N_PROMPTS * SAMPLES - len(kept)
    assert json.loads(last.stdout)["tokens"] == missing * MAX_TOKENS, "rows were made again"
