"""The files that take what libraries print."""

import os
import subprocess
import sys

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
