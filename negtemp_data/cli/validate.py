"""`negtemp validate`: everything that can be checked in half a second."""

from itertools import islice

import click

from negtemp_data.cli.options import (
    gather_overrides,
    job_argument,
    json_option,
    print_json,
    safe_text,
)
from negtemp_data.errors import ModelError
from negtemp_data.jobspec import judges_with_engines, load_job

_PROMPTS_READ = 1000


@click.command(epilog="Example:  negtemp validate jobs/quickstart.yaml --set seed=8")
@job_argument
@json_option
def command(
    job_file: str, overrides: tuple[str, ...], limit: int | None, out: str | None, as_json: bool
) -> None:
    """Check a job file: its first prompts, models' names, engine arguments and functions.

    Reads the first 1,000 prompts; `negtemp plan` reads them all.
    """
    from negtemp_data.engine.adapter import is_known_adapter  # noqa: PLC0415
    from negtemp_data.engine.arguments import check_engine_arguments  # noqa: PLC0415
    from negtemp_data.engine.catalogue import is_known  # noqa: PLC0415
    from negtemp_data.judging import check_functions  # noqa: PLC0415
    from negtemp_data.prompts import read_prompts  # noqa: PLC0415

    job = load_job(job_file, gather_overrides(overrides, limit, out))
    if not is_known(job.generate.model):
        raise ModelError(
            f"{job_file}: generate.model: {job.generate.model!r} is no name that `negtemp models` "
            "lists, no local folder and no Hugging Face id."
        )
    lora = job.generate.lora
    if lora is not None and not is_known_adapter(lora):
        raise ModelError(
            f"{job_file}: generate.lora: {lora!r} is no local folder and no Hugging Face id."
        )
    check_engine_arguments(job.generate.engine)
    for path, judge in judges_with_engines(job.verify.judge):
        if not is_known(judge.model):
            raise ModelError(
                f"{job_file}: {path}.model: {judge.model!r} is no name that `negtemp models` "
                "lists, no local folder and no Hugging Face id."
            )
        check_engine_arguments(judge.engine, f"{path}.engine")
    check_functions(job.verify)
    if "://" in job.output.path:
        from negtemp_data.storage import Output  # noqa: PLC0415

        Output(job.output.path)  # refuses what can't hold one
    bad = [
        {"id": prompt.id, "error": prompt.error}
        for prompt in islice(read_prompts(job.prompts), _PROMPTS_READ)
        if prompt.error is not None
    ]
    if as_json:
        print_json({"valid": True, "bad_prompts": bad})
        return
    for row in bad[:10]:
        click.echo(safe_text(f"Warning: prompt {row['id']}: {row['error']}"), err=True)
    if len(bad) > 10:
        click.echo(f"Warning: {len(bad) - 10} more prompts can't be used.", err=True)
    click.echo(f"{job_file} is valid.")
