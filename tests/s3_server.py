"""An S3 server in a process of its own, for tests: moto's, with what it lacks as a real one.

moto answers in threads without locks, so that of two conditional PUTs at a time both may win; here
one request is answered after the other. It can be told to be a store that takes a conditional PUT
and does not look at the condition, as older ones do.

Not in the tests' own process: vLLM looks into every module that is loaded, and Flask's break then.
"""

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

ACCOUNT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "never-to-be-saved"}
SWITCH = "/-/ignore-conditions"


@dataclass
class S3Server:
    """A server, and how to reach it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it, as one needs for a real store."""
        return ACCOUNT | {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1"}

    @contextmanager
    def ignoring_conditions(self) -> Iterator[None]:
        """It does not look at conditions while the block runs."""
        urllib.request.urlopen(f"{self.url}{SWITCH}?yes").close()
        try:
            yield
        finally:
            urllib.request.urlopen(f"{self.url}{SWITCH}?no").close()

    def files(self) -> Any:
        """Its files, seen by a client of the test's own."""
        keys = {"key": ACCOUNT["AWS_ACCESS_KEY_ID"], "secret": ACCOUNT["AWS_SECRET_ACCESS_KEY"]}
        return fsspec.filesystem("s3", endpoint_url=self.url, use_listings_cache=False, **keys)

    def etags(self, prefix: str) -> dict[str, str]:
        """ETag of each object below a prefix, by key."""
        found = self.files().find(prefix, detail=True)
        return {path: info["ETag"] for path, info in found.items()}


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server with the bucket `bucket` while the block runs."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = S3Server(process.stdout.readline().strip())
        server.files().mkdir("bucket")
        yield server
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serves until it is killed; prints its address first."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # clients keep their connections

        def log_request(self, *_: Any) -> None:
            """Says nothing."""

    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()
    ignores_conditions = False

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        nonlocal ignores_conditions
        if environ["PATH_INFO"] == SWITCH:
            ignores_conditions = environ["QUERY_STRING"] == "yes"
            start_response("200 OK", [("Content-Length", "0")])
            return []
        if ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with lock:
            return list(application(environ, start_response))

    # Threads, because clients keep connections open.
    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
