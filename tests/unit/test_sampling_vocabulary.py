"""Token classes and masks, against sets of tokens found one by one."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.sampling.records import Vocabulary
from negtemp_data.sampling.vocabulary import TokenTable

CPU = torch.device("cpu")


def is_utf8(text: bytes) -> bool:
    return "\ufffd" not in text.replace("\ufffd".encode(), b"").decode(errors="replace")


REFERENCE = {
    "byte_fragment": lambda text: not is_utf8(text),
    "word_start": lambda text: text[:1] == b" " and text[1:] != b"",
    "digits": lambda text: re.fullmatch(rb"[ \t\n\r\v\f]*[0-9]+[ \t\n\r\v\f]*", text) is not None,
    "ascii": lambda text: all(byte < 128 for byte in text),
    "code_fence": lambda text: re.search(rb"`{3}|~{3}", text) is not None,
    "json_punctuation": lambda text: (
        re.fullmatch(rb'[ \t\n\r\v\f]*[]{}[:,"]+[ \t\n\r\v\f]*', text) is not None
    ),
    "regex:^[A-Z]|é": lambda text: (
        text.decode(errors="replace")[0] in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        or "é" in text.decode(errors="replace")
    ),
    "regex:": lambda _: True,
}
"""What a text, not empty, has to be like."""

PIECES = [b" ", b"\n", b"7", b"12", b"a", b"Zo", b"`", b"```", b"~~~", b"{", b'":', b"],", b"\xe2"]
texts = st.lists(st.sampled_from([*PIECES, "é".encode(), "…".encode()]), max_size=4).map(
    b"".join
) | st.binary(max_size=4)


@given(vocabulary=st.lists(texts, max_size=20), special=st.sets(st.integers(0, 22), max_size=3))
@settings(max_examples=200, derandomize=True)
def test_a_class_has_the_tokens_whose_text_is_like_it(
    vocabulary: list[bytes], special: set[int]
) -> None:
    table = TokenTable(vocabulary, frozenset(special), eos_ids=frozenset({1, 3}))
    for name, is_member in REFERENCE.items():
        members = table.members(name, 21)
        assert members.dtype == torch.bool
        assert members.shape == (21,)
        assert set(members.nonzero().flatten().tolist()) == {
            i for i, text in enumerate(vocabulary) if text and i not in special and is_member(text)
        }, name
    is_token = {i for i, text in enumerate(vocabulary) if text}
    found = {
        name: table.members(name, 21).nonzero().flatten().tolist() for name in ("special", "eos")
    }
    assert set(found["special"]) == special & is_token
    assert set(found["eos"]) == {1, 3} & is_token


TABLE = TokenTable(
    [b"<s>", b" a", b" b", b"c", b"d", b" ", b"7", b"</s>", b"", b"<"],
    special_ids=frozenset({0, 7}),
    eos_ids=frozenset({7}),
)


@pytest.mark.parametrize("width", [10, 13, 5])
@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (Vocabulary(), set(range(10)) - {8}),
        (Vocabulary(exclude=("special",)), set(range(10)) - {0, 7, 8}),
        (Vocabulary(include=("word_start",)), {1, 2}),
        (Vocabulary(include=("word_start", "special")), {0, 1, 2, 7}),
        (Vocabulary(include=("word_start", "digits"), exclude=("eos",)), {1, 2, 6}),
        (Vocabulary(exclude=("word_start", "special")), {3, 4, 5, 6, 9}),
        (Vocabulary(include=("regex:^[a-d]$",), exclude=("special",)), {3, 4}),
        (Vocabulary(include=("special", "ascii"), exclude=("eos", "regex:^ ")), {0, 3, 4, 6, 9}),
    ],
)
def test_a_vocabulary_allows_its_classes_within_the_tokenizer_and_the_logits(
    width: int, vocabulary: Vocabulary, expected: set[int]
) -> None:
    expected = {token for token in expected if token < width}
    mask = TABLE.mask(vocabulary, width, CPU)
    assert mask.shape == (width,)
    assert set(mask.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(include=("special",), exclude=("special",)),
        Vocabulary(include=("digits",)),
        Vocabulary(include=("code_fence",)),
    ],
)
def test_a_vocabulary_with_fewer_than_two_tokens_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="leaves fewer than two tokens of this model"):
        TABLE.mask(vocabulary, 10, CPU)


def test_tokens_beyond_the_logits_do_not_make_up_for_those_within() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        TABLE.mask(Vocabulary(include=("special",)), 7, CPU)


@pytest.mark.parametrize("name", ["verbs", "Special", "script:Latin", "regex", ""])
def test_an_unknown_class_is_refused_with_those_known(name: str) -> None:
    known = "special, eos, byte_fragment, .*regex:PATTERN, .*english, undertrained, script:NAME"
    for call in (
        lambda: TABLE.members(name, 10),
        lambda: TABLE.mask(Vocabulary(include=(name,)), 10, CPU),
        lambda: TABLE.mask(Vocabulary(exclude=(name,)), 10, CPU),
    ):
        with pytest.raises(ValueError, match=f"unknown token class {name!r}; known: {known}"):
            call()


def test_a_pattern_that_is_none_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"'regex:\(a': '\(a' is no regular .*missing \)"):
        TABLE.members("regex:(a", 10)


def test_a_pattern_that_backtracks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negtemp_data.sampling.vocabulary._REGEX_TIMEOUT_S", 0.2)
    table = TokenTable([b"a" * 40 + b"!"], frozenset())
    with pytest.raises(ValueError, match=r"takes more than 0\.2 s on this model's tokens"):
        table.members("regex:^(a|a)*$", 1)


def test_classes_from_elsewhere_are_asked_for_once_and_hold_no_special_token() -> None:
    asked = []

    def more(name: str) -> list[int] | None:
        asked.append(name)
        return [0, 1, 4, 8, 99] if name == "english" else None

    table = TokenTable(TABLE.texts, TABLE.special_ids, more=more)
    for _ in range(2):
        assert table.members("english", 10).nonzero().flatten().tolist() == [1, 4]
        assert table.mask(Vocabulary(include=("english",)), 10, CPU).sum() == 2
    assert asked == ["english"]
    with pytest.raises(ValueError, match="unknown token class 'dutch'"):
        table.members("dutch", 10)


def test_what_is_handed_out_can_be_changed_without_harm() -> None:
    table = TokenTable(TABLE.texts, TABLE.special_ids)
    table.members("digits", 10).fill_(True)
    table.mask(Vocabulary(include=("word_start",)), 10, CPU).fill_(False)
    assert table.members("digits", 10).sum() == 1
    assert table.mask(Vocabulary(include=("word_start",)), 10, CPU).sum() == 2


def test_a_table_without_tokens_has_empty_classes() -> None:
    table = TokenTable([], frozenset({3}))
    assert not table.members("ascii", 4).any()
    assert not table.members("special", 4).any()
    with pytest.raises(ValueError, match="fewer than two"):
        table.mask(Vocabulary(), 4, CPU)
