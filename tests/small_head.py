"""The head of a small Ray cluster, as far as its dashboard tells of it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar


class Head(BaseHTTPRequestHandler):
    """Says of itself what the head of a small cluster says."""

    version = "2.59.1"
    n_gpus = 1
    wants_token = False
    not_ready = 0
    """Requests that are answered as by a head whose agents are not up yet."""
    gpus: ClassVar[list[dict[str, Any]]] = [{"memoryTotal": 81920}]

    def do_GET(self) -> None:
        """Answers two paths."""
        node = {
            "gpus": self.gpus,
            "raylet": {
                "state": "ALIVE",
                "nodeManagerHostname": "head",
                "resourcesTotal": {"GPU": self.n_gpus},
            },
        }
        answers: dict[str, Any] = {
            "/api/version": {"version": "4", "ray_version": self.version},
            "/nodes?view=summary": {"data": {"summary": [node]}},
        }
        body, status = json.dumps(answers[self.path]).encode(), 401 if self.wants_token else 200
        if Head.not_ready and "nodes" in self.path:
            Head.not_ready -= 1
            body, status = b"No available agent to submit job, please try again later.", 500
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the test's screen."""


@contextmanager
def serve_head() -> Iterator[str]:
    """Its address on loopback."""
    server = HTTPServer(("127.0.0.1", 0), Head)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
