"""A calibration: a few prompts are run for real, and nothing of it stays."""

import json

import pytest

from negtemp_data.jobspec import load_job
from negtemp_data.pipeline.calibrate import choose_prompts, cut_job
from negtemp_data.prompts import read_prompts

JOB = """
version: 1
name: calibrated
prompts: {{source: {source}, id: id, {shape}}}
generate:
  model: {model}
  max_tokens: 8
  min_tokens: 8
  samples: {{control: 1, negative: 1}}
  engine: {{dtype: float32, max_model_len: 512}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative: {{inject: [{{when: {{every: 2}}, temperature: -1.0}}]}}
verify: {{checks: [{{kind: length, min_tokens: 8}}]}}
output: {{path: {out}, keep: accepted}}
"""


def write_job(folder, model, shape="text: prompt", n_prompts=9):
    rows = [
        {
            "id": i,
            "prompt": f"Number {i}?",
            "chat": [{"role": "user", "content": f"Number {i}?"}],
            "answer": {"value": i},
            "note": "\ud83d",  # half of a character, which no encoding takes
        }
        for i in range(n_prompts)
    ]
    rows.append({"id": "bad", "prompt": "", "chat": [], "answer": {"value": 0}})
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "job.yaml"
    path.write_text(JOB.format(source=source, shape=shape, model=model, out=folder / "out"))
    return path


@pytest.mark.slow
def test_a_calibration_tells_of_the_whole_job_and_leaves_nothing(negtemp, tiny_model, tmp_path):
    job = write_job(tmp_path, tiny_model)
    done = negtemp("plan", str(job), "--calibrate", "4", "--prompts", "0", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["estimate"]
    assert (told["prompts"], told["rows"], told["calibrated_rows"]) == (9, 18, 8)
    assert told["tokens"] == 18 * 8 and told["tokens_error"] == 0
    assert told["accepted_rows"] == 18
    assert told["seconds"] > told["start_s"] > 0
    assert told["gpu_hours"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"job.yaml", "prompts.jsonl"}


@pytest.mark.slow
def test_prompts_that_can_t_be_run_tell_nothing(negtemp, tiny_model, tmp_path):
    job = write_job(tmp_path, tiny_model)
    too_short = ("--set", "generate.engine.max_model_len=16")
    done = negtemp("plan", str(job), "--calibrate", "4", "--prompts", "0", *too_short)
    assert done.returncode == 1
    assert "no row of the 4 chosen prompts was made: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "shape", ["text: prompt", "messages: chat", "template: 'Is it {{ answer.value }}?'"]
)
def test_the_chosen_prompts_are_what_they_were(tmp_path, shape):
    job = load_job(str(write_job(tmp_path, "smollm2-135m-instruct", shape=shape, n_prompts=50)))
    chosen = choose_prompts(job, 10)
    all_prompts = list(read_prompts(job.prompts))
    assert chosen.n_usable == sum(prompt.error is None for prompt in all_prompts)
    small = cut_job(job, chosen.prompts, tmp_path / "small.jsonl")
    read = list(read_prompts(small.prompts))
    assert [(p.id, p.text, p.messages) for p in read] == [
        (p.id, p.text, p.messages) for p in chosen.prompts
    ]
    before = {prompt.id: prompt for prompt in all_prompts}
    for prompt in read:
        columns = json.loads(prompt.source or "{}")
        assert columns.items() >= json.loads(before[prompt.id].source or "{}").items()
    # Not the first ones: a sorted source would be misjudged.
    assert [prompt.id for prompt in read] != [str(i) for i in range(10)]
    assert small.output.path != job.output.path
