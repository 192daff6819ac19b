"""Splits by prompt: no prompt on two sides, and a prompt stays on its side while a run goes on."""

import math
from collections.abc import Mapping
from itertools import accumulate

from negtemp_data.errors import ExportError, quote
from negtemp_data.export.base import Row
from negtemp_data.prompts.ids import content_id

TRAIN_ONLY = {"train": 1.0}


class PromptSplit:
    """Assigns each prompt to one split, by a hash of what it says.

    The id does not decide: two ids may have the same prompt. Shares are met on average.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Takes shares by name, in order; `parse_split` has checked them."""
        self.names = list(shares)
        self._bounds = list(accumulate(shares.values()))

    def assign(self, row: Row) -> str:
        """Name of the split that the row's prompt is in."""
        content = row["messages"] if row["prompt"] is None else row["prompt"]
        if content is None:  # the prompt could not be read, so it has nothing but an id
            content = row["prompt_id"]
        position = int(content_id(content), 16) / 2**64
        pairs = zip(self.names, self._bounds, strict=True)
        return next((name for name, bound in pairs if position < bound), self.names[-1])


def parse_split(text: str) -> dict[str, float]:
    """Shares by name from `train=0.95,test=0.05`.

    Raises:
        ExportError: It is written otherwise, or the shares do not add up to 1.
    """
    hint = "write it as train=0.95,test=0.05, with names of letters, digits and _, and shares > 0"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        # Names become the names of files and of `datasets` splits.
        is_name = name.isidentifier() and name.isascii() and name != "all"
        if not is_name or name in shares or not 0 < value <= 1:
            raise ExportError(f"--split {quote(text)}: {quote(part)} is no share; {hint}.")
        shares[name] = value
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ExportError(
            f"--split {quote(text)}: the shares add up to {sum(shares.values()):g}, not 1; {hint}."
        )
    return shares
