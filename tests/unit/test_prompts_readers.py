"""Prompts of every format: same rows, same prompts; a bad row is one bad prompt."""

import csv
import datetime
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negtemp_data.errors import JobError, PromptSourceError
from negtemp_data.jobspec import PromptsConfig
from negtemp_data.prompts import MAX_PROMPT_BYTES, Message, Prompt, formats, read_prompts

ROWS = [
    {"id": "a", "prompt": "Why is the sky blue?", "topic": "physics"},
    {"id": "b", "prompt": "Erkläre 'Größe', \"quoted\",\nin two lines.", "topic": "日本"},
    {"id": "c", "prompt": "  spaces stay  ", "topic": ""},
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def read(path: Path | str, **config: Any) -> list[Prompt]:
    return list(read_prompts(PromptsConfig(source=str(path), **config)))


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    """Writes `rows` in the format `kind` to `path`."""
    match kind:
        case "jsonl":
            write_jsonl(path, *rows)
        case "json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "stream" | "file":
            table = pa.Table.from_pylist(rows)
            new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with new(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    return path


KINDS = {
    "jsonl": "p.jsonl",
    "json": "p.json",
    "csv": "p.csv",
    "parquet": "p.parquet",
    "stream": "p.arrow",
    "file": "p.arrow",
}


@pytest.mark.parametrize("kind", KINDS)
def test_same_rows_give_same_prompts_in_every_format(kind: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / KINDS[kind], ROWS, kind)
    assert read(path, id="id") == [
        Prompt(
            row["id"],
            row["prompt"],
            None,
            json.dumps({"topic": row["topic"]}, ensure_ascii=False),
            None,
        )
        for row in ROWS
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "csv"])
def test_chats_are_read_from_every_nested_format(kind: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / KINDS[kind], [{"chat": CHAT}], kind)
    [prompt] = read(path, messages="chat")
    assert prompt.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert (prompt.text, prompt.source, prompt.error) == (None, None, None)


def test_txt_takes_each_non_empty_line_as_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\n  \n  two é\nlast".encode())
    assert [p.text for p in read(path)] == ["one", "  two é", "last"]
    assert read(path, template="Say: {{ prompt }}")[0].text == "Say: one"


def test_blank_lines_and_byte_order_marks_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\n   \r\n{"prompt": "b"}')
    assert [(p.text, p.error) for p in read(path)] == [("a", None), ("b", None)]
    csv_path = tmp_path / "p.csv"
    csv_path.write_bytes(b"\xef\xbb\xbf\nprompt\n\na\n")
    assert [p.text for p in read(csv_path)] == ["a"]


def test_numeric_ids_equal_their_decimal_text_in_csv(tmp_path: Path) -> None:
    rows = [{"id": 7, "prompt": "x"}]
    ids = {
        read(write_rows(tmp_path / KINDS[kind], rows, kind), id="id")[0].id
        for kind in ("jsonl", "csv", "parquet")
    }
    assert ids == {"7"}


def test_content_ids_depend_on_content_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "x", "n": 1}, {"prompt": "y"})
    other = write_jsonl(tmp_path / "b.jsonl", {"prompt": "y", "n": 2}, {"prompt": "x"})
    first, second = ([p.id for p in read(path)] for path in (path, other))
    assert first == second[::-1]
    # Pinned: a changed hash would give every data set new ids.
    assert first[0] == "6d6f773a11561dcc"


def test_content_id_of_a_chat_ignores_key_order(tmp_path: Path) -> None:
    turned = [{"content": m["content"], "role": m["role"]} for m in CHAT]
    path = write_jsonl(tmp_path / "p.jsonl", {"m": CHAT}, {"m": turned}, {"m": CHAT[1:]})
    first, second, third = read(path, messages="m")
    assert second.error == f"duplicate id '{first.id}', first used earlier"
    assert third.error is None and third.id != first.id


def test_limit_counts_rows_over_all_files_from_the_start(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": ""})
    write_jsonl(tmp_path / "b.jsonl", {"prompt": "b"}, {"prompt": "c"})
    assert [p.text for p in read(tmp_path, limit=3)] == ["a", None, "b"]
    assert len(read(tmp_path, limit=9)) == 4


def test_template_is_rendered_over_the_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"id": 1, "topic": "tea", "n": 2})
    [prompt] = read(path, id="id", template="{{ n }} facts about {{ topic | upper }}")
    assert prompt == Prompt("1", "2 facts about TEA", None, '{"topic": "tea", "n": 2}', None)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ colour }}", "'colour' is undefined"),
        ("{{ topic.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if topic == 'none' %}x{% endif %}", "the prompt is empty"),
    ],
)
def test_template_that_fails_on_a_row_is_that_rows_error(
    template: str, reason: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"topic": "tea"})
    [prompt] = read(path, template=template)
    assert prompt.text is None and prompt.error is not None
    assert reason in prompt.error


def test_template_that_is_no_jinja_is_an_error_of_the_job(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": "x"})
    with pytest.raises(JobError, match=r"prompts\.template: not valid jinja, line 1"):
        read(path, template="{% for %}")


GOOD = b'{"id": "good", "prompt": "x"}\n'
BAD_LINES = {
    "broken": (
        b'{"id": "r", "prompt": "x"',
        "not valid JSON: Expecting ',' delimiter at column 26",
    ),
    "no object": (b'["a"]', "the row must be an object, found ['a']"),
    "utf8": (b'{"id": "r", "prompt": "\xff"}', "not valid UTF-8: invalid start byte at byte 24"),
    "deep": (b"[" * 100_000, "the row is nested too deeply"),
    "digits": (b'{"id": ' + b"9" * 5000 + b', "prompt": "x"}', "not readable JSON: Exceeds the"),
    "no id": (b'{"prompt": "x"}', "no column 'id'; the row has ['prompt']"),
    "null id": (
        b'{"id": null, "prompt": "x"}',
        "the id must be text or a whole number, found None",
    ),
    "bool id": (
        b'{"id": true, "prompt": "x"}',
        "the id must be text or a whole number, found True",
    ),
    "float id": (b'{"id": 1.5, "prompt": "x"}', "the id must be text or a whole number, found 1.5"),
    "empty id": (b'{"id": " ", "prompt": "x"}', "the id is empty"),
    "long id": (
        b'{"id": "' + b"i" * 201 + b'", "prompt": "x"}',
        "the id has 201 characters, at most 200 are allowed",
    ),
    "control id": (
        b'{"id": "a\\u0000", "prompt": "x"}',
        "the id holds a control character: 'a\\x00'",
    ),
    "surrogate id": (b'{"id": "\\ud800", "prompt": "x"}', "the id holds a control character"),
    "duplicate": (b'{"id": "good", "prompt": "y"}', "duplicate id 'good', first used earlier"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_row_without_usable_id_is_named_by_its_place(case: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[case]
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD.replace(b"good", b"after"))
    before, bad, after = read(path, id="id")
    assert (before.id, after.id) == ("good", "after")
    assert (before.error, after.error) == (None, None)
    assert (bad.id, bad.text, bad.messages) == ("p.jsonl:2", None, None)
    assert bad.error is not None and bad.error.startswith(reason)


BAD_TEXTS = {
    "missing": ({}, "no column 'prompt'; the row has ['id']"),
    "null": ({"prompt": None}, "column 'prompt' must be text, found None"),
    "number": ({"prompt": 5}, "column 'prompt' must be text, found 5"),
    "list": ({"prompt": ["x"]}, "column 'prompt' must be text, found ['x']"),
    "empty": ({"prompt": ""}, "the prompt is empty"),
    "blank": ({"prompt": " \n\t"}, "the prompt is empty"),
    "surrogate": (
        {"prompt": "ab\ud800"},
        "the prompt is not valid Unicode: a lone surrogate at character 3",
    ),
    "too long": (
        {"prompt": "é" * (MAX_PROMPT_BYTES // 2 + 1)},
        "the prompt has 4194306 bytes, at most 4194304 are allowed",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_row_with_bad_text_keeps_its_own_id(case: str, tmp_path: Path) -> None:
    columns, reason = BAD_TEXTS[case]
    path = write_jsonl(tmp_path / "p.jsonl", {"id": "r", **columns}, {"id": "s", "prompt": "x"})
    bad, good = read(path, id="id")
    assert bad == Prompt("r", None, None, None, reason)
    assert good.error is None


def test_bad_text_without_id_column_is_named_by_its_place(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": "x"}, {"prompt": "", "n": 1})
    assert read(path)[1] == Prompt("p.jsonl:2", None, None, '{"n": 1}', "the prompt is empty")


def test_longest_prompt_is_accepted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": "x" * MAX_PROMPT_BYTES})
    assert read(path)[0].error is None


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([], "column 'm' must be a non-empty list of {role, content}, found []"),
        ("hi", "column 'm' must be a non-empty list of {role, content}, found 'hi'"),
        (["hi"], "m[0] must be an object with role and content, found 'hi'"),
        ([{"role": "user"}], "m[0] must be an object with role and content"),
        ([*CHAT, {"role": "bot", "content": "x"}], "m[2].role must be one of system, user, "),
        ([{"role": ["user"], "content": "x"}], "m[0].role must be one of system, user, "),
        ([{"role": "user", "content": None}], "m[0].content must be text, found None"),
        ([{"role": "user", "content": " "}], "the prompt is empty"),
        ([{"role": "user", "content": "x" * 2**21}] * 3, "the prompt has 6291456 bytes"),
    ],
)
def test_malformed_chat_is_that_rows_error(chat: Any, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"id": "r", "m": chat}, {"id": "s", "m": CHAT})
    bad, good = read(path, id="id", messages="m")
    assert (bad.id, bad.messages) == ("r", None)
    assert bad.error is not None and bad.error.startswith(reason)
    assert good.error is None


def test_id_of_a_bad_row_is_taken_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"id": "r", "prompt": ""}, {"id": "r", "prompt": "x"})
    assert read(path, id="id")[1].error == "duplicate id 'r', first used earlier"


def test_every_prompt_has_an_id_of_its_own_even_where_ids_imitate_places(tmp_path: Path) -> None:
    rows = [{"id": "p.jsonl:2", "prompt": "x"}, 5, {"id": "p.jsonl:2+", "prompt": "y"}]
    prompts = read(write_jsonl(tmp_path / "p.jsonl", *rows), id="id")
    assert [p.id for p in prompts] == ["p.jsonl:2", "p.jsonl:2+", "p.jsonl:3"]


def test_message_quotes_at_most_200_characters_of_a_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": ["x" * 10_000]})
    assert len(read(path)[0].error or "") < 300


def test_line_over_the_limit_is_skipped_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 64)
    path = tmp_path / "p.txt"
    lines = [b"x" * 64, b"y" * 65, b"z" * 1000, b"end", b"w" * 65]
    path.write_bytes(b"\n".join(lines))
    prompts = read(path)
    too_long = "the line is longer than 64 bytes"
    assert [p.error for p in prompts] == [None, too_long, too_long, None, too_long]
    assert [p.id for p in prompts if p.error] == ["p.txt:2", "p.txt:3", "p.txt:5"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"x": -float("inf")}], "\ud800"])
def test_source_is_valid_json_and_utf8_whatever_a_row_holds(value: Any, tmp_path: Path) -> None:
    [prompt] = read(write_jsonl(tmp_path / "p.jsonl", {"prompt": "x", "ü": value}))
    assert prompt.source is not None and "ü" in prompt.source
    prompt.source.encode()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    loaded = json.loads(prompt.source, parse_constant=refuse)
    assert loaded == {"ü": [{"x": "-inf"}] if isinstance(value, list) else str(value)}


def test_row_nested_at_any_depth_is_one_prompt(tmp_path: Path) -> None:
    # Parsing and writing give up at different depths; in between, a row parses and has no source.
    depths = range(100, 1500, 50)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "{d}", "x": {"[" * d}NaN{"]" * d}}}\n' for d in depths))
    prompts = read(path)
    assert len(prompts) == len(depths)
    assert prompts[0].error is None
    assert {p.error is None for p in prompts} == {True, False}
    assert all("nested too deeply" in p.error for p in prompts if p.error is not None)


def test_values_that_json_lacks_become_text(tmp_path: Path) -> None:
    row = {"prompt": "x", "day": datetime.date(2024, 2, 29), "raw": b"\x00"}
    [prompt] = read(write_rows(tmp_path / "p.parquet", [row], "parquet"))
    assert prompt.source == '{"day": "2024-02-29", "raw": "b\'\\\\x00\'"}'


def test_csv_rows_are_judged_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'id,prompt\na,one\nb\nc,\xff\nd,"x"y\n\ne,"two\nlines"\nf,\ng,"no end')
    assert [(p.id, p.text, p.error) for p in read(path, id="id")] == [
        ("a", "one", None),
        ("p.csv:2", None, "the row has 1 fields, the header 2"),
        ("p.csv:3", None, "not valid UTF-8"),
        ("p.csv:4", None, "not valid csv: ',' expected after '\"'"),
        ("e", "two\nlines", None),
        ("f", None, "the prompt is empty"),
        ("p.csv:7", None, "not valid csv: unexpected end of data"),
    ]


@pytest.mark.parametrize(
    ("text", "lines"), [('a,"no end\nb,two\nc,three\n', "3 to 5"), ('a,"one\nb,"two"\n', "3 to 4")]
)
def test_a_quote_that_would_swallow_rows_of_a_csv_is_refused(
    text: str, lines: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"id,prompt\nz,zero\n{text}")
    with pytest.raises(
        PromptSourceError, match=f"lines {lines}: not valid csv: .* a quote is open"
    ):
        read(path, id="id")


def test_csv_takes_prompts_as_long_as_any_other_format(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.csv", [{"prompt": "x" * MAX_PROMPT_BYTES}], "csv")
    assert read(path)[0].error is None


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_one_value_that_is_not_utf8_costs_one_row_of_a_columnar_file(
    kind: str, tmp_path: Path
) -> None:
    texts = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    table = pa.table({"prompt": texts})
    path = tmp_path / KINDS[kind]
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    first, bad, third = read(path)
    assert (first.text, third.text) == ("one", "three")
    assert bad.id.endswith(":2") and bad.text is None
    assert bad.error is not None and "UTF8" in bad.error


def test_rows_of_a_columnar_file_are_numbered_across_batches(tmp_path: Path) -> None:
    texts = [f"p{i}" for i in range(600)] + [""]
    table = pa.table({"prompt": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "b.arrow"):
        prompts = read(tmp_path / name)
        assert [p.text or "" for p in prompts] == texts
        assert prompts[-1].id == f"{name}:601"


UNREADABLE = {
    "p.json": [b'{"prompt": "x"}', b'[{"prompt": "x"', b"[" * 100_000, b'["\xff"]'],
    "p.csv": [b"id,\xff\na,b\n", b"id,id\na,b\n", b'"a"b,c\n'],
    "p.parquet": [b"", b"PAR1 and then nothing", b"x" * 100],
    "p.arrow": [b"", b"ARROW1", b"x" * 100],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in UNREADABLE for content in UNREADABLE[name]]
)
def test_file_that_is_not_of_its_format_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptSourceError, match=f"{name}: can't be read as {path.suffix[1:]}: "):
        read(path)


@pytest.mark.parametrize("kind", ["parquet", "file"])
def test_truncated_columnar_file_is_named(kind: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / KINDS[kind], ROWS, kind)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PromptSourceError, match=path.name):
        read(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"])
    path = tmp_path / "p.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(PromptSourceError, match="two columns of one name"):
        read(path)


def test_csv_line_over_the_limit_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 64)
    path = tmp_path / "p.csv"
    path.write_text("prompt\n" + "x" * 65)
    with pytest.raises(PromptSourceError, match="line 2 is longer than 64 bytes"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.jsonl", b""), ("p.jsonl", b"\n \n"), ("p.json", b"[]"), ("p.csv", b"prompt\n")],
)
def test_source_without_rows_is_an_error(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptSourceError, match="holds no rows"):
        read(tmp_path / name)


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"prompt": "first"})
    (tmp_path / "b.json").write_text("broken")
    prompts = read_prompts(PromptsConfig(source=str(tmp_path)))
    assert next(prompts).text == "first"
    with pytest.raises(PromptSourceError, match=r"b\.json"):
        next(prompts)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    rows = [{"id": f"{i}", "prompt": f"{i} " + "x" * 20_000} for i in range(1000)]
    path = write_rows(tmp_path / KINDS[kind], rows, kind)
    prompts = read_prompts(PromptsConfig(source=str(path), id="id"))
    next(prompts)
    tracemalloc.start()
    n_bad = sum(prompt.error is not None for prompt in prompts)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_bad == 0
    # 20 MB of text; a columnar file comes in batches of 256 rows.
    assert peak_bytes < 13e6


def test_memory_file_systems_are_read_like_local_ones() -> None:
    table = pa.Table.from_pylist(ROWS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with fsspec.open("memory://readers/p.parquet", "wb") as file:
        file.write(buffer.getvalue())
    with fsspec.open("memory://readers/q.jsonl", "wb") as file:
        file.write(b'{"id": "d", "prompt": "x"}\nbroken\n')
    prompts = read("memory://readers", id="id")
    assert [p.id for p in prompts] == ["a", "b", "c", "d", "q.jsonl:2"]


def test_reading_local_jsonl_loads_nothing_heavy(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": "x"})
    code = (
        "import sys, negtemp_data.prompts as prompts, negtemp_data.jobspec as jobspec\n"
        f"config = jobspec.PromptsConfig(source={str(path)!r})\n"
        "assert len(list(prompts.read_prompts(config))) == 1\n"
        "prompts.source_digest(config)\n"
        "print(sorted({'pyarrow', 'fsspec', 'jinja2', 'numpy', 'torch'} & sys.modules.keys()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
