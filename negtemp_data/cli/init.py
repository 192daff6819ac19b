"""`negtemp init`: a job to start from."""

import json
import re
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
    for name in ("prompts.jsonl", "out"):
        path_text = _as_yaml((folder / name).as_posix())
        job_text = job_text.replace(f"{{folder}}/{name}", path_text)
    files = {
        folder / "job.yaml": job_text,
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


def _as_yaml(path: str) -> str:
    """A path as a YAML value: bare where nothing in it means something to YAML."""
    return path if re.fullmatch(r"[\w.][\w./-]*|/[\w./-]*", path) else json.dumps(path)
