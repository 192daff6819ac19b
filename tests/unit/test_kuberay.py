"""The manifest for KubeRay: valid by the operator's own schema, and complete."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from negtemp_data.api import manifest
from negtemp_data.errors import ClusterError
from negtemp_data.jobspec import load_job

REPOSITORY = Path(__file__).parents[2]
SCHEMA = Path(__file__).parents[1] / "data" / "kuberay_rayjob.schema.json"

ENDPOINT_JUDGE = """{kind: endpoint, url: "http://judge:8000/v1", model: large,
 api_key_env: JUDGE_KEY, criteria: {coherence: {}}, accept_at: 3.0}"""


def closed(schema: Any) -> Any:
    """The schema as Kubernetes applies it with strict validation: unknown fields are errors."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    node = {key: closed(value) for key, value in schema.items()}
    if node.get("type") == "object" and "properties" in schema and "metadata" not in schema:
        node.setdefault("additionalProperties", False)
    return node


def read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the RayJob."""
    config_map, ray_job = YAML(typ="safe", pure=True).load_all(text)
    return config_map, ray_job


def make(
    monkeypatch: pytest.MonkeyPatch, *changes: str, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of the quickstart with changes, read."""
    monkeypatch.chdir(REPOSITORY)
    job = load_job("jobs/quickstart.yaml", ["output.path=/mnt/data/out", *changes])
    return read(manifest(job, volume="claim:/mnt/data", **options))


def test_a_name_that_begins_with_a_digit_gets_a_letter_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ray_job = make(monkeypatch, "name=3d-stories")
    assert ray_job["metadata"]["name"].startswith("job-3d-stories-")


@pytest.mark.parametrize("pip", [None, "cpu", "none"])
def test_the_manifest_is_valid_by_kuberays_schema(
    monkeypatch: pytest.MonkeyPatch, pip: str | None
) -> None:
    _, ray_job = make(monkeypatch, pip=pip)
    schema = closed(json.loads(SCHEMA.read_text(encoding="utf-8")))
    jsonschema_rs.validator_for(schema).validate(ray_job)
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    assert not jsonschema_rs.is_valid(schema, ray_job)


def test_the_config_map_holds_the_bundle_that_the_job_works_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config_map, ray_job = make(monkeypatch)
    [submitter] = ray_job["spec"]["submitterPodTemplate"]["spec"]["containers"]
    runtime_env = json.loads(ray_job["spec"]["runtimeEnvYAML"])
    folder = submitter["volumeMounts"][0]["mountPath"]
    assert runtime_env["working_dir"] == f"{folder}/bundle.zip"
    data = base64.b64decode(config_map["binaryData"]["bundle.zip"])
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert {"job.yaml", "negtemp-prompts/quickstart.jsonl", "negtemp_data/__main__.py"} <= set(
        names
    )


def test_each_engine_has_a_pod_with_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ray_job = make(monkeypatch, "generate.replicas=3", "generate.gpus_per_replica=2")
    [group] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["maxReplicas"]) == (3, 3)
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["image"].endswith("-gpu")
    _, ray_job = make(monkeypatch, "generate.engine.tensor_parallel_size=4")
    [group] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    _, ray_job = make(monkeypatch, "generate.replicas={min: 1, max: 8}")
    assert ray_job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    [group] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 8)
    _, ray_job = make(monkeypatch, pip="cpu")
    [group] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_judges_of_the_same_needs_share_their_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood = {"kind": "likelihood", "model": "org/big", "replicas": 2, "accept_at": -2}
    rubric = {
        "kind": "rubric",
        "model": "org/big",
        "replicas": 2,
        "accept_at": 3,
        "criteria": {"coherence": {}},
    }
    for other, pods in (rubric, 3), (rubric | {"model": "org/small"}, 5):
        judge = json.dumps({"combine": "all", "judges": {"a": likelihood, "b": other}})
        _, ray_job = make(monkeypatch, f"verify.judge={judge}")
        [group] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert group["replicas"] == pods


def test_keys_come_from_a_secret_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "very secret")
    monkeypatch.chdir(REPOSITORY)
    changes = ["output.path=s3://bucket/out", f"verify.judge={ENDPOINT_JUDGE}"]
    text = manifest(load_job("jobs/quickstart.yaml", changes))
    assert "very secret" not in text
    config_map, ray_job = read(text)
    assert b"very secret" not in base64.b64decode(config_map["binaryData"]["bundle.zip"])
    [container] = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ]
    [variable] = container["env"]
    assert variable["name"] == "JUDGE_KEY"
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "negtemp-keys", "key": "JUDGE_KEY"}


def test_an_output_beside_the_volume_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"output\.path: /tmp/out"):
        make(monkeypatch, "output.path=/tmp/out")
    with pytest.raises(ClusterError, match="CLAIM:/PATH"):
        manifest(load_job("jobs/quickstart.yaml"), volume="claim")
