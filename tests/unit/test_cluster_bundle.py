"""What travels to a cluster, and what is refused because the cluster can't see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from negtemp_data.cluster import bundle as bundle_module
from negtemp_data.cluster.bundle import run_command, write_bundle, write_code
from negtemp_data.cluster.pins import uv_field
from negtemp_data.cluster.visibility import Visibility, localise, shared_folders
from negtemp_data.errors import ClusterError, ModelError
from negtemp_data.jobspec import Job, build_job, load_job
from negtemp_data.prompts import read_prompts

HERE = Visibility(is_this_machine=True)
ELSEWHERE = Visibility(is_this_machine=False)


def make_job(folder: Path, **changes: str) -> Job:
    """A job on two prompt files; `changes` are overrides by field."""
    (folder / "prompts").mkdir(exist_ok=True)
    for name in ("a", "b"):
        path = folder / "prompts" / f"{name}.jsonl"
        path.write_text(json.dumps({"id": name, "prompt": f"Say {name}."}) + "\n", encoding="utf-8")
    data = {
        "version": 1,
        "name": "My_job.v2",
        "prompts": {"source": changes.get("source", str(folder / "prompts")), "id": "id"},
        "generate": {
            "model": changes.get("model", "smollm2-135m-instruct"),
            "samples": {"control": 1},
        },
        "schedules": {"control": {}},
        "output": {"path": changes.get("out", str(folder / "out"))},
    }
    return build_job(data, "test")


def test_the_bundle_is_enough_to_read_the_job_and_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    job = make_job(tmp_path)
    bundle = write_bundle(job, folder, HERE)
    for file in (tmp_path / "prompts").iterdir():
        file.unlink()
    monkeypatch.chdir(folder)
    travelled = load_job("job.yaml")
    assert travelled == bundle.job
    assert [prompt.id for prompt in read_prompts(travelled.prompts)] == ["a", "b"]
    assert run_command() == "exec python -m negtemp_data run job.yaml --address auto"
    done = subprocess.run(
        [sys.executable, "-c", "import negtemp_data; print(negtemp_data.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(folder / "negtemp_data" / "__init__.py")


def test_the_id_follows_from_job_and_prompts(tmp_path: Path) -> None:
    ids = []
    for index, out in enumerate(["out", "out", "other"]):
        folder = tmp_path / str(index)
        folder.mkdir()
        ids.append(write_bundle(make_job(tmp_path, out=str(tmp_path / out)), folder, HERE).id)
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("my-job-v2-")
    (tmp_path / "3").mkdir()
    job = make_job(tmp_path)
    (tmp_path / "prompts" / "a.jsonl").write_text('{"id": "c", "prompt": "c"}\n', encoding="utf-8")
    assert write_bundle(job, tmp_path / "3", HERE).id != ids[0]


@pytest.mark.parametrize("field", ["out", "model"])
def test_a_local_path_is_refused_unless_the_cluster_sees_it(tmp_path: Path, field: str) -> None:
    (tmp_path / "data").mkdir()
    job = make_job(tmp_path, **{"out": "s3://bucket/out", field: str(tmp_path / "data")})
    with pytest.raises(ClusterError, match="--shared-path"):
        localise(job, ELSEWHERE)
    assert localise(job, HERE)
    assert localise(job, Visibility(False, (tmp_path,)))


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = localise(make_job(tmp_path, out="out/x"), HERE)
    assert job.output.path == str(tmp_path / "out" / "x")


def test_a_model_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generate\.model: 'no such'"):
        localise(make_job(tmp_path, model="no such"), HERE)


def test_shared_paths_are_absolute() -> None:
    with pytest.raises(ClusterError, match="absolute"):
        shared_folders(["data"])


def test_large_prompt_files_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 20)
    for index, visibility in enumerate([HERE, Visibility(False, (tmp_path,))]):
        folder = tmp_path / str(index)
        folder.mkdir()
        bundle = write_bundle(make_job(tmp_path), folder, visibility)
        assert bundle.job.prompts.source == str(tmp_path / "prompts")
    folder = tmp_path / "2"
    folder.mkdir()
    with pytest.raises(ClusterError, match="put them on a store"):
        write_bundle(make_job(tmp_path, out="s3://bucket/out"), folder, ELSEWHERE)


def test_the_users_own_modules_travel(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / ".git").mkdir(parents=True)
    (mine / "judge.py").write_text("x = 1\n", encoding="utf-8")
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(make_job(tmp_path), folder, HERE, mine)
    assert (folder / "judge.py").is_file()
    assert not (folder / ".git").exists()


def test_a_working_directory_that_is_too_large_is_not_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "bundle"
    for path in (mine, mine / "out", folder):
        path.mkdir()
    (mine / "out" / "shard").write_bytes(bytes(5000))  # left out
    for name in ("a", "b", "c"):
        (mine / name).write_bytes(bytes(600))
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 2000)
    write_code(folder, mine)
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 1000)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ClusterError, match=r"--working-dir .* has more than"):
        write_code(empty, mine)
    assert sum(path.stat().st_size for path in empty.iterdir()) <= 1000


def test_prompts_that_the_job_does_not_name_stay_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    (mine / "negtemp-prompts").mkdir(parents=True)
    old = '{"id": "old", "prompt": "Of a bundle of before."}\n'
    (mine / "negtemp-prompts" / "old.jsonl").write_text(old, encoding="utf-8")
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle = write_bundle(make_job(tmp_path), folder, HERE, mine)
    monkeypatch.chdir(folder)
    assert [prompt.id for prompt in read_prompts(bundle.job.prompts)] == ["a", "b"]


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_pins_are_complete_and_leave_the_clusters_ray_alone(variant: str) -> None:
    field = uv_field(variant)
    assert field is not None
    names = [package.partition("==")[0] for package in field["packages"]]
    assert "ray" not in names
    assert {"torch", "transformers", "pydantic", "click"} <= set(names)
    assert all("==" in package for package in field["packages"])
    assert "--no-deps" in field["uv_pip_install_options"]


def test_requirements_may_be_none_or_a_file(tmp_path: Path) -> None:
    assert uv_field("none") is None
    path = tmp_path / "requirements.txt"
    path.write_text("# mine\nnumpy\n\n", encoding="utf-8")
    assert uv_field(str(path)) == {"packages": ["numpy"]}
    with pytest.raises(ClusterError, match="accepted are cpu, gpu, none"):
        uv_field("tpu")
