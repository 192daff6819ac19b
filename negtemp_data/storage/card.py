"""The dataset card: README.md of an output, rendered from the job and the ledger.

Nothing that a prompt or a model wrote gets in, only the job's own settings and counts.
"""

from collections.abc import Mapping
from importlib import resources
from itertools import takewhile
from typing import Any

from jinja2 import Environment, StrictUndefined

from negtemp_data.jobspec import (
    SAME,
    Job,
    PythonJudgeConfig,
    RubricConfig,
    SingleJudgeConfig,
    single_judges,
    write_job,
)
from negtemp_data.storage.ledger import ShardEntry
from negtemp_data.storage.output import CARD_FILE, Output
from negtemp_data.storage.schema import COLUMNS, ROW_SCHEMA
from negtemp_data.storage.summary import summarise


def write_card(
    output: Output,
    job: Job,
    entries: Mapping[int, ShardEntry],
    versions: Mapping[str, str],
    model_notes: Mapping[str, str],
) -> None:
    """Writes README.md.

    Args:
        output: Where to.
        job: The job that made the data set.
        entries: Its committed shards.
        versions: Versions by library.
        model_notes: What a reader must know of each model, by model: licence, known limits.

    Raises:
        StorageError: The disk refused.
    """
    text = render_card(
        resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"),
        job,
        totals=summarise(entries),
        columns=[(field.name, str(field.type), COLUMNS[field.name]) for field in ROW_SCHEMA],
        versions=versions,
        model_notes=model_notes,
    )
    output.store.replace(CARD_FILE, text.encode())


def render_card(template: str, job: Job, **values: Any) -> str:
    """A card's text.

    Args:
        template: Jinja; the filters `code` and `cell` quote.
        job: The job; with it come `judges`, a line each, and `schedules`, as YAML.
        **values: What else the template names.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"code": _quote_code, "cell": _quote_cell}
    return environment.from_string(template).render(
        job=job,
        judges=[_describe_judge(path, judge) for path, judge in single_judges(job.verify.judge)],
        schedules=_cut_section(write_job(job), "schedules"),
        **values,
    )


def _describe_judge(path: str, judge: SingleJudgeConfig) -> str:
    name = path.removeprefix("verify.judge").removeprefix(".judges.")
    parts = [f"{name}: {judge.kind}" if name else judge.kind]
    if isinstance(judge, PythonJudgeConfig):
        parts.append(_quote_code(judge.function))
    elif judge.model == SAME:
        parts.append("the generator itself")
    else:
        parts.append(_quote_code(judge.model))
    if isinstance(judge, RubricConfig):
        parts.append(f"{', '.join(judge.criteria)} on {judge.scale[0]} to {judge.scale[1]}")
    return ", ".join([*parts, f"accepts at {judge.accept_at:g}"])


def _cut_section(yaml: str, name: str) -> str:
    """The lines of a job's YAML that belong to one of its sections, without indent."""
    lines = yaml.splitlines()
    body = lines[lines.index(f"{name}:") + 1 :]
    return "\n".join(line[2:] for line in takewhile(lambda line: line.startswith(" "), body))


def _quote_code(text: str) -> str:
    """`text` as inline code that can't end early."""
    code = _quote_cell(text).replace("`", "'")
    return f"`{code}`"


def _quote_cell(text: str) -> str:
    """`text` on one line, as it may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")
