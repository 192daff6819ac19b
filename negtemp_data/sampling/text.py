r"""Triggers that wait for text, as one automaton over tokens.

What each kind waits for, in the text that the generated tokens add up to (control tokens by their
spelling; bytes that are no UTF-8 count as U+FFFD, so as a character that is nothing special):

- `literal`: an occurrence of its UTF-8 bytes ended within the last token, wherever in it;
  occurrences may overlap. `line` is the literal "\n".
- `word`: the text ends with a character that is not whitespace (`str.isspace`), and the model's
  most likely token begins with whitespace.
- `sentence`: the text ends with one of . ! ? … and any number of " ' ) ] ” ’ » *, and the most
  likely token begins with whitespace; or it ends with one of 。！？ and any number of
  」 』 ） " ' ” ’.

An automaton over bytes is written for a trigger and run over all tokens at once; what is left is a
table of states by tokens, so that a step of any batch is one look-up: state = next[state, token].

Shapes: X states of all triggers, V vocabulary, S states of one automaton over bytes, N tokens of
the tokenizer, B = 256 values of a byte.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from negtemp_data.sampling.records import TextTrigger
from negtemp_data.sampling.vocabulary import TokenTable

_SPACE_BYTES = b" \t\n\r"
"""A token begins with whitespace when its first byte is one of these; special tokens never do."""

_SPACES = frozenset(char for char in map(chr, range(0x3001)) if char.isspace())
"""All whitespace that there is: U+3000 is the last."""

_ENDS, _CLOSERS = frozenset(".!?…"), frozenset("\"')]”’»*")
"""Ends of a sentence, and what may close after them, where a space parts sentences."""
_CJK_ENDS, _CJK_CLOSERS = frozenset("。！？"), frozenset("」』）\"'”’")
"""The same where nothing parts them."""


class FireCode(IntEnum):
    """When a trigger fires in a state."""

    NEVER = 0
    ALWAYS = 1
    BEFORE_SPACE = 2
    """Where the most likely token begins with whitespace."""


class TextAutomata:
    """All text triggers met so far; states are numbered across them."""

    def __init__(self, tokens: TokenTable, vocab_size: int, device: torch.device) -> None:
        """Starts without a trigger.

        Args:
            tokens: Ids beyond them, and those without a text, leave the text as it is.
            vocab_size: V, the width of the logits.
            device: Where the tables live.
        """
        self._texts = _Texts(tokens.texts[:vocab_size])
        self._starts: dict[TextTrigger, int] = {}
        self.next_XV = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        """State after a token. Replaced by a longer one when a trigger is new."""
        self.code_X = torch.zeros(0, dtype=torch.int8, device=device)
        """`FireCode` of each state; replaced likewise."""
        begins_V = torch.zeros(vocab_size, dtype=torch.bool)
        begins_V[: len(self._texts)] = torch.from_numpy(self._texts.begin_with(_SPACE_BYTES))
        begins_V[[i for i in tokens.special_ids if i < vocab_size]] = False
        self.begins_with_space_V = begins_V.to(device)
        """Tokens whose text begins with whitespace."""

    def register(self, trigger: TextTrigger) -> int:
        """State of `trigger` before the first token; it never fires there."""
        if trigger.after == "line":
            trigger = TextTrigger("literal", "\n")
        if trigger not in self._starts:
            automaton = _automaton(trigger)
            self._starts[trigger] = len(self.code_X)
            self._append(automaton)
        return self._starts[trigger]

    def _append(self, automaton: "_ByteAutomaton") -> None:
        """Adds the states of `automaton`, the start first.

        A state over tokens is a state over bytes and whether the last token passed `hit`; where a
        token leads to does not depend on the latter. Only those are kept that some token leads to.
        """
        n_states, device = len(automaton.code_S), self.code_X.device
        # Beyond the tokenizer a token leads from each state to itself.
        pair_SV = np.repeat(np.arange(n_states)[:, None], self.next_XV.shape[1], axis=1)
        pair_SV[:, : len(self._texts)] = self._texts.run(automaton)
        is_kept = np.bincount(pair_SV.ravel(), minlength=2 * n_states) > 0
        is_kept[0] = True
        state_of_pair = np.cumsum(is_kept, dtype=np.int32) - 1 + len(self.code_X)
        pair_X = np.flatnonzero(is_kept)
        next_XV = torch.from_numpy(state_of_pair[pair_SV][pair_X % n_states])
        code_X = torch.from_numpy(automaton.code_S[pair_X % n_states])
        code_X[torch.from_numpy(pair_X >= n_states)] = FireCode.ALWAYS
        self.next_XV = torch.cat([self.next_XV, next_XV.to(device)])
        self.code_X = torch.cat([self.code_X, code_X.to(device)])


@dataclass(frozen=True)
class _ByteAutomaton:
    """Reads bytes; starts in state 0."""

    next_SB: NDArray[np.int16]
    code_S: NDArray[np.int8]
    """`FireCode` where a token ends in the state."""
    hit: int | None = None
    """State in which a token need not end: having passed it is enough to fire."""


class _Texts:
    """The bytes of N tokens, laid out so that an automaton reads one byte of each at a time."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        lengths_N = np.fromiter(map(len, texts), np.int64, len(texts))
        self._order = np.argsort(-lengths_N, kind="stable")
        """Tokens by falling length: those with a byte number j are the first so many."""
        self._bytes = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._begin = (np.cumsum(lengths_N) - lengths_N)[self._order]
        counts = np.bincount(lengths_N, minlength=1)
        self._n_longer = len(texts) - np.cumsum(counts)[:-1]
        """How many tokens have a byte number j."""

    def __len__(self) -> int:
        return len(self._order)

    def begin_with(self, choices: bytes) -> NDArray[np.bool_]:
        """bool [N]: the first byte is one of `choices`."""
        begins_N = np.zeros(len(self), dtype=np.bool_)
        if len(self._n_longer):
            having = slice(self._n_longer[0])
            first = self._bytes[self._begin[having]]
            begins_N[self._order[having]] = np.isin(first, np.frombuffer(choices, dtype=np.uint8))
        return begins_N

    def run(self, automaton: _ByteAutomaton) -> NDArray[np.int64]:
        """[S, N]: state s after each token from each state; S + s where it passed `hit`."""
        n_states = len(automaton.code_S)
        state_SN = np.repeat(np.arange(n_states, dtype=np.int16)[:, None], len(self), axis=1)
        is_hit_SN = np.zeros(state_SN.shape, dtype=np.bool_)
        for index, n_tokens in enumerate(self._n_longer):
            byte = self._bytes[self._begin[:n_tokens] + index]
            state_SN[:, :n_tokens] = automaton.next_SB[state_SN[:, :n_tokens], byte]
            if automaton.hit is not None:
                is_hit_SN[:, :n_tokens] |= state_SN[:, :n_tokens] == automaton.hit
        pair_SN = np.empty(state_SN.shape, dtype=np.int64)
        pair_SN[:, self._order] = state_SN + n_states * is_hit_SN
        return pair_SN


def _automaton(trigger: TextTrigger) -> _ByteAutomaton:
    match trigger.after:
        case "word":
            return _character_automaton(_after_word, _SPACES)
        case "sentence":
            return _character_automaton(
                _after_sentence, _ENDS | _CLOSERS | _CJK_ENDS | _CJK_CLOSERS
            )
        case _:
            return _literal_automaton(trigger.literal.encode())


def _literal_automaton(literal: bytes) -> _ByteAutomaton:
    """State s: the last s bytes are the first s of `literal`, and no more are.

    Source: Knuth, Morris and Pratt, SIAM J. Comput. 6(2), 1977, as a table.
    """
    next_SB = np.zeros((len(literal) + 1, 256), dtype=np.int16)
    shorter = 0  # the state after literal[1:state]: what is left when a byte does not go on
    next_SB[0, literal[0]] = 1
    for state in range(1, len(literal) + 1):
        next_SB[state] = next_SB[shorter]
        if state < len(literal):
            next_SB[state, literal[state]] = state + 1
            shorter = next_SB[shorter, literal[state]]
    code_S = np.full(len(next_SB), FireCode.NEVER, dtype=np.int8)
    return _ByteAutomaton(next_SB, code_S, hit=len(literal))


def _after_word(_: FireCode, char: str) -> FireCode:
    return FireCode.NEVER if char in _SPACES else FireCode.BEFORE_SPACE


def _after_sentence(before: FireCode, char: str) -> FireCode:
    if char in _ENDS:
        return FireCode.BEFORE_SPACE
    if char in _CJK_ENDS:
        return FireCode.ALWAYS
    is_closed = (before is FireCode.BEFORE_SPACE and char in _CLOSERS) or (
        before is FireCode.ALWAYS and char in _CJK_CLOSERS
    )
    return before if is_closed else FireCode.NEVER


def _character_automaton(
    after: Callable[[FireCode, str], FireCode], special: frozenset[str]
) -> _ByteAutomaton:
    """An automaton over characters, fed with their UTF-8 bytes.

    Its states over characters are fire codes, NEVER before the first; one over bytes is that of
    the whole characters so far and the bytes of a character that may be a special one.

    Args:
        after: Code after a character.
        special: Characters that matter; to `after` all others are the same.
    """
    encoded = {char.encode(): char for char in special}
    prefixes = {code[:length] for code in encoded for length in range(1, len(code))}

    def read(code: FireCode, pending: bytes, byte: bytes) -> tuple[FireCode, bytes]:
        # No encoding holds the first byte of another behind its own: a byte that does not go on
        # with what is pending begins anew.
        for tail in (pending + byte, byte):
            if tail in encoded:
                return after(code, encoded[tail]), b""
            if tail in prefixes:
                return code, tail
            code = after(code, "\N{REPLACEMENT CHARACTER}")
        return code, b""

    states = [(FireCode.NEVER, b"")]
    rows = []
    for code, pending in states:  # grows while it is read
        reached = [read(code, pending, bytes([byte])) for byte in range(256)]
        states += [state for state in dict.fromkeys(reached) if state not in states]
        rows.append([states.index(state) for state in reached])
    codes = [after(c, "\N{REPLACEMENT CHARACTER}") if pending else c for c, pending in states]
    return _ByteAutomaton(np.array(rows, dtype=np.int16), np.array(codes, dtype=np.int8))
