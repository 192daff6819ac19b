"""Named classes of tokens, as masks over the vocabulary.

Built from the texts of the tokens by whoever has a tokenizer; this module knows none. Classes that
need more than the texts (a word list, the weights, Unicode's scripts) are asked of that owner.

Shapes: V vocabulary (the width of the logits, which may exceed the tokenizer's), N tokenizer's ids.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.records import Vocabulary


def _is_fragment(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


_TEXT_CLASSES: dict[str, Callable[[bytes], bool]] = {
    "byte_fragment": _is_fragment,
    "word_start": lambda text: text.startswith(b" ") and len(text) > 1,
    "digits": lambda text: text.strip().isdigit(),
    "ascii": bytes.isascii,
    "code_fence": lambda text: b"```" in text or b"~~~" in text,
    "json_punctuation": lambda text: bool(text.strip()) and not text.strip().strip(b'{}[]:,"'),
}
"""What the bytes of a token have to be like; whitespace around digits and punctuation is allowed.

byte_fragment: not valid UTF-8 on their own. word_start: a space and more. digits: 0 to 9 only.
ascii: below 128. code_fence: hold ``` or ~~~. json_punctuation: only of {}[]:,".
"""

_REGEX = "regex:"
_REGEX_TIMEOUT_S = 5.0
"""For the whole vocabulary: a pattern that backtracks without end must not hold up an engine."""

_KNOWN = (
    f"special, eos, {', '.join(_TEXT_CLASSES)}, {_REGEX}PATTERN, and, where the model's tokenizer "
    "and folder are at hand, english, undertrained, script:NAME"
)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of a model, and the classes that they belong to.

    A special token belongs to no class but `special` and `eos`.
    """

    texts: Sequence[bytes]
    """What each id adds to the text; control tokens: their spelling. An id with an empty text is
    no token: it belongs to no class and is never allowed."""
    special_ids: frozenset[int]
    """Ids of control tokens."""
    eos_ids: frozenset[int] = frozenset()
    """Ids that end a completion."""
    more: Callable[[str], Collection[int] | None] = lambda _: None
    """Ids of a class that needs more than the texts; None: there is no such class. ValueError: it
    can't be had for this model."""
    _cache: dict[str, NDArray[np.bool_]] = field(default_factory=dict, init=False, repr=False)
    """bool [N] of each class asked for so far."""

    def mask(self, vocabulary: Vocabulary, width: int, device: torch.device) -> Tensor:
        """bool [V] of the tokens that `vocabulary` allows; ids without a token are never allowed.

        Raises:
            ValueError: A class is unknown or can't be had, or fewer than two tokens are left.
        """
        allowed_N = np.fromiter(map(bool, self.texts), np.bool_, len(self.texts))
        if vocabulary.include:
            allowed_N &= np.any([self._members(name) for name in vocabulary.include], axis=0)
        for name in vocabulary.exclude:
            allowed_N &= ~self._members(name)
        allowed_V = _fit(allowed_N, width)
        if int(allowed_V.sum()) < 2:
            raise ValueError(
                f"{vocabulary} leaves fewer than two tokens of this model to draw from"
            )
        return allowed_V.to(device)

    def members(self, name: str, width: int) -> Tensor:
        """bool [V] of the tokens of the class `name`, on the host.

        Raises:
            ValueError: The class is unknown or can't be had.
        """
        return _fit(self._members(name), width)

    def _members(self, name: str) -> NDArray[np.bool_]:
        if name not in self._cache:
            self._cache[name] = self._find_members(name)
        return self._cache[name]

    def _find_members(self, name: str) -> NDArray[np.bool_]:
        match name:
            case "special":
                return self._from_ids(self.special_ids)
            case "eos":
                return self._from_ids(self.eos_ids)
        if name.startswith(_REGEX):
            found_N = self._from_texts(_searcher(name))
        elif name in _TEXT_CLASSES:
            found_N = self._from_texts(_TEXT_CLASSES[name])
        else:
            ids = self.more(name)
            if ids is None:
                raise ValueError(f"unknown token class {name!r}; known: {_KNOWN}")
            found_N = self._from_ids(ids)
        return found_N & ~self._members("special")

    def _from_ids(self, ids: Collection[int]) -> NDArray[np.bool_]:
        found_N = np.zeros(len(self.texts), dtype=np.bool_)
        found_N[[i for i in ids if i < len(self.texts) and self.texts[i]]] = True
        return found_N

    def _from_texts(self, is_member: Callable[[bytes], object]) -> NDArray[np.bool_]:
        found = (bool(text and is_member(text)) for text in self.texts)
        return np.fromiter(found, np.bool_, len(self.texts))


def _searcher(name: str) -> Callable[[bytes], object]:
    """Whether a text has a match of the pattern; raises ValueError when all take too long."""
    # Python's own `re` has no time limit. Nothing else here needs more than torch and numpy.
    import regex  # noqa: PLC0415

    pattern = name.removeprefix(_REGEX)
    try:
        search = regex.compile(pattern).search
    except regex.error as error:
        raise ValueError(
            f"token class {name!r}: {pattern!r} is no regular expression: {error}"
        ) from error
    deadline = time.monotonic() + _REGEX_TIMEOUT_S

    def has_match(text: bytes) -> object:
        try:
            return search(
                text.decode(errors="replace"), timeout=max(1e-6, deadline - time.monotonic())
            )
        except TimeoutError as error:
            raise ValueError(
                f"token class {name!r}: {pattern!r} takes more than {_REGEX_TIMEOUT_S:g} s on this "
                "model's tokens; write it so that it backtracks less"
            ) from error

    return has_match


def _fit(members_N: NDArray[np.bool_], width: int) -> Tensor:
    """bool [V] of `width`: cut, or with False for the ids beyond."""
    members_V = torch.zeros(width, dtype=torch.bool)
    n_tokens = min(len(members_N), width)
    members_V[:n_tokens] = torch.from_numpy(members_N[:n_tokens])
    return members_V
