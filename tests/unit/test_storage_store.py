"""Stores: the same contract in a folder and on objects; what can't hold an output is refused."""

import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from negtemp_data.errors import OutputError, StorageError
from negtemp_data.storage import Output, Store, open_store
from negtemp_data.storage.objects import ObjectStore


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "objects":
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        # Its create looks first and then writes, which is safe as long as one thread writes.
        return ObjectStore("memory://bucket/out")
    made = open_store(tmp_path / "out", "tmp")
    made.prepare(["runs"])
    return made


def names(store: Store) -> list[str]:
    return [name for name in store.entries() if name not in ("tmp", "runs")]


def test_files_come_back_as_they_were_written(store: Store) -> None:
    store.replace("a", b"old")
    store.replace("a", b"new")
    store.replace_json("b.json", {"x": 1})
    assert store.read("a") == store.load("a").to_pybytes() == b"new"
    assert store.read("b.json") == b'{\n  "x": 1\n}\n'
    assert names(store) == ["a", "b.json"]
    assert store.sizes() == {"a": 3, "b.json": 13}
    assert store.exists("a") and not store.exists("c")
    assert store.read_many(["a", "c"]) == {"a": b"new"}
    assert store.read_many([]) == {}


def test_of_two_writers_the_first_one_creates(store: Store) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.read("a") == b"first"


def test_a_missing_file_is_a_missing_file(store: Store) -> None:
    for read in (store.read, store.load, store.load_private, store.open):
        with pytest.raises(FileNotFoundError) as caught:
            read("nothing").close()
        assert caught.value.errno


def test_a_folder_is_a_store_of_its_own(store: Store) -> None:
    below = store.at("runs").at("00001")
    assert below.entries() == [] and below.sizes() == {}
    below.make()
    below.create("x", b"1")
    assert below.where("x") == f"{store.root}/runs/00001/x"
    assert store.at("runs").entries() == ["00001"]
    assert store.at("runs").sizes() == {}
    assert not store.exists("runs")
    assert pickle.loads(pickle.dumps(below)).read("x") == b"1"


def test_what_is_removed_is_gone_and_may_be_gone_before(store: Store) -> None:
    below = store.at("runs").at("00001")
    below.make()
    for name in "abc":
        below.replace(name, b"x")
    below.remove(["a", "missing"])
    below.remove([])
    assert below.entries() == ["b", "c"]
    for _ in range(2):
        store.at("runs").remove_tree("00001")
        assert store.at("runs").entries() == []
    store.replace("file", b"x")
    store.remove_tree("file")
    assert names(store) == []
    store.replace("file", b"x")
    store.remove_tree()
    assert store.entries() == []


def test_a_long_file_takes_its_place_only_when_it_is_whole(store: Store) -> None:
    store.replace("a", b"old")
    with pytest.raises(ZeroDivisionError), store.writing("a") as file:  # noqa: PT012
        file.write(b"half")
        file.write(b"more" * (1 // 0))
    assert store.read("a") == b"old"
    with store.writing("a") as file:
        file.write(b"new")
        assert store.read("a") == b"old"
    assert store.read("a") == b"new"
    store.clean_tmp()
    assert names(store) == ["a"]


def test_an_open_file_is_read_at_any_place(store: Store) -> None:
    store.replace("a", bytes(range(100)))
    with store.open("a") as file:
        file.seek(50)
        assert (file.read(2), file.size()) == (b"23", 100)


def test_what_is_written_to_private_pages_stays_there(store: Store) -> None:
    store.replace("a", b"abc")
    pages = store.load_private("a")
    assert pages.is_mutable
    memoryview(pages).cast("B")[:] = b"xyz"
    assert store.read("a") == b"abc"


def test_lines_of_a_log_are_kept_in_order(store: Store) -> None:
    for number in range(20):
        store.append("log", b"%d\n" % number)
    if isinstance(store, ObjectStore):
        parts = store.at("log").read_many(store.at("log").entries())
        text = b"".join(parts.values())
    else:
        text = store.read("log")
    assert text == b"".join(b"%d\n" % number for number in range(20))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("memory://bucket/out", "no conditional PUT that is known to work; accepted are a folder"),
        ("hf://datasets/me/out", "can't be on hf://"),
        ("file:///tmp/out", "can't be on file://"),
        ("s3://", "must name a bucket"),
        ("s3:///out", "must name a bucket"),
        ("s3://bucket/out*", "without any of"),
    ],
)
def test_a_uri_that_can_not_hold_an_output_is_refused(uri: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        Output(uri)


@pytest.mark.parametrize(
    ("uri", "library", "command"),
    [
        ("s3://bucket/out", "s3fs", r"pip install 'negtemp-data\[s3\]'"),
        ("gs://bucket/out", "gcsfs", r"pip install 'negtemp-data\[gcs\]'"),
        ("az://container/out", "adlfs", "pip install adlfs"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, uri: str, library: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OutputError, match=command):
        Output(uri)


def test_an_output_on_a_store_is_named_by_its_uri_and_pickles() -> None:
    output = Output("s3://bucket/some/out/")
    assert output.root == "s3://bucket/some/out"
    assert output.run.where("job.yaml") == "s3://bucket/some/out/_run/job.yaml"
    assert pickle.loads(pickle.dumps(output)).root == output.root
    assert output.logs.is_absolute()
    assert output.logs != Output("s3://bucket/some-out").logs


def test_a_store_that_can_not_be_read_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class TimedOutError(Exception):
        """As each library below fsspec has its own, with a base of its own."""

    def fail(*_: object, **__: object) -> None:
        raise TimedOutError("no\nanswer")

    store = ObjectStore("memory://bucket/out")
    for method in ("ls", "info", "cat_file", "cat_ranges", "open", "pipe_file", "rm"):
        monkeypatch.setattr(MemoryFileSystem, method, fail)
    for call in (
        store.entries,
        store.sizes,
        lambda: store.exists("a"),
        lambda: store.read("a"),
        lambda: store.read_many(["a"]),
        lambda: store.open("a"),
        lambda: store.create("a", b""),
        lambda: store.replace("a", b""),
        lambda: store.remove(["a"]),
        lambda: store.remove_tree("a"),
    ):
        with pytest.raises(StorageError, match=r"memory://bucket/out.*TimedOutError: no answer"):
            call()


def test_a_folder_is_mapped_and_not_read(tmp_path: Path) -> None:
    store = open_store(tmp_path, "tmp")
    (tmp_path / "a").write_bytes(bytes(2**20))
    before = pa.total_allocated_bytes()
    assert store.load("a").size == 2**20
    assert pa.total_allocated_bytes() == before
