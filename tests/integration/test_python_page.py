"""The example of docs/python.md, run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.slow
def test_the_first_example_runs(smol_model: str, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/python.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    code = example[1] + "\nprint(len(rows))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "32"
    assert (tmp_path / "out/sft/README.md").is_file()
