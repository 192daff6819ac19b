"""How much samples differ among themselves."""

from collections.abc import Iterable, Sequence


def distinct_n(samples: Iterable[Sequence[int]], n: int = 2) -> float | None:
    """Distinct token n-grams over all token n-grams of `samples`; None if there is none.

    Falls with the amount of text, so compare arms at about the same number of tokens. Source:
    Li et al., 1510.03055, over tokens instead of words.
    """
    seen: set[tuple[int, ...]] = set()
    total = 0
    for token_ids in samples:
        grams = list(zip(*(token_ids[i:] for i in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None
