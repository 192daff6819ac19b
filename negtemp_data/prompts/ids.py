"""Prompt ids: which are accepted, hashes of and in place of them, and which were used before.

Knows nothing of files or columns.
"""

import hashlib
import json
import re
from array import array
from bisect import bisect_left
from typing import Any

from negtemp_data.errors import PromptError, quote

MAX_ID_CHARS = 200
"""Longest prompt id."""

# Lone surrogates are no control characters, but no file can hold them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_id(value: Any) -> str:
    """The id that a row's own value stands for: text as it is, a whole number in decimal.

    Raises:
        PromptError: It is neither, or empty, too long, or holds control characters.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PromptError(f"the id must be text or a whole number, found {quote(value)}")
    prompt_id = str(value)
    if not prompt_id.strip():
        raise PromptError("the id is empty")
    if len(prompt_id) > MAX_ID_CHARS:
        raise PromptError(
            f"the id has {len(prompt_id)} characters, at most {MAX_ID_CHARS} are allowed"
        )
    if _UNPRINTABLE.search(prompt_id):
        raise PromptError(f"the id holds a control character: {quote(prompt_id)}")
    return prompt_id


def content_id(content: str | list[dict[str, str]]) -> str:
    """16 hex digits that depend on a prompt's text or messages alone."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def group_seed(job_seed: int, prompt_id: str) -> int:
    """Seed that all samples of a prompt share, 63 bits; no row's own seed is made like it."""
    key = json.dumps([job_seed, prompt_id])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class IdSet:
    """The ids seen so far, in less than 9 bytes each (a Python set takes about 100).

    Keeps 64-bit digests, sorted, in buckets by their leading bits. Two different ids are taken for
    the same one with probability n²/2⁶⁵: 3e-6 for ten million ids.
    """

    _BUCKET_BITS = 12

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(2**self._BUCKET_BITS)]

    def add(self, prompt_id: str) -> bool:
        """Takes an id in; False if it is there already."""
        digest = int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest(), "big")
        bucket = self._buckets[digest >> (64 - self._BUCKET_BITS)]
        index = bisect_left(bucket, digest)
        if index < len(bucket) and bucket[index] == digest:
            return False
        bucket.insert(index, digest)
        return True
