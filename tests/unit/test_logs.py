"""The files that take what libraries print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from negtemp_data.errors import StorageError
from negtemp_data.pipeline.logs import require_room

PROGRAM = """
import sys
from pathlib import Path
from negtemp_data.pipeline.logs import captured_output

with captured_output(Path(sys.argv[1])):
    print("chatter")
print("the end")
"""


def test_what_a_full_disk_refuses_neither_stops_a_run_nor_comes_out_on_the_screen() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "/dev/full"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("the end\n", "")


def test_a_place_for_logs_is_made_and_left_empty_or_refused(tmp_path: Path) -> None:
    require_room(tmp_path / "made" / "logs")
    assert list((tmp_path / "made" / "logs").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="can't be written"):
        require_room(tmp_path / "file" / "logs")
