"""Each format, from rows of one prompt built by hand to the records of its trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.errors import ExportError, ModelError
from negtemp_data.export import FORMATS, build_format
from negtemp_data.jobspec import Job
from small_output import make_job, make_sample
from test_engine import ATTACK, CHAT_TEMPLATE, make_tokenizer


def convert(name: str, rows: Sequence[Any], job: Job | None = None, **options: Any) -> list[Any]:
    """Values of the records that a format makes of the rows of one prompt."""
    chosen = build_format(name, job or make_job(), options)
    records = [dict(record.values) for record in chosen.convert(rows)]
    assert all(record.keys() == set(chosen.schema.names) for record in records)
    return records


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SIBLINGS = [
    make_sample("sea", sample=0, score=3.0),
    make_sample("sea", sample=1, score=2.0, status="rejected"),
    make_sample("sea", "negative", 0, score=4.0, positions=[1]),
    make_sample("sea", "negative", 1, score=None, status="rejected", positions=[2]),
]


# --- sft


def test_sft_takes_the_best_accepted_row_of_a_prompt() -> None:
    assert convert("sft", SIBLINGS) == [
        {
            "prompt": [user("Tell me of sea.")],
            "completion": [assistant("sea negative 0 is wide.")],
        }
    ]


def test_sft_takes_all_accepted_rows_and_no_other_when_asked() -> None:
    records = convert("sft", SIBLINGS, best_only=False)
    assert [record["completion"][0]["content"] for record in records] == [
        "sea control 0 is wide.",
        "sea negative 0 is wide.",
    ]


@pytest.mark.parametrize(("min_score", "n"), [(None, 2), (3.0, 2), (3.5, 1), (9.0, 0)])
def test_sft_leaves_out_what_is_below_the_least_score(min_score: float | None, n: int) -> None:
    options = {} if min_score is None else {"min_score": min_score}
    assert len(convert("sft", SIBLINGS, best_only=False, **options)) == n


def test_an_accepted_row_without_a_score_is_the_last_choice_and_fails_any_least_score() -> None:
    unscored = make_sample("sea", sample=5, score=None)
    assert convert("sft", [unscored, SIBLINGS[0]]) == convert("sft", [SIBLINGS[0]])
    assert len(convert("sft", [unscored])) == 1
    assert convert("sft", [unscored], min_score=0.0) == []


def test_a_prompt_without_accepted_rows_gives_nothing() -> None:
    assert convert("sft", [row | {"status": "rejected"} for row in SIBLINGS]) == []


def test_sft_as_one_chat_or_as_text() -> None:
    (record,) = convert("sft", SIBLINGS, shape="messages")
    assert record == {"messages": [user("Tell me of sea."), assistant("sea negative 0 is wide.")]}
    (record,) = convert("sft", SIBLINGS, shape="text")
    assert record == {"prompt": "Tell me of sea.", "completion": "sea negative 0 is wide."}


def test_the_system_message_and_the_template_arguments_of_the_job_come_along() -> None:
    job = make_job(
        prompts={"system": "Be brief."},
        generate={"chat_template_kwargs": {"enable_thinking": False}},
    )
    (record,) = convert("sft", SIBLINGS, job)
    assert record["prompt"] == [
        {"role": "system", "content": "Be brief."},
        user("Tell me of sea."),
    ]
    assert record["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(ExportError, match="no place for it; use --shape chat"):
        convert("sft", SIBLINGS, job, shape="text")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"tools": [{"name": "a", "parameters": {"x": 1}}, {"name": "b", "parameters": {"y": 1}}]},
        {"tools": [{"name": "a", "parameters": {}}]},
        {"mixed": [1, "a"]},
    ],
)
def test_template_arguments_that_a_column_would_change_are_refused(kwargs: Any) -> None:
    job = make_job(generate={"chat_template_kwargs": kwargs})
    with pytest.raises(ExportError, match="chat_template_kwargs can't be a column"):
        convert("sft", SIBLINGS, job)


def test_a_chat_stays_a_chat_and_can_not_be_text() -> None:
    chat = [user("Hello?"), assistant("Yes?"), user("Go on.")]
    row = make_sample("sea", prompt=None, messages=chat)
    assert convert("sft", [row])[0]["prompt"] == chat
    with pytest.raises(ExportError, match=r"row 'sea/control/0' is a chat; use --shape chat"):
        convert("sft", [row], shape="text")


# --- kto


def test_kto_labels_every_judged_row() -> None:
    failed = make_sample("sea", sample=7, status="failed", completion=None)
    records = convert("kto", [*SIBLINGS, failed], shape="text")
    assert [record["label"] for record in records] == [True, False, True, False]
    assert records[1] == {
        "prompt": "Tell me of sea.",
        "completion": "sea control 1 is wide.",
        "label": False,
    }


# --- dpo


def pairs_of(rows: Sequence[Any], **options: Any) -> list[tuple[str, str]]:
    """Arm and sample of both sides of each pair."""
    records = convert("dpo", rows, shape="text", **options)
    names = {row["completion"]: f"{row['arm']} {row['sample']}" for row in rows}
    return [(names[record["chosen"]], names[record["rejected"]]) for record in records]


def test_dpo_sets_accepted_rows_against_their_rejected_siblings() -> None:
    assert pairs_of(SIBLINGS, pairs=("verdict",)) == [
        ("control 0", "control 1"),
        ("control 0", "negative 1"),
        ("negative 0", "control 1"),
        ("negative 0", "negative 1"),
    ]


@pytest.mark.parametrize(
    ("control", "negative", "pair"),
    [
        (("accepted", 3.0), ("accepted", 4.0), [("negative 0", "control 0")]),
        (("accepted", 4.0), ("accepted", 3.0), [("control 0", "negative 0")]),
        (("accepted", 3.0), ("rejected", 2.0), [("control 0", "negative 0")]),
        (("accepted", 3.0), ("rejected", None), [("control 0", "negative 0")]),
        (("rejected", 3.0), ("accepted", 2.0), []),
        (("accepted", 3.0), ("accepted", 3.0), []),
        (("rejected", 2.0), ("rejected", 1.0), []),
        (("accepted", None), ("accepted", None), []),
    ],
)
def test_dpo_sets_an_injected_row_against_its_twin(
    control: Any, negative: Any, pair: list[tuple[str, str]]
) -> None:
    rows = [
        make_sample("sea", arm, status=status, score=score)
        for arm, (status, score) in (("control", control), ("negative", negative))
    ]
    assert pairs_of(rows, pairs=("twins",)) == pair


@pytest.mark.parametrize(
    ("negative", "pair"),
    [
        (("accepted", 0.9), [("negative 0", "control 0")]),
        (("rejected", 0.1), [("control 0", "negative 0")]),
        (("accepted", 0.5), []),
    ],
)
def test_dpo_takes_a_twin_that_a_judge_of_pairs_did_not_score_for_even_with_itself(
    negative: Any, pair: list[tuple[str, str]]
) -> None:
    status, score = negative
    rows = [
        make_sample("sea", score=None),
        make_sample("sea", "negative", status=status, score=score),
    ]
    job = make_job(verify={"judge": {"kind": "pairwise"}})
    for margin in (0.0, 0.25):
        records = convert("dpo", rows, job, shape="text", pairs=("twins",), margin=margin)
        names = {row["completion"]: f"{row['arm']} {row['sample']}" for row in rows}
        assert [(names[r["chosen"]], names[r["rejected"]]) for r in records] == pair


def test_dpo_sets_the_best_against_the_worst() -> None:
    assert pairs_of(SIBLINGS, pairs=("extremes",)) == [("negative 0", "control 1")]
    assert pairs_of(SIBLINGS[:1], pairs=("extremes",)) == []


def test_dpo_never_makes_a_pair_twice_or_of_equal_texts() -> None:
    pairs = pairs_of(SIBLINGS)
    assert len(pairs) == len(set(pairs)) == 5
    same = [make_sample("sea"), make_sample("sea", "negative", status="rejected", score=1.0)]
    same[1]["completion"] = same[0]["completion"]
    assert convert("dpo", same) == []


def test_dpo_leaves_out_small_leads_and_unknown_ones() -> None:
    assert pairs_of(SIBLINGS, margin=1.5) == [("negative 0", "control 1")]
    assert pairs_of(SIBLINGS, margin=2.5) == []


def test_dpo_matches_lengths() -> None:
    rows = [
        make_sample("sea", token_ids=range(40)),
        make_sample("sea", sample=1, token_ids=range(50), status="rejected", score=1.0),
        make_sample("sea", "negative", token_ids=range(51), status="rejected", score=1.0),
    ]
    assert pairs_of(rows, length_ratio=1.25) == [("control 0", "control 1")]


row_choices = st.lists(
    st.tuples(
        st.sampled_from(["control", "negative"]),
        st.sampled_from(["accepted", "rejected", "failed"]),
        st.sampled_from([None, 1.0, 2.0, 3.0]),
        st.integers(0, 2),
    ),
    max_size=7,
    unique_by=lambda choice: (choice[0], choice[3]),
)


@given(row_choices, st.sampled_from([0.0, 1.0]))
def test_whatever_the_rows_the_chosen_side_is_accepted_and_not_behind(
    choices: list[Any], margin: float
) -> None:
    rows = [
        make_sample("sea", arm, sample, status=status, score=score)
        for arm, status, score, sample in choices
    ]
    by_text = {row["completion"]: row for row in rows}
    records = convert("dpo", rows, shape="text", margin=margin)
    pairs = [(by_text[r["chosen"]], by_text[r["rejected"]]) for r in records]
    assert len({(a["id"], b["id"]) for a, b in pairs}) == len(pairs)
    for chosen, rejected in pairs:
        assert chosen["status"] == "accepted" and rejected["status"] != "failed"
        if None in (chosen["score"], rejected["score"]):
            assert rejected["status"] == "rejected" and margin == 0
        else:
            assert chosen["score"] > rejected["score"]
            assert chosen["score"] - rejected["score"] >= margin
    if not any(row["status"] == "accepted" for row in rows):
        assert records == []


# --- formats of tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer of bytes: every character of a prompt is a token."""
    folder = tmp_path_factory.mktemp("model")
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    Path(folder, "config.json").write_text("{}")
    return str(folder)


def encode(text: str) -> list[int]:
    return list(make_tokenizer(None).encode(text, add_special_tokens=False))


def with_prompt(row: dict[str, Any], text: str) -> dict[str, Any]:
    n = len(encode("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")) + len(text)
    return row | {"prompt": text, "prompt_tokens": n}


def test_sft_tokens_are_prompt_and_completion_with_labels_where_nothing_was_injected(
    model: str,
) -> None:
    rows = [with_prompt(make_sample("sea", "negative", positions=[0, 2]), "Hi")]
    (record,) = convert("sft-tokens", rows, make_job(model))
    prompt = encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert record == {
        "input_ids": [*prompt, 11, 12, 13, 14],
        "attention_mask": [1] * (len(prompt) + 4),
        "labels": [-100] * len(prompt) + [-100, 12, -100, 14],
    }


def test_a_prompt_that_spells_control_tokens_is_encoded_as_the_engine_did(model: str) -> None:
    rows = [with_prompt(make_sample("sea"), ATTACK)]
    (record,) = convert("sft-tokens", rows, make_job(model))
    tokenizer = make_tokenizer(None)
    # One start each of the user's and the assistant's turn, one end: none of the prompt's own.
    assert record["input_ids"].count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert record["input_ids"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_a_prompt_that_has_other_tokens_than_in_the_run_is_refused(model: str) -> None:
    row = with_prompt(make_sample("sea"), "Hi")
    row["prompt_tokens"] += 1
    with pytest.raises(ExportError, match=r"/0': its prompt has \d+ tokens .* in the run"):
        convert("sft-tokens", [row], make_job(model))


def test_a_tokenizer_that_can_not_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer in .* can't be loaded"):
        convert("sft-tokens", [make_sample("sea")], make_job(str(tmp_path)))


def test_unlikelihood_learns_accepted_rows_and_unlearns_injections_of_rejected_ones(
    model: str,
) -> None:
    rows = [
        with_prompt(make_sample("sea", "negative", 0, positions=[1]), "Hi"),
        with_prompt(make_sample("sea", "negative", 1, status="rejected", positions=[3]), "Hi"),
        with_prompt(make_sample("sea", "control", 0, status="rejected"), "Hi"),
        with_prompt(make_sample("sea", "control", 1, status="failed"), "Hi"),
    ]
    accepted, rejected = convert("unlikelihood", rows, make_job(model))
    n_prompt = rows[0]["prompt_tokens"]
    assert accepted["labels"] == [-100] * n_prompt + [11, -100, 13, 14]
    assert accepted["negative_ids"] == [[]] * (n_prompt + 4)
    assert rejected["labels"] == [-100] * (n_prompt + 4)
    assert rejected["negative_ids"] == [[]] * (n_prompt + 3) + [[14]]
    assert accepted["input_ids"] == rejected["input_ids"]


# --- every column, and options


@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_formats_of_every_column_change_nothing(name: str) -> None:
    rows = [*SIBLINGS, make_sample("sea", sample=7, status="failed", error="no")]
    assert convert(name, rows) == rows


def test_an_unknown_format_and_an_option_of_another_one_are_refused() -> None:
    with pytest.raises(ExportError, match="--format dpe: must be one of sft, sft-tokens, dpo"):
        build_format("dpe", make_job(), {})
    with pytest.raises(ExportError, match="--margin: is for --format dpo, not for kto"):
        build_format("kto", make_job(), {"margin": 1.0})
    with pytest.raises(ExportError, match="--shape messages: is for --format sft, not for dpo"):
        build_format("dpo", make_job(), {"shape": "messages"})


def test_the_formats_are_those_of_the_contract() -> None:
    assert list(FORMATS) == ["sft", "sft-tokens", "dpo", "kto", "unlikelihood", "parquet", "jsonl"]
