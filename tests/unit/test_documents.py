"""The job files that README and docs show are right as they stand."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from negtemp_data.jobspec import build_job
from negtemp_data.jobspec.load import read_yaml

ROOT = Path(__file__).parents[2]

BASE: dict[str, Any] = {
    "version": 1,
    "name": "shown",
    "prompts": {"source": "prompts.jsonl"},
    "generate": {"model": "smollm2-135m-instruct", "samples": {"control": 1}},
    "schedules": {"control": {}},
    "output": {"path": "out"},
}

PLACES: dict[str, tuple[str, ...]] = {
    "base": ("schedules", "control"),
    "inject": ("schedules", "control"),
    "judge": ("verify",),
    "checks": ("verify",),
}
"""Where in a job the sections stand that are shown alone."""


def shown() -> Iterator[Any]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        fences = re.findall(r"^```yaml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
        for number, text in enumerate(fences, 1):
            yield pytest.param(read_yaml(text, path.name), id=f"{path.name}-{number}")


@pytest.mark.parametrize("data", [*shown()])
def test_what_is_shown_is_a_job_or_a_part_of_one(data: dict[str, Any]) -> None:
    if "version" in data:
        build_job(data, "shown")
        return
    job = copy.deepcopy(BASE)
    for name, section in data.items():
        place = job
        for step in PLACES.get(name, ()):
            place = place.setdefault(step, {})
        place[name] = section
    build_job(job, "shown")


def test_there_is_something_to_look_at() -> None:
    assert len([*shown()]) >= 6
