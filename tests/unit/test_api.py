"""The names of the package itself, on an output that is there."""

import re
from pathlib import Path

import datasets
import pytest

import negtemp_data
from negtemp_data.errors import ExportError, OutputError
from small_output import make_siblings, write_output

PAGE = Path(__file__).parents[2] / "docs/python.md"
ROWS = make_siblings(12)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return write_output(tmp_path / "out", [ROWS]).root


def test_names_are_loaded_when_they_are_used() -> None:
    for name in negtemp_data.__all__:
        assert hasattr(negtemp_data, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = negtemp_data.nothing


def test_the_page_names_what_there_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    used = set(re.findall(r"negtemp_data\.(\w+)", text)) - {"errors"}
    assert used <= set(negtemp_data.__all__)
    table = set(re.findall(r"`(\w+)\(", text.partition("| Function |")[2].partition("\n\n")[0]))
    assert table == set(negtemp_data.__all__) - {"Job", "RunStatus"}


def test_types_are_marked_as_part_of_the_package() -> None:
    assert (Path(negtemp_data.__file__).parent / "py.typed").is_file()


def test_check_of_what_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        negtemp_data.check(tmp_path)


def test_an_export_takes_the_options_of_its_format(out: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    result = negtemp_data.export_dataset(
        out,
        tmp_path / "dpo",
        "dpo",
        split="train=0.5,test=0.5",
        on_progress=lambda done, total: told.append((done, total)),
        margin=0.5,
    )
    assert result.is_complete
    assert sum(result.rows.values()) == 12
    assert told == [(24, 24)]
    loaded = datasets.load_dataset(str(tmp_path / "dpo"), split="train")
    assert loaded.num_rows == result.rows["train"]


def test_an_export_refuses_an_option_of_another_format(out: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is for --format dpo, not for kto"):
        negtemp_data.export_dataset(out, tmp_path / "kto", "kto", margin=0.5)
    assert not (tmp_path / "kto").exists()
