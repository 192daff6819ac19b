"""The engine's thread keeps its share of the cores, whatever libraries do; in a process of its own.

How many threads torch has is a matter of the whole process.
"""

import json
import subprocess
import sys

PROGRAM = """
import json, threading
import torch
from negtemp_data.engine.cores import CoreShare

found = {}

def other(name):
    thread = threading.Thread(target=lambda: found.update({name: torch.get_num_threads()}))
    thread.start()
    thread.join()

def engine():
    cores = CoreShare(3)
    found["while it starts"] = torch.get_num_threads()
    cores.hold()
    found["started"] = torch.get_num_threads()
    other("another thread")
    torch._C.set_num_threads(1)  # what a library's first parallel loop does
    cores.hold()
    found["after a library"] = torch.get_num_threads()
    other("another thread then")

thread = threading.Thread(target=engine)
thread.start()
thread.join()
print(json.dumps(found))
"""


def test_the_engines_thread_has_its_threads_and_others_have_none() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == {
        "while it starts": 3,
        "started": 3,
        "another thread": 1,
        "after a library": 3,
        "another thread then": 1,
    }
