"""The token table of a model: the bytes of its tokens, and the classes that take more than these.

Reads a Hugging Face tokenizer and, where it is known, the model's folder. Needs no engine.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from negtemp_data.engine.catalogue import local_path
from negtemp_data.engine.undertrained import undertrained_ids
from negtemp_data.sampling import TokenTable

_SCRIPT = "script:"
_LETTER_RUN = re.compile("[A-Za-z]+")
_LONGEST_FREE_RUN = 2
"""Letter runs up to this length are English: they are pieces of anything."""

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


def token_table(tokenizer: Any, model_path: str | None = None) -> TokenTable:
    """The texts of a tokenizer's tokens and their classes.

    Args:
        tokenizer: A Hugging Face tokenizer.
        model_path: The model's folder, or a Hugging Face id that is on this machine. Adds the ids
            that its configuration ends a sequence with, and the class `undertrained`.
    """
    folder = _find_folder(model_path)
    texts = _token_texts(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    special_ids = {i for i, token in added if token.special} | set(tokenizer.all_special_ids)
    eos_ids = set(_ids(tokenizer.eos_token_id))
    if folder is not None:
        for file in ("generation_config.json", "config.json"):
            eos_ids |= set(_ids(_read_json(folder / file).get("eos_token_id")))
    used_ids = eos_ids.union(tokenizer.all_special_ids)

    def more(name: str) -> Collection[int] | None:
        if name == "english":
            return _english_ids(texts, _english_words())
        if name == "undertrained":
            if folder is None:
                raise ValueError(
                    f"undertrained tokens can't be told: no folder of the model {model_path!r} is "
                    "on this machine"
                )
            return undertrained_ids(folder, texts, frozenset(special_ids), used_ids)
        if name.startswith(_SCRIPT):
            return _script_ids(texts, name.removeprefix(_SCRIPT))
        return None

    return TokenTable(texts, frozenset(special_ids), frozenset(eos_ids), more)


# --- from the tokenizer


def _token_texts(tokenizer: Any) -> list[bytes]:
    """The bytes that each id adds to a text; empty for an id without a token.

    Tokens are spelled in one of two ways. Byte-level BPE has a printable character for each byte;
    everything else writes a space as ▁ and a lone byte as <0x0A>, as SentencePiece does, or has no
    signs of its own (WordPiece and word lists).
    """
    added = tokenizer.added_tokens_decoder
    n_tokens = max([*tokenizer.get_vocab().values(), *added]) + 1
    tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(n_tokens)))
    plain = [token for i, token in enumerate(tokens) if token is not None and i not in added]
    # Told by how words begin: either sign may occur in the other spelling, as a letter.
    is_byte_level = _count_begins(plain, "Ġ") > _count_begins(plain, "▁")
    spell = _from_byte_level if is_byte_level else _from_sentencepiece
    texts = [b"" if token is None else spell(token) for token in tokens]
    for i, token in added.items():
        content = str(token.content)
        is_literal = is_byte_level or token.special
        texts[i] = content.encode() if is_literal else _from_sentencepiece(content)
    return texts


def _count_begins(tokens: Iterable[str], sign: str) -> int:
    return sum(token.startswith(sign) for token in tokens)


def _byte_alphabet() -> dict[str, int]:
    """Byte of each character of byte-level BPE.

    Source: GPT-2, encoder.py, `bytes_to_unicode`: printable bytes stand for themselves, the others
    for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:  # as the tokenizer's own decoder has it
        return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    if lone := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(lone[1])
    return token.replace("▁", " ").encode()


# --- from the model's folder


def _find_folder(model_path: str | None) -> Path | None:
    if model_path is None:
        return None
    found = model_path if Path(model_path).is_dir() else local_path(model_path)
    return Path(found) if found else None


def _read_json(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _ids(value: int | Sequence[int] | None) -> Sequence[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else value


# --- classes


def _script_ids(texts: Sequence[bytes], script: str) -> list[int]:
    """Ids of tokens of whole characters with a letter of `script` and none of another.

    The marks that are written with letters (vowel signs, accents) count as letters; those that
    Unicode counts to several scripts are of none.
    """
    try:
        if not re.fullmatch("[A-Za-z_]+", script):
            raise regex.error("unknown property value")
        own = regex.compile(rf"[[\p{{L}}\p{{M}}]&&\p{{Script={script}}}]", regex.V1)
    except regex.error as error:
        raise ValueError(
            f"token class {_SCRIPT + script!r}: Unicode has no such script; it has Latin, Greek, "
            "Cyrillic, Arabic, Devanagari, Han, Hiragana, Katakana, Hangul and others"
        ) from error
    shared = r"\p{Script=Common}\p{Script=Inherited}"
    foreign = regex.compile(rf"[[\p{{L}}\p{{M}}]--[\p{{Script={script}}}{shared}]]", regex.V1)
    return [
        i
        for i, text in enumerate(texts)
        if (chars := _decode(text)) and own.search(chars) and not foreign.search(chars)
    ]


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _english_words() -> list[str]:
    """Sorted words of American English, in lower case, what stands after an apostrophe apart.

    Source: the package pyspellchecker.
    """
    from spellchecker import SpellChecker  # noqa: PLC0415

    words = SpellChecker(language="en").word_frequency.words()
    return sorted({run for word in words if word.isascii() for run in _LETTER_RUN.findall(word)})


def _english_ids(texts: Sequence[bytes], words: Sequence[str]) -> list[int]:
    """Ids of ASCII tokens whose every run of letters occurs in English.

    A run behind something else begins a word, so it has to begin one of `words`; a run that begins
    the token may go on with a word, so it has to occur in one. Case is ignored.
    """
    runs_of = {
        i: list(_letter_runs(text.decode())) for i, text in enumerate(texts) if text.isascii()
    }
    runs = {run for found in runs_of.values() for run, _ in found}
    beginnings = {run for run in runs if _begins_word(run, words)}
    insides = beginnings | _find_insides(runs - beginnings, words)
    return [
        i
        for i, found in runs_of.items()
        if all(run in (beginnings if begins else insides) for run, begins in found)
    ]


def _letter_runs(text: str) -> Iterator[tuple[str, bool]]:
    """Runs of letters that matter, and whether they begin a word."""
    for run in _LETTER_RUN.finditer(text):
        if len(run[0]) > _LONGEST_FREE_RUN:
            yield run[0].lower(), run.start() > 0


def _begins_word(run: str, words: Sequence[str]) -> bool:
    place = bisect_left(words, run)
    return place < len(words) and words[place].startswith(run)


def _find_insides(runs: Collection[str], words: Iterable[str]) -> set[str]:
    """Those of `runs`, of three letters or more, that occur in a word."""
    tails: dict[str, list[str]] = {run[:3]: [] for run in runs}
    for word in words:
        for begin in range(len(word) - 2):
            if (found := tails.get(word[begin : begin + 3])) is not None:
                found.append(word[begin:])
    lines = {begin: "\n" + "\n".join(found) for begin, found in tails.items()}
    return {run for run in runs if "\n" + run in lines[run[:3]]}
