"""Whether a completion nearly repeats one of its siblings."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from negtemp_data.jobspec import NearDuplicateCheckConfig

if TYPE_CHECKING:
    from datasketch import MinHash

_PERMUTATIONS = 256
"""Standard error of a similarity: at most 0.03."""


def check_duplicate(
    config: NearDuplicateCheckConfig, completion: str, siblings: Sequence[str]
) -> tuple[bool, str]:
    """Whether it is new among its siblings, and how similar the nearest of them is."""
    if not siblings:
        return True, "no sibling before it"
    text = _normalise(completion)
    others = [_normalise(sibling) for sibling in siblings]
    if text in others:
        return False, f"the same as accepted sibling {others.index(text) + 1}"
    mine = _signature(text, config.n)
    similarities = [float(mine.jaccard(_signature(other, config.n))) for other in others]
    nearest = max(similarities)
    place = similarities.index(nearest) + 1
    return nearest <= config.max_similarity, f"{nearest:.2f} like accepted sibling {place}"


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


@lru_cache(maxsize=4096)
def _signature(text: str, n: int) -> "MinHash":
    """MinHash of the word n-grams; of all words together where there are fewer."""
    from datasketch import MinHash  # noqa: PLC0415

    words = text.split()
    grams = zip(*(words[i:] for i in range(n)), strict=False) if len(words) >= n else [words]
    signature = MinHash(num_perm=_PERMUTATIONS)
    signature.update_batch([" ".join(gram).encode("utf-8", "surrogatepass") for gram in grams])
    return signature
