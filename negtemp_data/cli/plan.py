"""`negtemp plan`: what a job will do, before anything starts."""

import shutil
from collections.abc import Sequence
from typing import Any

import click

from negtemp_data.cli.costs import (
    cluster_gpus,
    describe_memory,
    estimate_json,
    estimate_lines,
    machine_gpus,
    memory_lines,
    run_calibration,
)
from negtemp_data.cli.options import (
    gather_overrides,
    job_argument,
    json_option,
    print_json,
    safe_text,
)
from negtemp_data.errors import PromptError
from negtemp_data.jobspec import Job, load_job
from negtemp_data.prompts import Prompt, planned_ids, prompts_per_shard, read_prompts, row_seed

_MIN_COLUMNS, _MAX_COLUMNS = 60, 100
"""Width of the terminal that is made use of."""
_ROWS_DRAWN = 4
"""Samples of each arm that are drawn for a prompt."""
_MOST_DRAWN = 65536
"""Positions of a completion that are drawn."""
_NO_LIMIT = 1 << 20
"""Tokens of a context whose length the job does not give."""


@click.command(
    epilog="Example:  negtemp plan jobs/quickstart.yaml --prompts 1;  "
    "negtemp plan jobs/quickstart.yaml --calibrate 16;  "
    "negtemp plan jobs/quickstart.yaml --address http://HOST:8265"
)
@job_argument
@click.option(
    "--prompts",
    "n_shown",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="Show this many prompts and their schedules.",
)
@click.option(
    "--calibrate",
    "n_calibrated",
    metavar="N",
    type=click.IntRange(min=1),
    help="Run N prompts for real, judge included, and tell from them tokens, accepted rows and "
    "time of the whole job.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="A Ray cluster instead of this machine. http://HOST:8265, its dashboard: shows what its "
    "GPUs have room for. HOST:PORT: --calibrate runs there.",
)
@json_option
def command(
    job_file: str,
    overrides: tuple[str, ...],
    limit: int | None,
    out: str | None,
    n_shown: int,
    n_calibrated: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Show shards, schedules, rendered prompts, where rules fire, and what it takes.

    ▲ is a position at which a rule fires, ░ one at which the logits or the text decide. A firing
    that finds fewer than two candidates waits up to `defer` tokens.
    """
    from negtemp_data.cli.drawing import describe_schedule  # noqa: PLC0415

    is_dashboard = address is not None and address.startswith(("http://", "https://"))
    if address is not None and is_dashboard == (n_calibrated is not None):
        needed = "HOST:PORT, which --calibrate connects to" if is_dashboard else "--calibrate"
        raise click.UsageError(f"--address {address} needs {needed}; see --help")
    job = load_job(job_file, gather_overrides(overrides, limit, out))
    gpus = cluster_gpus(address) if address is not None and is_dashboard else machine_gpus()
    shown: list[Prompt] = []
    n_prompts = n_bad = 0
    for prompt in read_prompts(job.prompts):
        n_prompts += 1
        n_bad += prompt.error is not None
        if len(shown) < n_shown:
            shown.append(prompt)
    per_shard = prompts_per_shard(job)
    summary: dict[str, Any] = {
        "prompts": n_prompts,
        "bad_prompts": n_bad,
        "rows": n_prompts * job.samples_per_prompt,
        "prompts_per_shard": per_shard,
        "shards": -(-n_prompts // per_shard),
        "max_completion_tokens": n_prompts * job.samples_per_prompt * job.generate.max_tokens,
        "memory": describe_memory(job, gpus),
    }
    if n_calibrated is not None:
        estimate = run_calibration(job, n_calibrated, address, quiet=as_json)
        summary["estimate"] = estimate_json(estimate, job, address)
    encoder = _encoder(job)
    schedules = {
        arm: describe_schedule(job.schedules[arm], _drawn_length(job))
        for arm in job.generate.samples
    }
    details = [_describe(job, prompt, encoder) for prompt in shown]
    if as_json:
        print_json(summary | {"schedules": schedules, "shown": details})
    else:
        where = str(address) if is_dashboard else "this machine"
        _print(job, summary, memory_lines(job, gpus, summary["memory"], where), schedules, details)
        if n_calibrated is not None:
            _echo("\n── what it takes")
            for line in estimate_lines(estimate, job, address):
                _echo(line)


def _drawn_length(job: Job) -> int:
    return min(job.generate.max_tokens, _MOST_DRAWN)


def _describe(job: Job, prompt: Prompt, encoder: Any) -> dict[str, Any]:
    """A prompt as the model sees it, and the positions at which its samples' rules fire."""
    from negtemp_data.cli.drawing import find_firings  # noqa: PLC0415

    rendered, tokens, problem = None, None, prompt.error
    if encoder is not None and problem is None:
        try:
            ids = encoder.encode(prompt, job.prompts.system)
            rendered, tokens = encoder.decode(ids), len(ids)
        except PromptError as error:  # costs a run these rows, and nothing else
            problem = str(error)
    rows = [
        {
            "id": row.id,
            "arm": row.arm,
            "sample": row.sample,
            "firings": find_firings(
                job.schedules[row.arm],
                row_seed(job.seed, prompt.id, row.sample),
                _drawn_length(job),
            ),
        }
        for row in planned_ids(prompt.id, job.generate.samples)
    ]
    return {
        "id": prompt.id,
        "error": problem,
        "text": rendered if rendered is not None else prompt.text,
        "tokens": tokens,
        "rows": rows,
    }


def _encoder(job: Job) -> Any:
    """The model's prompt encoder; None where the model is not on this machine yet.

    Raises:
        ModelError: Its folder has no tokenizer that can be loaded.
    """
    from negtemp_data.engine.catalogue import local_path  # noqa: PLC0415

    path = local_path(job.generate.model)
    if path is None:
        return None
    from negtemp_data.engine.tokens import PromptEncoder, load_tokenizer  # noqa: PLC0415

    given = job.generate.engine.get("max_model_len")
    max_len = given if isinstance(given, int) and given > 0 else _NO_LIMIT
    tokenizer = load_tokenizer(path, job.generate.engine)
    return PromptEncoder(tokenizer, max_len - 1, job.generate.chat_template_kwargs)


def _print(
    job: Job,
    summary: dict[str, Any],
    memory: Sequence[str],
    schedules: dict[str, dict[str, Any]],
    details: list[dict[str, Any]],
) -> None:
    from negtemp_data.cli.drawing import draw_firings, draw_schedule  # noqa: PLC0415

    length = _drawn_length(job)
    width = min(max(shutil.get_terminal_size().columns, _MIN_COLUMNS), _MAX_COLUMNS)
    _print_summary(job, summary)
    for line in memory:
        _echo(line)
    _echo(f"\n── schedules, over {length} tokens")
    for arm, schedule in schedules.items():
        for line in draw_schedule(arm, schedule, length, width):
            _echo(line)
    for shown in details:
        tokens = "" if shown["tokens"] is None else f", {shown['tokens']} tokens"
        _echo(f"\n── prompt {shown['id']}{tokens}")
        if shown["error"] is not None:
            _echo(f"can't be used: {shown['error']}")
            continue
        _echo((shown["text"] or "")[:2000])
        rows = [
            (f"{row['arm']}/{row['sample']}", row["firings"])
            for row in shown["rows"]
            if row["sample"] < _ROWS_DRAWN
        ]
        for line in draw_firings(rows, length, width):
            _echo(line)
        if len(rows) < len(shown["rows"]):
            _echo(f"… and {len(shown['rows']) - len(rows)} more samples, which --json has, too")


def _print_summary(job: Job, summary: dict[str, Any]) -> None:
    bad = f" ({summary['bad_prompts']} can't be used)" if summary["bad_prompts"] else ""
    _echo(
        f"{summary['prompts']} prompts{bad} × {job.samples_per_prompt} samples = {summary['rows']} "
        f"rows in {summary['shards']} shard{'s' * (summary['shards'] != 1)} of "
        f"{summary['prompts_per_shard']} prompts; at most "
        f"{summary['max_completion_tokens']:,} completion tokens"
    )


def _echo(text: str) -> None:
    """Prints text that may hold what others wrote."""
    click.echo(safe_text(text))
