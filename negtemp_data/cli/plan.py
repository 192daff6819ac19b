"""`negtemp plan`: what a job will do, before anything starts."""

from pathlib import Path
from typing import Any

import click

from negtemp_data.cli.options import gather_overrides, job_argument, json_option, print_json
from negtemp_data.errors import PromptError
from negtemp_data.jobspec import Job, load_job
from negtemp_data.prompts import Prompt, planned_ids, prompts_per_shard, read_prompts, row_seed

_RULER_COLUMNS = 64


@click.command(epilog="Example:  negtemp plan jobs/quickstart.yaml --prompts 1")
@job_argument
@click.option(
    "--prompts",
    "n_shown",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="Show this many prompts and their schedules.",
)
@json_option
def command(
    job_file: str,
    overrides: tuple[str, ...],
    limit: int | None,
    out: str | None,
    n_shown: int,
    as_json: bool,
) -> None:
    """Show shards, rendered prompts, where schedules fire, and what it takes.

    A firing that finds fewer than two candidates waits up to `defer` tokens.
    """
    job = load_job(job_file, gather_overrides(overrides, limit, out))
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
        "memory": _memory(job),
    }
    encoder = _encoder(job)
    details = [_describe(job, prompt, encoder) for prompt in shown]
    if as_json:
        print_json(summary | {"shown": details})
    else:
        _print(job, summary, details)


def _describe(job: Job, prompt: Prompt, encoder: Any) -> dict[str, Any]:
    """A prompt as the model sees it, and the positions at which its samples' rules fire."""
    rendered, tokens, problem = None, None, prompt.error
    if encoder is not None and problem is None:
        try:
            ids = encoder.encode(prompt, job.prompts.system)
            rendered, tokens = encoder.decode(ids), len(ids)
        except PromptError as error:  # costs a run these rows, and nothing else
            problem = str(error)
    rows = [
        {"id": row.id, "firings": _firings(job, prompt.id, row.arm, row.sample)}
        for row in planned_ids(prompt.id, job.generate.samples)
    ]
    return {
        "id": prompt.id,
        "error": problem,
        "text": rendered if rendered is not None else prompt.text,
        "tokens": tokens,
        "rows": rows,
    }


def _firings(job: Job, prompt_id: str, arm: str, sample: int) -> list[list[int]]:
    """Positions by rule."""
    import numpy as np  # noqa: PLC0415

    from negtemp_data.engine.compile import compile_schedule  # noqa: PLC0415
    from negtemp_data.sampling import fires  # noqa: PLC0415

    seed = row_seed(job.seed, prompt_id, sample)
    positions = np.arange(job.generate.max_tokens, dtype=np.int64)
    rules = compile_schedule(job.schedules[arm]).rules
    return [positions[fires(seed, rule, i, positions)].tolist() for i, rule in enumerate(rules)]


def _encoder(job: Job) -> Any:
    """The model's prompt encoder; None where the model is not on this machine yet."""
    from negtemp_data.engine.catalogue import local_path  # noqa: PLC0415

    path = local_path(job.generate.model)
    if path is None:
        return None
    from transformers import AutoTokenizer

    from negtemp_data.engine.tokens import PromptEncoder  # noqa: PLC0415

    max_len = int(job.generate.engine.get("max_model_len") or 1 << 20)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return PromptEncoder(tokenizer, max_len - 1, job.generate.chat_template_kwargs)


def _memory(job: Job) -> dict[str, float] | None:
    """GiB of the weights, and MiB of KV cache per 1,000 tokens; None where it can't be told."""
    from negtemp_data.engine.catalogue import local_path, measure_model  # noqa: PLC0415

    path = local_path(job.generate.model)
    return measure_model(Path(path)) if path else None


def _print(job: Job, summary: dict[str, Any], details: list[dict[str, Any]]) -> None:
    from negtemp_data.cli.display import safe_text  # noqa: PLC0415

    bad = f" ({summary['bad_prompts']} can't be used)" if summary["bad_prompts"] else ""
    click.echo(
        f"{summary['prompts']} prompts{bad} × {job.samples_per_prompt} samples = {summary['rows']} "
        f"rows in {summary['shards']} shards of {summary['prompts_per_shard']} prompts; at most "
        f"{summary['max_completion_tokens']:,} completion tokens"
    )
    memory = summary["memory"]
    if memory is not None:
        click.echo(
            f"{job.generate.model}: weights {memory['weights_gib']:.2f} GiB, KV cache "
            f"{memory['kv_mib_per_1000_tokens']:.1f} MiB per 1,000 tokens"
        )
    else:
        click.echo(f"{job.generate.model} is not on this machine yet: no estimate of memory.")
    for shown in details:
        tokens = "" if shown["tokens"] is None else f", {shown['tokens']} tokens"
        click.echo(f"\n── prompt {shown['id']}{tokens}")
        if shown["error"] is not None:
            click.echo(f"can't be used: {shown['error']}")
            continue
        click.echo(safe_text((shown["text"] or "")[:2000]))
        for row in shown["rows"]:
            for rule, positions in enumerate(row["firings"]):
                ruler = _ruler(positions, job.generate.max_tokens)
                listed = ", ".join(map(str, positions[:12])) + (", …" if positions[12:] else "")
                click.echo(f"{row['id']} rule {rule}\n  0 {ruler} {job.generate.max_tokens}")
                click.echo(f"  fires at {listed or 'no position'}")


def _ruler(positions: list[int], length: int) -> str:
    """Positions as marks on a line of at most 64 columns."""
    columns = min(_RULER_COLUMNS, length)
    marks = {position * columns // length for position in positions}
    return "".join("▲" if column in marks else "·" for column in range(columns))
