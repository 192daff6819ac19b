"""A plug-in of vLLM that writes down every request, for `benchmarks/peers.py`.

One line of JSON for each request that reaches a scheduler and for each that leaves it, appended to
the file that REQUEST_LOG names. So all sides are counted in the same place and the same way,
whether their engine is a server's or lives in their own processes. `peers.py` registers it, as an
entry point `vllm.general_plugins`.
"""

import hashlib
import json
import os
import time


def register():
    from vllm.v1.core.sched.scheduler import Scheduler

    log = os.open(os.environ["REQUEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    add, free = Scheduler.add_request, Scheduler._free_request

    def note(event, request):
        prompt = " ".join(map(str, request.prompt_token_ids))
        line = {
            "event": event,
            "time": time.time(),
            "prompt": hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest(),
            "tokens": request.num_output_tokens,
        }
        os.write(log, json.dumps(line).encode() + b"\n")

    def add_request(self, request):
        note("added", request)
        return add(self, request)

    def free_request(self, request, *args, **kwargs):
        # "stop", "length", or "abort" where a client has hung up.
        note(str(request.get_finished_reason()), request)
        return free(self, request, *args, **kwargs)

    Scheduler.add_request, Scheduler._free_request = add_request, free_request
