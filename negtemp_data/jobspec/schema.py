"""The JSON Schema of the job file, for editors (`# yaml-language-server: $schema=…`)."""

import json
from pathlib import Path

from negtemp_data.jobspec.job import Job


def job_schema() -> str:
    """The schema as it is checked in under `schemas/job.schema.json`."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "negtemp-data job"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def is_fresh(path: Path) -> bool:
    """Whether the file at `path` is the schema of the present models."""
    return path.is_file() and path.read_text(encoding="utf-8") == job_schema()
