"""Whether a completion nearly repeats one of its siblings."""

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import regex

from negtemp_data.jobspec import NearDuplicateCheckConfig
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from datasketch import MinHash

_PERMUTATIONS = 256
"""Standard error of a similarity: at most 0.03."""

# Punctuation is no part of a word; scripts without spaces between words have a word per character.
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
    r"|[\w--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]]++",
    regex.VERSION1,
)


def check_near_duplicate(config: NearDuplicateCheckConfig, sample: Sample) -> CheckResult:
    """Whether it is new among its siblings, and how similar the nearest of them is."""
    if not sample.siblings:
        return CheckResult(config.kind, True, "no accepted sibling before it")
    mine = _print_of(sample.completion, config.n)
    others = [_print_of(sibling, config.n) for sibling in sample.siblings]
    for place, other in enumerate(others, start=1):
        if other.digest == mine.digest:
            return CheckResult(config.kind, False, f"the same as accepted sibling {place}")
    similarities = [_similarity(mine, other) for other in others]
    nearest = max(similarities)
    place = similarities.index(nearest) + 1
    detail = f"{nearest:.2f} like accepted sibling {place}"
    return CheckResult(config.kind, nearest <= config.max_similarity, detail)


@dataclass(frozen=True)
class _Fingerprint:
    digest: bytes
    """Hash of the text without case and kinds of white space."""
    grams: "MinHash | None"
    """Sketch of the word n-grams; None for a text without words."""


# The siblings of a prompt come again and again; all but the new one are found here.
@lru_cache(maxsize=4096)
def _print_of(text: str, n: int) -> _Fingerprint:
    folded = text.casefold()
    plain = " ".join(folded.split()).encode("utf-8", "surrogatepass")
    return _Fingerprint(hashlib.blake2b(plain, digest_size=16).digest(), _sketch(folded, n))


def _sketch(text: str, n: int) -> "MinHash | None":
    """MinHash of the word n-grams; of all words together where there are fewer than n."""
    words = _WORD.findall(text)
    if not words:
        return None
    n = min(n, len(words))
    grams = {" ".join(gram) for gram in zip(*(words[i:] for i in range(n)), strict=False)}
    sketch = _empty_sketch().copy()
    sketch.update_batch([gram.encode() for gram in grams])
    return sketch


@cache
def _empty_sketch() -> "MinHash":
    # It brings scipy, 0.6 s, which only jobs with such a check should pay.
    from datasketch import MinHash  # noqa: PLC0415

    return MinHash(num_perm=_PERMUTATIONS)


def _similarity(one: _Fingerprint, other: _Fingerprint) -> float:
    if one.grams is None or other.grams is None:
        return 0.0
    return float(one.grams.jaccard(other.grams))
