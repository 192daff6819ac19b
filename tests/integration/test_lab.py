"""A judge is measured on samples that are made, and on samples that the user has labelled."""

import json

import pytest

pytestmark = pytest.mark.slow

JOB = """
version: 1
name: measured
seed: 3
prompts: {{source: {prompts}, id: id, limit: 16}}
generate:
  model: smollm2-135m-instruct
  max_tokens: 96
  samples: {{control: 1, negative: 1}}
  engine: {{max_model_len: 1024}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 24}}, temperature: -1.0, support: {{min_p: 0.05}}}}]
verify:
  judge: {{kind: python, function: "judge_by_length:score", accept_at: 100}}
output: {{path: {out}}}
"""

JUDGE = """
def score(sample):
    return len(sample.completion)
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    (tmp_path / "judge_by_length.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell a short story about {i} cats."} for i in range(16))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(prompts=prompts, out=tmp_path / "out"))
    return path


def test_a_judge_is_measured_on_samples_that_are_made(job, negtemp, tmp_path):
    done = negtemp("lab", "judge", str(job), "--prompts", "16", "--json", timeout_s=500)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["n_failed"] == 0
    kinds = report["kinds"]
    assert kinds.keys() == {
        "arm-negative", "unrestricted", "unrestricted-light", "swapped", "shuffled", "other",
        "cut-tenth", "cut-half",
    }  # fmt: skip
    assert all(kind["n"] == report["n_clean"] >= 10 for kind in kinds.values())
    # A judge that counts characters knows what is shorter, and nothing of order.
    assert kinds["cut-half"]["paired"]["value"] == kinds["cut-tenth"]["paired"]["value"] == 1
    assert kinds["shuffled"]["auc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert report["length_bias"] > 0.9
    assert json.loads((tmp_path / "out-lab" / "report.json").read_text()) == report


def test_a_judge_is_measured_on_labelled_samples(job, negtemp, tmp_path):
    samples = tmp_path / "samples.jsonl"
    rows = [{"prompt": "Why?", "completion": "a" * (200 + i), "good": True} for i in range(20)]
    rows += [
        {"prompt": "Why?", "completion": "a" * (100 + 6 * i), "good": False} for i in range(20)
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = negtemp("lab", "judge", str(job), "--samples", str(samples), "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["n_clean"], report["kinds"]["bad"]["n"]) == (20, 20)
    wins = sum(
        (200 + g > 100 + 6 * b) + 0.5 * (g == 6 * b - 100) for g in range(20) for b in range(20)
    )
    assert report["kinds"]["bad"]["auc"]["value"] == pytest.approx(wins / 400)
    assert 200 <= report["threshold"]["accept_at"] <= 219


def test_a_sample_without_a_label_is_refused_with_its_line(job, negtemp, tmp_path):
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"prompt": "p", "completion": "c", "good": true}\n{"prompt": "p"}\n')
    done = negtemp("lab", "judge", str(job), "--samples", str(samples))
    assert done.returncode == 2
    assert "samples.jsonl, line 2: must be an object" in done.stderr


RECOVERY_JOB = """
version: 1
name: recovering
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 40
  min_tokens: 40
  samples: {{control: 1, negative: 1}}
  engine: {{dtype: float32, max_model_len: 1024}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    base: {{temperature: 0.8}}
    inject: [{{when: {{every: 12, start: 4}}, temperature: -1.0, support: all}}]
output: {{path: {out}, shard_rows: 8}}
"""


@pytest.mark.slow
def test_the_recovery_of_an_output_is_measured_by_its_generator_and_by_another_model(
    job, negtemp, tiny_model, tmp_path
):
    out = str(tmp_path / "out")
    job.write_text(
        RECOVERY_JOB.format(prompts=tmp_path / "prompts.jsonl", model=tiny_model, out=out)
    )
    done = negtemp("run", str(job))
    assert done.returncode == 0, done.stderr
    recorded = json.loads(negtemp("lab", "recovery", out, "--json").stdout)
    found = recorded["arms"]["negative"]
    assert (found["n_prompts"], found["n_injections"]) == (16, 48)
    # Eleven tokens lie between two injections that are twelve apart.
    assert [point["k"] for point in found["points"]] == list(range(1, 12))
    assert all(point["n"] == 48 for point in found["points"])
    done = negtemp("lab", "recovery", out, "--json", "--model", "smollm2-135m-instruct")
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert not read["is_generator"]
    found = read["arms"]["negative"]
    assert (found["n_unread"], found["n_prompts"]) == (0, 16)
    # To a model that reads, the random model's text is as improbable everywhere.
    assert found["points"][0]["surprise"] > 5
    done = negtemp("lab", "recovery", out, "--model", tiny_model)
    assert done.returncode == 2
    assert "is the generator" in done.stderr
