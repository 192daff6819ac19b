"""`negtemp init`: a job to start from."""

from importlib import resources
from pathlib import Path

import click

from negtemp_data.errors import RequestError


@click.command(epilog="Example:  negtemp init my-job && negtemp run my-job/job.yaml")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(file_okay=False))
def command(directory: str) -> None:
    """Write a commented job file, prompts and the job's schema into DIR; runs as it is."""
    from negtemp_data.jobspec.schema import job_schema  # noqa: PLC0415

    folder = Path(directory)
    templates = resources.files("negtemp_data.cli").joinpath("templates")
    job_text = templates.joinpath("job.yaml").read_text(encoding="utf-8")
    files = {
        folder / "job.yaml": job_text.replace("{folder}", folder.as_posix()),
        folder / "prompts.jsonl": templates.joinpath("prompts.jsonl").read_text(encoding="utf-8"),
        folder / "job.schema.json": job_schema(),
    }
    present = [str(path) for path in files if path.exists()]
    if present:
        raise RequestError(f"{', '.join(present)} exists; init never overwrites a file.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder}: can't be written: {error}.") from error
    for path in files:
        click.echo(f"wrote {path}")
    click.echo(
        f"\nNext:\n  negtemp plan {folder / 'job.yaml'}\n  negtemp run {folder / 'job.yaml'}"
    )
