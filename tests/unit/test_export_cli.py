"""`negtemp export` as a command: what it prints, how it fails, and the upload."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from negtemp_data.cli.main import negtemp
from negtemp_data.errors import ExportError, NegtempError, RunError
from small_output import make_siblings, write_output

ROWS = make_siblings(12)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return write_output(tmp_path / "out", [ROWS]).root


def call(*arguments: str) -> Result:
    return CliRunner().invoke(negtemp, ["export", *arguments])


def error_of(*arguments: str) -> NegtempError:
    """The error of a command that is expected to fail with one of ours."""
    error = call(*arguments).exception
    assert isinstance(error, NegtempError), error
    assert "\n" not in str(error)
    return error


def test_an_export_prints_counts_and_how_to_load_it(out: str, tmp_path: Path) -> None:
    result = call(out, str(tmp_path / "dest"), "--format", "kto", "--split", "train=0.5,test=0.5")
    assert result.exit_code == 0, result.output
    assert "control, accepted" in result.stdout
    assert "datasets.load_dataset('" in result.stdout
    assert (tmp_path / "dest/README.md").is_file()


def test_json_is_what_a_program_reads(out: str, tmp_path: Path) -> None:
    result = call(out, str(tmp_path / "dest"), "--format", "dpo", "--json")
    assert json.loads(result.stdout) == {
        "dest": str(tmp_path / "dest"),
        "format": "dpo",
        "rows": {"train": 12},
        "kinds": {"verdict": {"train": 12}},
        "files": 1,
        "complete": True,
        "hub": None,
    }


def test_an_unfinished_run_says_so_and_is_exported(tmp_path: Path) -> None:
    out = write_output(tmp_path / "out", [ROWS], n_planned=4).root
    result = call(out, str(tmp_path / "dest"), "--format", "sft", "--json")
    assert result.exit_code == 0
    assert "The run is not finished: 1 of 4 shards are committed" in result.stderr
    assert f"negtemp resume {out}" in result.stderr
    assert json.loads(result.stdout)["complete"] is False
    assert json.loads(result.stdout)["rows"] == {"train": 12}


def test_options_reach_the_format(out: str, tmp_path: Path) -> None:
    options = ("--format", "dpo", "--margin", "1", "--pairs", "verdict", "--length-ratio", "2")
    result = call(out, str(tmp_path / "dest"), *options, "--shape", "text", "--json")
    assert json.loads(result.stdout)["rows"] == {"train": 12}
    card = (tmp_path / "dest/README.md").read_text()
    for line in ("| margin | 1.0 |", "| pairs | verdict |", "| shape | text |"):
        assert line in card
    result = call(out, str(tmp_path / "all"), "--format", "sft", "--all", "--json")
    assert "| best_only | False |" in (tmp_path / "all/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "dpe"], "--format dpe: must be one of sft, sft-tokens, dpo, kto"),
        (["--format", "kto", "--margin", "1"], "--margin: is for --format dpo, not for kto"),
        (["--format", "dpo", "--all"], "--all: is for --format sft or sft-tokens, not for dpo"),
        (["--format", "sft", "--arm", "hot"], "--arm hot: the job has no such arm"),
        (["--format", "sft", "--split", "train=2"], "'train=2' is no share"),
        (["--format", "sft", "--min-score", "9"], "none of the 24 committed rows gives a row"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_2(
    out: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    error = error_of(out, str(tmp_path / "dest"), *arguments)
    assert isinstance(error, ExportError) and error.exit_code == 2
    assert message in str(error)
    assert not (tmp_path / "dest").exists()


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    error = error_of(str(tmp_path), str(tmp_path / "dest"), "--format", "sft")
    assert "is no negtemp output" in str(error)


# --- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; what was committed lies in `files`."""

    files: ClassVar[dict[str, bytes]] = {}
    is_broken = False

    def do_GET(self) -> None:
        self._answer({"id": "me/data", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_secret"
        if self.is_broken:
            self._answer({"error": "the hub is broken"}, 403)
        elif self.path == "/api/repos/create":
            assert json.loads(body)["type"] == "dataset"
            url = f"http://{self.headers['Host']}/datasets/me/data"
            self._answer({"url": url, "id": "me/data", "name": "me/data"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    Hub.files[line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/datasets/me/data/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, data: Any, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, and a token for it."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Hub, "files", {})
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_export_is_uploaded_as_it_is(out: str, tmp_path: Path, hub: type[Hub]) -> None:
    arguments = (out, str(tmp_path / "dest"), "--format", "dpo", "--push-to-hub", "me/data")
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["hub"].endswith("/datasets/me/data")
    names = ["README.md", "data/train-00000.parquet"]
    assert sorted(hub.files) == names
    assert all((tmp_path / "dest" / name).read_bytes() == hub.files[name] for name in names)


def test_an_upload_that_fails_keeps_the_export_and_says_how_to_go_on(
    out: str, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "is_broken", True)
    arguments = (out, str(tmp_path / "dest"), "--format", "dpo", "--push-to-hub", "me/data")
    error = error_of(*arguments)
    assert isinstance(error, RunError) and error.exit_code == 1
    assert "--push-to-hub me/data: the upload failed" in str(error)
    assert "hf upload me/data" in str(error) and "hf_secret" not in str(error)
    assert (tmp_path / "dest/data/train-00000.parquet").is_file()


def test_an_upload_that_can_not_begin_is_refused_before_the_work(
    out: str, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (out, str(tmp_path / "dest"), "--format", "dpo", "--push-to-hub")
    assert "--push-to-hub a/b/c: Repo id must be" in str(error_of(*arguments, "a/b/c"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "nobody is logged in" in str(error_of(*arguments, "me/data"))
    assert not (tmp_path / "dest").exists()
