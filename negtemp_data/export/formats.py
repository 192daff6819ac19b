"""The formats by name, and a format made from the options that were given."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from negtemp_data.errors import ExportError
from negtemp_data.export.base import Format
from negtemp_data.export.dpo import DpoFormat
from negtemp_data.export.every_column import JsonlFormat, ParquetFormat
from negtemp_data.export.kto import KtoFormat
from negtemp_data.export.negatives import UnlikelihoodFormat
from negtemp_data.export.sft import SftFormat
from negtemp_data.export.sft_tokens import SftTokensFormat
from negtemp_data.jobspec import Job

FORMATS: dict[str, type[Format]] = {
    "sft": SftFormat,
    "sft-tokens": SftTokensFormat,
    "dpo": DpoFormat,
    "kto": KtoFormat,
    "unlikelihood": UnlikelihoodFormat,
    "parquet": ParquetFormat,
    "jsonl": JsonlFormat,
}


def build_format(name: str, job: Job, options: Mapping[str, Any]) -> Format:
    """The format `name` for the rows of `job`.

    Args:
        name: A key of `FORMATS`.
        job: The job that made the rows.
        options: Fields of the format, only those that were asked for.

    Raises:
        ExportError: An unknown format, an option that it does not have, or that does not fit.
    """
    if name not in FORMATS:
        raise ExportError(f"--format {name}: must be one of {', '.join(FORMATS)}.")
    for option in options:
        takers = [key for key in FORMATS if option in _options_of(key)]
        if name not in takers:
            flag = "--all" if option == "best_only" else f"--{option.replace('_', '-')}"
            raise ExportError(f"{flag}: is for --format {' or '.join(takers)}, not for {name}.")
    if name != "sft" and options.get("shape") == "messages":
        raise ExportError(f"--shape messages: is for --format sft, not for {name}.")
    return FORMATS[name](job=job, **options)  # type: ignore[call-arg]


def _options_of(name: str) -> set[str]:
    return {field.name for field in fields(FORMATS[name])} - {"job"}  # type: ignore[arg-type]
