"""Tokens that a model has hardly met in training, told by its embeddings alone.

Some tokens of a tokenizer are missing from what a model was trained on, or nearly so. Their
embeddings lie where training leaves those of tokens that never occur. A sampler that looks for
unlikely tokens finds these first, and they say nothing. No model is loaded and nothing generated:
one matrix is read, and the result is kept in the cache folder.

Source: Land and Bartolo, "Fishing for Magikarp", 2405.05417, section 2.2; which indicator is the
first choice: cohere-ai/magikarp, magikarp/model.py.

Shapes: E rows of the matrix, N tokens (those of the tokenizer that have a row), K rows of tokens
that are known to be unused, D embedding.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from negtemp_data import __version__
from negtemp_data.engine.catalogue import model_cache

UNDERTRAINED_SHARE = 0.02
"""Share of the tokens of text that counts as undertrained, from the lowest indicator on.

Source: 2405.05417, section 2.3. There these are the candidates of a further test with prompts, so
many are rare words that the model knows; a sampler loses little without them.
"""

_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that no UTF-8 text contains. Source: RFC 3629, section 1."""

_INPUT = re.compile(
    r"(\w+\.)*(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|backbone\.embeddings)\.weight"
)
"""Names of input embeddings: Llama and its kin, GPT-2, GPT-NeoX, BLOOM, InternLM2, Mamba."""
_OUTPUT = re.compile(r"(\w+\.){0,2}(lm_head|embed_out|output|output_layer)\.weight")
"""Names of output matrices, of models whose own differs from the input embeddings."""

_AGREEMENT = 0.9
"""Least cosine between rows that training has left alike: it pushes all unused rows the same way.

Source: 2405.05417, section 2.2, for the reason. For the number SmolLM2-135M-Instruct: of its 14
control tokens for source code 11 have 0.999 and more to each other, a median token 0.61 to these.
"""
_FEWEST_AGREEING = 3
_MOST_GUESSED = 1024
_CHUNK_ROWS = 16_384


def undertrained_ids(
    folder: Path, texts: Sequence[bytes], special_ids: frozenset[int], used_ids: Collection[int]
) -> list[int]:
    """Ids of the undertrained tokens of the model in `folder`, none of them special.

    Args:
        folder: Has config.json and safetensors.
        texts: What each id adds to the text; empty where it has no token.
        special_ids: Ids of control tokens.
        used_ids: Those of them that have a task, such as to end a sequence.

    Raises:
        ValueError: The embeddings can't be found there, or they are tied and no token is known to
            be unused.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"undertrained tokens can't be told: {folder} has no *.safetensors")
    unused_ids = special_ids.difference(used_ids)
    cache = _cache_file(files, texts, special_ids, unused_ids)
    # A file of another make is as good as none: it is written anew.
    with suppress(OSError, ValueError, EOFError):
        return _integers(np.load(cache, allow_pickle=False))
    indicator_N = _measure(files, _is_said_to_be_tied(folder), texts, sorted(unused_ids))
    found = np.array(_lowest(indicator_N, texts, special_ids), dtype=np.int64)
    # Where nothing can be kept it is measured each time, which takes seconds.
    with suppress(OSError):
        _write(cache, found)
    return _integers(found)


def _measure(
    files: Sequence[Path], is_tied: bool | None, texts: Sequence[bytes], unused_ids: Sequence[int]
) -> NDArray[np.float32]:
    """Indicator of N tokens, low for undertrained ones.

    Untied: the length of the input embedding, which decay and the lack of updates leave short.
    Tied: 1 - cosine to the mean row of unused tokens; every step of training pushes those rows the
    same way, since they are never the answer.
    """
    try:
        file_of = {name: file for file in files for name in _names(file)}
        names = filter(_INPUT.fullmatch, file_of)
        # The outermost: extra layers that predict further tokens may hold copies.
        name = min(names, key=lambda name: name.count("."), default=None)
        if name is None:
            raise ValueError(
                f"undertrained tokens can't be told: none of the tensors in {files[0].parent} has "
                "the name of an input embedding"
            )
        if is_tied is None:
            is_tied = not any(map(_OUTPUT.fullmatch, file_of))
        with safe_open(file_of[name], framework="pt") as tensors:
            matrix = tensors.get_slice(name)
            if len(matrix.get_shape()) != 2 or not matrix.get_dtype().startswith(("F", "BF")):
                raise ValueError(
                    f"undertrained tokens can't be told: {name} is quantised "
                    f"({matrix.get_dtype()} {matrix.get_shape()})"
                )
            mean_D = _unused_rows(matrix, texts, unused_ids).mean(dim=0) if is_tied else None
            return _indicator(matrix, len(texts), mean_D)
    except SafetensorError as error:
        raise ValueError(
            f"undertrained tokens can't be told: {files[0].parent} has unreadable weights: {error}"
        ) from error


def _indicator(matrix: Any, n_tokens: int, unused_D: Tensor | None) -> NDArray[np.float32]:
    n_tokens = min(n_tokens, matrix.get_shape()[0])
    chunks = []
    for begin in range(0, n_tokens, _CHUNK_ROWS):
        rows_ND = matrix[begin : min(begin + _CHUNK_ROWS, n_tokens)].float()
        length_N = rows_ND.norm(dim=1)
        if unused_D is not None:
            # A row of zeros is like nothing.
            length_N = 1 - rows_ND @ unused_D / (length_N * unused_D.norm()).clamp(min=1e-6)
        chunks.append(length_N)
    indicator_N: NDArray[np.float32] = torch.cat(chunks).numpy()
    return indicator_N


def _unused_rows(matrix: Any, texts: Sequence[bytes], unused_ids: Sequence[int]) -> Tensor:
    """Rows [K, D] of tokens that training has never met.

    Bytes that are not in any text are certain. Rows beyond the tokenizer and control tokens without
    a task are guesses (the rows may have been added later, the tokens used in training): they count
    where most of them agree.
    """
    n_rows = matrix.get_shape()[0]
    certain = [i for i, text in enumerate(texts) if len(text) == 1 and text[0] in _NEVER_IN_UTF8]
    if certain := [i for i in certain if i < n_rows]:
        return _rows(matrix, certain)
    beyond = range(len(texts), min(n_rows, len(texts) + _MOST_GUESSED))
    for guess in (beyond, [i for i in unused_ids if i < n_rows]):
        if len(guess) >= _FEWEST_AGREEING:
            rows_KD = _agreeing(_rows(matrix, guess))
            if len(rows_KD) >= _FEWEST_AGREEING:
                return rows_KD
    raise ValueError(
        "undertrained tokens can't be told: the model's embeddings are tied, and none of its "
        "tokens is known to be unused, so there is nothing to compare with"
    )


def _agreeing(rows_KD: Tensor) -> Tensor:
    """The largest group of rows that point the same way as one of them."""
    unit_KD = rows_KD / rows_KD.norm(dim=1, keepdim=True).clamp(min=1e-6)
    is_alike_KK = unit_KD @ unit_KD.T >= _AGREEMENT
    return rows_KD[is_alike_KK[is_alike_KK.sum(dim=1).argmax()]]


def _rows(matrix: Any, ids: Sequence[int]) -> Tensor:
    return torch.cat([matrix[i : i + 1] for i in ids]).float()


def _lowest(
    indicator_N: NDArray[np.float32], texts: Sequence[bytes], special_ids: Collection[int]
) -> list[int]:
    """Ids up to the limit, which is that of the tokens of whole characters."""
    ordinary = [i for i in range(len(indicator_N)) if texts[i] and i not in special_ids]
    whole = [
        i for i in ordinary if "\N{REPLACEMENT CHARACTER}" not in texts[i].decode(errors="replace")
    ]
    limit = np.quantile(indicator_N[whole], UNDERTRAINED_SHARE) if whole else -np.inf
    return [i for i in ordinary if indicator_N[i] <= limit]


def _is_said_to_be_tied(folder: Path) -> bool | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        if isinstance(is_tied := part.get("tie_word_embeddings"), bool):
            return is_tied
    return None


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _cache_file(
    files: Sequence[Path],
    texts: Sequence[bytes],
    special_ids: Collection[int],
    unused_ids: Collection[int],
) -> Path:
    """Where the ids of this model, with this tokenizer, are kept."""
    digest = hashlib.blake2b(digest_size=16)
    weights = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    for part in (__version__, UNDERTRAINED_SHARE, weights, sorted(special_ids), sorted(unused_ids)):
        digest.update(f"{part}\0".encode())
    digest.update("\0".join(map(str, map(len, texts))).encode() + b"".join(texts))
    return model_cache().parent / "undertrained" / f"{digest.hexdigest()}.npy"


def _write(path: Path, ids: NDArray[np.int64]) -> None:
    """Whole or not at all: other processes may read or write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as staged:
        try:
            np.save(staged, ids)
            staged.flush()
            os.replace(staged.name, path)
        except BaseException:
            os.unlink(staged.name)
            raise


def _integers(ids: NDArray[Any]) -> list[int]:
    return [int(i) for i in ids]
