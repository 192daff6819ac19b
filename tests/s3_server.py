"""An S3 server in this process, for tests: moto's, with what it lacks as a real one.

moto answers in threads without locks, so that of two conditional PUTs at a time both may win; here
one request is answered after the other. `ignores_conditions` makes it a store that takes a
conditional PUT and does not look at the condition, as older ones do.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

ACCOUNT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "never-to-be-saved"}


@dataclass
class S3Server:
    """A server, and how to reach it."""

    url: str
    ignores_conditions: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it, as one needs for a real store."""
        return ACCOUNT | {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1"}

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
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # clients keep their connections

        def log_request(self, *_: Any) -> None:
            """Says nothing."""

    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if state.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with lock:
            return list(application(environ, start_response))

    state = S3Server("")
    # Threads, because clients keep connections open.
    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    state.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    thread.start()
    try:
        state.files().mkdir("bucket")
        yield state
    finally:
        server.shutdown()
        thread.join()
