"""Files that are damaged while no run is there: mended by the next one, or named with the cure."""

import json
import random
import shutil

import pytest
from runs import (
    Command,
    assert_complete,
    digests,
    family,
    kept_files,
    kill,
    read_events,
    wait_until,
    write_job,
)

pytestmark = pytest.mark.slow

N_PROMPTS = 32


@pytest.fixture(scope="module")
def interrupted(tiny_model, tmp_path_factory):
    """An output with committed shards, and rows of others that are kept."""
    folder = tmp_path_factory.mktemp("interrupted")
    out = folder / "out"
    job = write_job(folder, tiny_model, N_PROMPTS, max_tokens=200)
    for n_committed in range(5, N_PROMPTS // 2 - 3, 2):
        process = Command("run", job)
        wait_until(lambda n=n_committed: len(digests(out)) >= n and kept_files(out), process)
        kill(family(process))  # at once: a run that is stopped politely may finish what is open
        process.end()
        # Until the last process is dead, shards are committed and what was kept is removed.
        if kept_files(out):
            break
    assert kept_files(out) and len(digests(out)) < N_PROMPTS // 2
    return out


@pytest.fixture
def out(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "out")


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path, place=0.5):
    """One bit of a file turns."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


def assert_refused(done, *words):
    """A run that stopped with one clear paragraph."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_damage_is_mended_by_the_resume_or_named_with_its_cure(out, negtemp):
    run = out / "_run"
    # What costs rows is named, and nothing is begun before the user has decided.
    shards = [out / name for name in sorted(digests(out))]
    for shard, damage in zip(shards[:2], (cut, empty), strict=True):
        damage(shard)
        assert_refused(negtemp("resume", str(out)), str(shard), "delete this file")
        shard.unlink()
    cut(run / "plan.json")
    assert_refused(negtemp("resume", str(out)), str(run / "plan.json"), "delete it")
    (run / "plan.json").unlink()
    flip(shards[2])  # only a look at every byte finds this one
    assert_refused(negtemp("check", str(out)), f"{shards[2].name}: ", "delete this file")
    shards[2].unlink()
    # What can be made again from the shards is.
    before = digests(out)
    ledger = [run / "shards" / f"{name[6:11]}.json" for name in sorted(before)]
    cut(ledger[0])
    ledger[1].unlink()
    damaged = kept_files(out)[0]
    flip(damaged)
    cut(out / "state.json")
    empty(out / "dataset_info.json")
    (out / "README.md").unlink()
    (run / "tmp" / "left").write_bytes(b"by a killed run")
    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0 and "Traceback" not in resumed.stderr, resumed.stderr
    assert_complete(negtemp, out, N_PROMPTS, before)
    assert [event["files"] for event in read_events(out, "wip_damaged")] == [[damaged.name]]


def test_a_lost_plan_is_not_made_from_other_prompts(out, negtemp, tmp_path):
    (out / "_run" / "plan.json").unlink()
    job = out / "_run" / "job.yaml"
    prompts = out.parent / "prompts.jsonl"
    source = tmp_path / "prompts.jsonl"
    rows = [{"id": f"q{i}", "prompt": f"Tell me about {i}."} for i in range(N_PROMPTS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = job.read_text().splitlines()
    lines = [f"  source: {prompts}" if "source: " in line else line for line in lines]
    job.write_text("\n".join(lines) + "\n")
    assert_refused(negtemp("resume", str(out)), "the prompts themselves have changed")


def test_a_run_does_not_go_on_with_another_model(out, negtemp, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    flip(other / "model.safetensors", 0.999)
    job = out / "_run" / "job.yaml"
    job.write_text(job.read_text().replace(str(tiny_model), str(other)))
    assert_refused(negtemp("resume", str(out)), "generate.model: its files have changed")


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_anywhere_is_mended_or_named(out, negtemp, seed):
    rng = random.Random(seed)
    before = digests(out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.parent.name != "logs")
    path = rng.choice(files)
    kind = rng.choice(("cut", "empty", "overwrite", "flip", "delete"))
    if kind == "flip":
        flip(path, rng.random())
    elif kind == "delete":
        path.unlink()
    else:
        {"cut": cut, "empty": empty, "overwrite": overwrite}[kind](path)
    what = f"{kind} {path.relative_to(out)}"
    resumed = negtemp("resume", str(out))
    checked = negtemp("check", str(out))
    for done in (resumed, checked):
        assert "Traceback" not in done.stderr, f"{what}: {done.stderr}"
    before.pop(path.name, None)
    if resumed.returncode == 0 and checked.returncode == 0:
        assert_complete(negtemp, out, N_PROMPTS, before)
    else:
        said = resumed.stderr + checked.stderr
        assert path.name in said, f"{what}: {said}"
        assert before.items() <= digests(out).items(), what
