"""Which files a source stands for, in which order, and what their digest depends on."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from negtemp_data.errors import PromptSourceError
from negtemp_data.jobspec import PromptsConfig
from negtemp_data.prompts import read_prompts, source_digest
from negtemp_data.prompts.sources import find_files


def digest(source: Path | str, **config: Any) -> str:
    return source_digest(PromptsConfig(source=str(source), **config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with prompts in three files, and what is none of them."""
    for name in ("10.txt", "9.jsonl", "a.CSV", "README.md", ".hidden.jsonl"):
        (tmp_path / name).write_text('{"prompt": "x"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "10.txt").write_text("deep\n")
    return tmp_path


def test_directory_stands_for_its_own_files_of_known_extension_sorted(folder: Path) -> None:
    files = find_files(str(folder))
    assert [(f.name, f.format) for f in files] == [
        ("10.txt", "txt"),
        ("9.jsonl", "jsonl"),
        ("a.CSV", "csv"),
    ]


def test_glob_is_sorted_and_skips_directories(folder: Path) -> None:
    (folder / "sub.txt").mkdir()
    assert [f.name for f in find_files(f"{folder}/[0-9s]*.*")] == ["10.txt", "9.jsonl"]


def test_files_of_one_name_are_told_apart_by_their_folder(folder: Path) -> None:
    names = [f.name for f in find_files(f"{folder}/**/10.txt")]
    assert names == ["10.txt", "sub/10.txt"]


def test_bad_rows_of_files_of_one_name_have_different_ids(folder: Path) -> None:
    for path in (folder / "10.txt", folder / "sub" / "10.txt"):
        path.write_bytes(b"\xff")
    ids = [p.id for p in read_prompts(PromptsConfig(source=f"{folder}/**/10.txt"))]
    assert ids == ["10.txt:1", "sub/10.txt:1"]


def test_file_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    path.write_text("x")
    assert [f.path for f in find_files(str(path))] == [str(path)]


def test_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert [f.name for f in find_files("~/9.jsonl")] == ["9.jsonl"]


def test_file_names_in_ids_hold_no_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a\nb.txt").write_bytes(b"\xff")
    [prompt] = read_prompts(PromptsConfig(source=str(tmp_path)))
    assert prompt.id == "a?b.txt:1"


@pytest.mark.parametrize("name", ["missing.jsonl", "*.parquet", "empty"])
def test_missing_source_is_named_with_what_was_looked_for(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(PromptSourceError) as caught:
        find_files(name)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", ["README.md", "*"])
def test_unknown_extension_is_refused_with_those_accepted(name: str, folder: Path) -> None:
    with pytest.raises(PromptSourceError, match=r"'\.md'; accepted are \.jsonl, .*\.txt"):
        find_files(f"{folder}/{name}")


@pytest.mark.parametrize("source", ["nonsense://x/p.jsonl", "memory://nowhere/p.jsonl"])
def test_uri_that_leads_nowhere_is_an_error_of_the_request(source: str) -> None:
    with pytest.raises(PromptSourceError, match=source):
        find_files(source)


def test_uri_globs_are_sorted(folder: Path) -> None:
    assert [f.name for f in find_files(f"file://{folder}/[0-9]*")] == ["10.txt", "9.jsonl"]
    assert [f.name for f in find_files(f"file://{folder}")] == ["10.txt", "9.jsonl", "a.CSV"]


def test_query_of_a_url_is_no_part_of_the_name() -> None:
    source = "memory://sources/p.jsonl?download=true"
    with fsspec.open(source, "wb") as file:
        file.write(b"broken")
    assert [(f.name, f.format) for f in find_files(source)] == [("p.jsonl", "jsonl")]
    assert [p.id for p in read_prompts(PromptsConfig(source=source))] == ["p.jsonl:1"]


def test_digest_is_that_of_names_and_bytes_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for name in ("b.txt", "a.txt"):
            (tmp_path / place / name).write_text(name)
    expected = digest(tmp_path / "here")
    assert digest(tmp_path / "there") == expected
    assert digest(f"{tmp_path}/here/*.txt") == expected
    assert digest(f"file://{tmp_path}/here") == expected
    assert digest(tmp_path / "here", limit=1) == expected


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "b.txT"), ("b.txt", "a"), ("c.txt", ""), ("d.txt", "b.txt")]
)
def test_digest_changes_with_one_byte_or_one_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a.txt")
    (tmp_path / "b.txt").write_text("b.txt")
    before = digest(tmp_path)
    (tmp_path / name).write_text(content)
    assert digest(tmp_path) != before


def test_digest_changes_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    before = digest(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert digest(tmp_path) != before


def test_digest_changes_where_bytes_move_from_one_file_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("xy")
    (tmp_path / "b.txt").write_text("z")
    before = digest(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("yz")
    assert digest(tmp_path) != before


def test_digest_takes_the_etag_of_a_store_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store(MemoryFileSystem):  # type: ignore[misc]
        """A store with etags, whose files can't be read."""

        protocol = "etagged"
        etag = "one"

        def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
            return {"name": path, "size": 1, "type": "file", "ETag": self.etag}

        def isfile(self, path: str) -> bool:
            return True

        def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("an etag makes reading needless")

    fsspec.register_implementation("etagged", Store, clobber=True)
    before = digest("etagged://p.jsonl")
    assert digest("etagged://p.jsonl") == before
    monkeypatch.setattr(Store, "etag", "two")
    assert digest("etagged://p.jsonl") != before
