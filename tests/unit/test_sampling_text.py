"""Text triggers: the automata over tokens against a reading of the text itself."""

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from negtemp_data.sampling.records import TextTrigger
from negtemp_data.sampling.text import FireCode, TextAutomata
from negtemp_data.sampling.vocabulary import TokenTable

CPU = torch.device("cpu")
SENTENCE, LINE, WORD = TextTrigger("sentence"), TextTrigger("line"), TextTrigger("word")

PIECES = [
    *(bytes([byte]) for byte in "ab.…”。」\u3000\u00a0é".encode()),
    *(char.encode() for char in "ab \t\n.!?…\"')]”’»*。！？」』）\u3000\u2028\x1c,é🙂"),
    b"",
    b"\xff",
    b"ab",
    b".\n",
    b"</th",
    b"ink>",
    b'." ',
]
texts = st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join) | st.binary(max_size=3)
vocabularies = st.lists(texts, min_size=1, max_size=8)
literals = st.text("ab\n.", min_size=1, max_size=6) | st.sampled_from(
    ["aa", "aba", "abab", "aabaa", "</think>", "…", "a…”", "é", "。a"]
)
triggers = st.sampled_from([SENTENCE, LINE, WORD]) | literals.map(
    lambda literal: TextTrigger("literal", literal)
)


def fires(trigger: TextTrigger, spelled: list[bytes], is_space_next: bool) -> bool:
    """Whether a trigger fires after tokens that add `spelled` to the text."""
    text = b"".join(spelled)
    if trigger.after in ("literal", "line"):
        literal = trigger.literal.encode() or b"\n"
        last = spelled[-1] if spelled else b""
        ends = [i + len(literal) for i in range(len(text)) if text[i:].startswith(literal)]
        return any(len(text) - len(last) < end for end in ends)
    chars = text.decode(errors="replace")
    if trigger.after == "word":
        return is_space_next and not chars[-1:].isspace() and chars != ""
    is_over = re.search(r"""[.!?…]["')\]”’»*]*\Z""", chars) is not None
    is_over_cjk = re.search(r"""[。！？][」』）"'”’]*\Z""", chars) is not None
    return (is_over and is_space_next) or is_over_cjk


def fires_by_table(automata: TextAutomata, state: int, is_space_next: bool) -> bool:
    return FireCode(int(automata.code_X[state])) in (
        {FireCode.ALWAYS, FireCode.BEFORE_SPACE} if is_space_next else {FireCode.ALWAYS}
    )


@given(
    vocabulary=vocabularies,
    width=st.integers(0, 10),
    asked=st.lists(triggers, min_size=1, max_size=3),
    sequence=st.lists(st.integers(0, 9), max_size=12),
)
@example([b"a"], 1, [TextTrigger("literal", "aa")], [0, 0, 0, 0])
@example([b"ab", b"aba"], 2, [TextTrigger("literal", "abab")], [0, 0, 1, 1])
@example(["…".encode()[:2], "…".encode()[2:], b"."], 3, [SENTENCE], [2, 0, 1, 2, 0])
@example([b".", b"\xe2", b" "], 3, [SENTENCE, WORD], [0, 1, 0, 2, 1])
@example(["。".encode(), "」".encode(), b"."], 3, [SENTENCE], [0, 1, 2, 1])
@settings(max_examples=200, derandomize=True)
def test_a_trigger_fires_where_the_text_says_so(
    vocabulary: list[bytes], width: int, asked: list[TextTrigger], sequence: list[int]
) -> None:
    width += 1
    automata = TextAutomata(TokenTable(vocabulary, frozenset()), width, CPU)
    starts = [automata.register(trigger) for trigger in asked]
    for trigger, start in zip(asked, starts, strict=True):
        state, spelled = start, list[bytes]()
        for token in [None, *(token for token in sequence if token < width)]:
            if token is not None:
                state = int(automata.next_XV[state, token])
                spelled.append(vocabulary[token] if token < len(vocabulary) else b"")
            for is_space_next in (False, True):
                assert fires_by_table(automata, state, is_space_next) == fires(
                    trigger, spelled, is_space_next
                ), (trigger, spelled)


@given(trigger=triggers, vocabulary=vocabularies)
@settings(max_examples=50, derandomize=True)
def test_every_state_leads_to_a_state_of_its_own_trigger(
    trigger: TextTrigger, vocabulary: list[bytes]
) -> None:
    automata = TextAutomata(TokenTable(vocabulary, frozenset()), len(vocabulary) + 2, CPU)
    automata.register(TextTrigger("literal", "zz"))
    start = automata.register(trigger)
    assert automata.next_XV.dtype == torch.int32
    assert automata.code_X.dtype == torch.int8
    assert automata.next_XV.shape == (len(automata.code_X), len(vocabulary) + 2)
    assert automata.next_XV[:start].lt(start).all()
    assert automata.next_XV[start:].ge(start).all()
    assert automata.next_XV[start:].lt(len(automata.code_X)).all()
    assert automata.code_X[start] == FireCode.NEVER


def test_rows_with_different_triggers_step_together() -> None:
    automata = TextAutomata(TokenTable([b"a", b"a\n", b".", b" b"], frozenset()), 4, CPU)
    states = torch.tensor([automata.register(each) for each in (LINE, SENTENCE, WORD)])
    for token, codes in [
        (0, [FireCode.NEVER, FireCode.NEVER, FireCode.BEFORE_SPACE]),
        (1, [FireCode.ALWAYS, FireCode.NEVER, FireCode.NEVER]),
        (2, [FireCode.NEVER, FireCode.BEFORE_SPACE, FireCode.BEFORE_SPACE]),
    ]:
        states = automata.next_XV[states, torch.full((3,), token)]
        assert automata.code_X[states].tolist() == codes


def test_a_trigger_has_one_start_however_often_it_is_registered() -> None:
    automata = TextAutomata(TokenTable([b"a", b"\n"], frozenset()), 2, CPU)
    first = [automata.register(trigger) for trigger in (LINE, WORD, SENTENCE)]
    n_states = len(automata.code_X)
    assert [automata.register(trigger) for trigger in (LINE, WORD, SENTENCE)] == first
    assert automata.register(TextTrigger("literal", "\n")) == first[0]
    assert len(set(first)) == 3
    assert len(automata.code_X) == n_states


@pytest.mark.parametrize(
    ("text", "is_over"),
    [
        ("It works.", True),
        ("Does it?!", True),
        ("He said “no.”", True),
        ('("Yes!")', True),
        ("and so on…", True),
        ("1.", True),
        ("It works. ", False),
        ("It works,", False),
        ("3.14", False),
        ("(no)", False),
        ("Yes!」", False),
    ],
)
def test_a_sentence_is_over_before_a_space(text: str, is_over: bool) -> None:
    spelled = [char.encode() for char in text]
    vocabulary = sorted(set(spelled))
    automata = TextAutomata(TokenTable(vocabulary, frozenset()), len(vocabulary), CPU)
    state = automata.register(SENTENCE)
    for char in spelled:
        state = int(automata.next_XV[state, vocabulary.index(char)])
    expected = FireCode.BEFORE_SPACE if is_over else FireCode.NEVER
    assert automata.code_X[state] == expected


def test_a_word_is_over_after_any_character_but_whitespace() -> None:
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    spaces = [char for char in chars if char.isspace()]
    others = ["a", ".", "é", "\u200b", "\u3001", "\ufeff", "世", "🙂", chars[-1]]
    spelled = [char.encode() for char in [*spaces, *others]]
    automata = TextAutomata(TokenTable(spelled, frozenset()), len(spelled), CPU)
    start = automata.register(WORD)
    codes = automata.code_X[automata.next_XV[start]].tolist()
    assert codes[: len(spaces)] == [FireCode.NEVER] * len(spaces)
    assert codes[len(spaces) :] == [FireCode.BEFORE_SPACE] * len(others)


def test_a_token_may_complete_a_literal_and_begin_it_anew() -> None:
    automata = TextAutomata(TokenTable([b"xaba", b"ba", b"b"], frozenset()), 3, CPU)
    state = automata.register(TextTrigger("literal", "aba"))
    fired = []
    for token in (0, 1, 2, 1, 1):
        state = int(automata.next_XV[state, token])
        fired.append(int(automata.code_X[state]) == FireCode.ALWAYS)
    assert fired == [True, True, False, False, True]


def test_tokens_that_begin_with_whitespace_are_told_by_their_first_byte() -> None:
    spelled = [b" a", b"a ", b"\t", b"\n\n", b"\r", b"\x0b", "\u3000".encode(), b"", b" <s>"]
    automata = TextAutomata(TokenTable(spelled, frozenset({8, 40})), 11, CPU)
    assert automata.begins_with_space_V.nonzero().flatten().tolist() == [0, 2, 3, 4]
    assert automata.begins_with_space_V.shape == (11,)
    narrow = TextAutomata(TokenTable(spelled, frozenset({8, 40})), 3, CPU)
    assert narrow.begins_with_space_V.tolist() == [True, False, True]


def test_a_control_token_counts_as_it_is_spelled() -> None:
    automata = TextAutomata(TokenTable([b"</think>", b"."], frozenset({0})), 2, CPU)
    literal = automata.register(TextTrigger("literal", "</think>"))
    sentence = automata.register(SENTENCE)
    assert automata.code_X[automata.next_XV[literal, 0]] == FireCode.ALWAYS
    assert automata.code_X[automata.next_XV[automata.next_XV[sentence, 1], 0]] == FireCode.NEVER


def test_a_literal_that_is_no_text_is_refused() -> None:
    automata = TextAutomata(TokenTable([b"a"], frozenset()), 1, CPU)
    for _ in range(2):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            automata.register(TextTrigger("literal", "\ud800"))
    assert len(automata.code_X) == 0
