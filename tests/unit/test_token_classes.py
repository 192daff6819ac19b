"""Token tables of real kinds of tokenizers, and the classes that take more than the texts."""

import json
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from spellchecker import SpellChecker
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from negtemp_data.engine.token_classes import token_table
from negtemp_data.engine.undertrained import undertrained_ids
from negtemp_data.sampling import TokenTable

WORDS = SpellChecker(language="en").word_frequency.words()
ENGLISH = "\n" + "\n".join(re.sub("[^a-z]", "\n", word) for word in WORDS if word.isascii())


def wrap(core: Tokenizer, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **names
    )


def byte_level(*extra: str) -> Any:
    """A token for every byte, some longer ones, and added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("Ã", "©"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("â", "Ģ")]
    tokens = [*alphabet, *(a + b for a, b in merges), *extra]
    core = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken("<tool> call", special=False), AddedToken("   ", special=False)])
    return wrap(core, bos_token="<｜begin▁of▁text｜>", eos_token="<|end|>", pad_token="<|pad|>")


def sentencepiece() -> Any:
    """Bytes for what has no token, as Llama 2 and Gemma have it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁a", "a", "b", "é", "世", "Ġ", "▁▁", "\n", "th", "<0xZZ>", "."]
    core = Tokenizer(BPE({token: i for i, token in enumerate(pieces)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_tokens([AddedToken("▁▁▁", special=False, normalized=False)])
    return wrap(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@given(data=st.data())
@settings(max_examples=60, derandomize=True)
def test_texts_of_tokens_add_up_to_what_the_tokenizer_decodes(
    make: Any, data: st.DataObject
) -> None:
    tokenizer = make()
    table = token_table(tokenizer)
    # Of bytes that are no text the decoders make this or that.
    whole = [i for i in range(len(table.texts)) if "\ufffd" not in tokenizer.decode([i])]
    units = st.sampled_from([[i] for i in whole]) | st.sampled_from("ü…🙂世").map(
        lambda char: tokenizer.encode(char, add_special_tokens=False)
    )
    ids = [i for unit in data.draw(st.lists(units, max_size=8)) for i in unit]
    assert b"".join(table.texts[i] for i in ids).decode() == tokenizer.decode(ids)


def test_bytes_are_exact_even_within_a_character() -> None:
    table = token_table(byte_level())
    assert {bytes([byte]) for byte in range(256)} <= set(table.texts)
    assert {b" a", "é".encode(), b"  ", b"\n\n", "…".encode()[:2]} <= set(table.texts)
    spelled = token_table(sentencepiece())
    assert spelled.texts[3:259] == [bytes([byte]) for byte in range(256)]
    assert spelled.texts[259:] == [
        text.encode()
        for text in [
            " ",
            " the",
            " a",
            "a",
            "b",
            "é",
            "世",
            "Ġ",
            "  ",
            "\n",
            "th",
            "<0xZZ>",
            ".",
            "   ",
        ]
    ]


def test_added_tokens_have_their_content_and_control_tokens_are_special() -> None:
    table = token_table(byte_level())
    special = [table.texts[i].decode() for i in sorted(table.special_ids)]
    assert sorted(special) == ["<|end|>", "<|pad|>", "<｜begin▁of▁text｜>"]
    assert {b"<tool> call", b"   "} <= set(table.texts)
    assert {table.texts[i] for i in table.eos_ids} == {b"<|end|>"}
    assert {s.texts[i] for s in [token_table(sentencepiece())] for i in s.special_ids} == {
        b"<unk>",
        b"<s>",
        b"</s>",
    }


def test_tokens_of_another_make_are_taken_as_they_are_spelled() -> None:
    core = Tokenizer(WordPiece({"[UNK]": 0, "the": 1, "##ing": 2, "é": 3}, unk_token="[UNK]"))
    assert token_table(wrap(core, unk_token="[UNK]")).texts == [
        b"[UNK]",
        b"the",
        b"##ing",
        "é".encode(),
    ]


def test_ids_without_a_token_are_kept_as_holes() -> None:
    core = Tokenizer(BPE({"Ġ": 0, "a": 2, "Ġb": 6}, []))
    core.decoder = decoders.ByteLevel()
    table = token_table(wrap(core))
    assert table.texts == [b" ", b"", b"a", b"", b"", b"", b" b"]
    assert table.eos_ids == frozenset()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"<|end|>"}),
        ({"config.json": {"eos_token_id": None}}, {"<|end|>"}),
        ({"generation_config.json": {"eos_token_id": 97}}, {"<|end|>", 97}),
        ({"generation_config.json": {"eos_token_id": [97, 98]}}, {"<|end|>", 97, 98}),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {}}, {"<|end|>", 5}),
    ],
)
def test_the_models_folder_adds_what_ends_a_completion(
    tmp_path: Path, files: dict[str, Any], expected: set[str | int]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = byte_level()
    assert token_table(tokenizer, str(tmp_path)).eos_ids == {
        tokenizer.convert_tokens_to_ids(each) if isinstance(each, str) else each
        for each in expected
    }


def members(table: TokenTable, name: str) -> set[str]:
    ids = table.members(name, len(table.texts)).nonzero().flatten().tolist()
    return {table.texts[i].decode(errors="replace") for i in ids}


def texts_only(texts: Sequence[str | bytes]) -> TokenTable:
    """The table of a tokenizer that has these tokens, beside those of `sentencepiece`."""
    core = sentencepiece().backend_tokenizer
    core.add_tokens([AddedToken(str(text), special=False, normalized=False) for text in texts])
    return token_table(wrap(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


@cache
def occurs(letters: str) -> bool:
    return letters in ENGLISH


def is_english(text: str) -> bool:
    runs = re.finditer("[A-Za-z]{3,}", text)
    return text.isascii() and all(
        occurs(("\n" if run.start() > 0 else "") + run[0].lower()) for run in runs
    )


ENGLISH_PIECES = ["the", "ing", "ffy", "Wat", "colo", "xq", "qzx", "emeteri", " ", "'", "7", "é"]


def test_english_is_what_can_stand_in_an_english_text() -> None:
    texts = {"".join(pieces) for pieces in product(ENGLISH_PIECES, repeat=3)}
    table = texts_only(sorted(texts))
    expected = {text.decode() for text in table.texts if is_english(text.decode(errors="replace"))}
    assert 100 < len(texts & expected) < len(texts) - 100
    assert members(table, "english") == expected - {"<unk>", "<s>", "</s>"}


def test_english_holds_words_pieces_and_signs_but_no_other_language() -> None:
    inside = [
        " water",
        "ization",
        " Strugg",
        "emeteri",
        " don't",
        "42",
        "?!",
        "\n\n",
        " x",
        "ty 3-D",
    ]
    outside = [" Zwiebel", " zqx", "qzx", " naïve", " été", " и", "世", " emeteri", " kubectl"]
    english = members(texts_only([*inside, *outside]), "english")
    assert english >= set(inside)
    assert english & set(outside) == set()


SCRIPTS = {"Latin": "aéŁ", "Greek": "αΩ", "Cyrillic": "иЖ", "Han": "世字", "Devanagari": "कि"}
script_chars = st.sampled_from([*"".join(SCRIPTS.values()), *" 1.ー\u0301…"])


def is_in_script(text: str, script: str) -> bool:
    """By the names of the characters, which begin with their script's."""
    names = [unicodedata.name(c, "") for c in text if unicodedata.category(c)[0] in "LM"]
    prefix = {"Han": "CJK UNIFIED"}.get(script, script.upper())
    neutral = ("COMBINING ", "KATAKANA-HIRAGANA PROLONGED")
    own = [name.startswith(prefix) for name in names if not name.startswith(neutral)]
    return bool(own) and all(own)


@given(texts=st.lists(st.text(script_chars, min_size=1, max_size=4), max_size=12))
@settings(max_examples=25, derandomize=True)
def test_a_script_has_the_tokens_with_its_letters_and_no_others(texts: list[str]) -> None:
    table = texts_only(texts)
    whole = {text.decode() for text in table.texts if "\ufffd" not in text.decode(errors="replace")}
    for script in SCRIPTS:
        expected = {text for text in whole if is_in_script(text, script)}
        assert members(table, f"script:{script}") == expected - {"<unk>", "<s>", "</s>"}, script


def test_a_piece_of_a_character_is_of_no_script() -> None:
    core = byte_level("aÃ").backend_tokenizer
    table = token_table(wrap(core))
    assert b"a\xc3" in table.texts
    assert "a\ufffd" not in members(table, "script:Latin")


@pytest.mark.parametrize("name", ["Klingon", "", "Latin}a", "Latin]", "*"])
def test_a_script_that_unicode_has_not_is_refused(name: str) -> None:
    table = token_table(sentencepiece())
    with pytest.raises(ValueError, match=re.escape(f"'script:{name}'") + ": Unicode has no such"):
        table.members(f"script:{name}", 10)


def test_an_unknown_class_is_refused_by_a_models_table_too() -> None:
    with pytest.raises(ValueError, match="unknown token class 'verbs'"):
        token_table(sentencepiece()).members("verbs", 10)


# --- undertrained

D = 8
TEXTS = [bytes([byte]) for byte in range(256)] + [b" w%d" % i for i in range(144)]
SPECIAL = frozenset(range(390, 400))
USED = frozenset({390})


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEGTEMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "undertrained"


def embeddings(n_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, D, generator=torch.Generator().manual_seed(seed))


def write_model(
    folder: Path, config: dict[str, Any], shards: dict[str, dict[str, torch.Tensor]] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in (shards or {}).items():
        save_file(tensors, folder / name)
    return folder


def lowest(indicator: list[float], texts: Sequence[bytes] = TEXTS) -> list[int]:
    """The lowest 2% of the tokens of whole characters, and what else lies as low."""
    ordinary = [i for i in range(len(indicator)) if i not in SPECIAL and texts[i]]
    whole = sorted(
        indicator[i] for i in ordinary if not (len(texts[i]) == 1 and texts[i][0] >= 0x80)
    )
    place = 0.02 * (len(whole) - 1)
    limit = whole[int(place)] + (place % 1) * (whole[int(place) + 1] - whole[int(place)])
    return [i for i in ordinary if indicator[i] <= limit]


def cosine_distance(row: Sequence[float], other: Sequence[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(row, other, strict=True))
    return 1 - dot / max(math.hypot(*row) * math.hypot(*other), 1e-6)


def mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "transformer.wte.weight",
        "gpt_neox.embed_in.weight",
        "transformer.word_embeddings.weight",
        "model.tok_embeddings.weight",
        "backbone.embeddings.weight",
    ],
)
@pytest.mark.parametrize("config", [{"tie_word_embeddings": False}, {}])
def test_untied_a_short_input_embedding_tells_an_undertrained_token(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    matrix = embeddings(410)
    matrix[[5, 300, 301, 391]] *= 0.01
    others = {
        "lm_head.weight": embeddings(410, 1),
        "model.layers.9.embed_tokens.weight": matrix * 2,
    }
    others["model.layers.9.embed_tokens.weight"][5] = 9
    folder = write_model(
        tmp_path / "m",
        config,
        {
            "model-00001-of-00002.safetensors": others,
            "model-00002-of-00002.safetensors": {name: matrix},
        },
    )
    found = undertrained_ids(folder, TEXTS, SPECIAL, USED)
    assert found == lowest([math.hypot(*row) for row in matrix[:400].tolist()])
    assert {5, 300, 301} < set(found)
    assert not SPECIAL & set(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {}, {"text_config": {"tie_word_embeddings": True}}]
)
def test_tied_likeness_to_bytes_of_no_text_tells_an_undertrained_token(
    tmp_path: Path, config: dict[str, Any], dtype: torch.dtype
) -> None:
    impossible = [0xC0, 0xC1, *range(0xF5, 0x100)]
    matrix = embeddings(405)
    matrix[impossible] = embeddings(1, 3) + 0.05 * embeddings(len(impossible), 4)
    matrix[[7, 300]] = 3 * matrix[0xC0]
    matrix[9] = 0
    matrix = matrix.to(dtype)
    tensors = {"model.embed_tokens.weight": matrix}
    if config:  # a copy of the tied matrix, as some models have it, unties nothing
        tensors["lm_head.weight"] = matrix.clone()
    folder = write_model(tmp_path / "m", config, {"model.safetensors": tensors})
    found = undertrained_ids(folder, TEXTS, SPECIAL, USED)
    rows = matrix.float().tolist()
    reference = mean([rows[i] for i in impossible])
    assert found == lowest([cosine_distance(row, reference) for row in rows[:400]])
    assert {7, 300, *impossible} <= set(found)
    assert 9 not in found


def test_tied_rows_beyond_the_tokenizer_serve_where_no_byte_is_impossible(tmp_path: Path) -> None:
    texts = [b" w%d" % i for i in range(400)]
    matrix = embeddings(420)
    matrix[400:410] = embeddings(1, 3) * torch.arange(1, 11)[:, None]
    matrix[410:] = 0
    matrix[[7, 300]] = matrix[400].clone()
    folder = write_model(
        tmp_path / "m", {}, {"model.safetensors": {"model.embed_tokens.weight": matrix}}
    )
    rows = matrix.tolist()
    expected = lowest([cosine_distance(row, mean(rows[400:410])) for row in rows[:400]], texts)
    assert undertrained_ids(folder, texts, SPECIAL, USED) == expected
    assert {7, 300} <= set(expected)


def test_tied_control_tokens_without_a_task_serve_where_most_of_them_agree(tmp_path: Path) -> None:
    texts = [b" w%d" % i for i in range(400)]
    matrix = embeddings(400)
    matrix[391:397] = embeddings(1, 3)
    matrix[[7, 300]] = matrix[391].clone()
    folder = write_model(
        tmp_path / "m", {}, {"model.safetensors": {"model.embed_tokens.weight": matrix}}
    )
    rows = matrix.tolist()
    expected = lowest([cosine_distance(row, rows[391]) for row in rows], texts)
    assert undertrained_ids(folder, texts, SPECIAL, USED) == expected
    assert {7, 300} <= set(expected)


def test_tokens_without_a_row_are_not_told_of(tmp_path: Path) -> None:
    tensors = {"embed_tokens.weight": embeddings(300), "lm_head.weight": embeddings(300, 1)}
    folder = write_model(tmp_path / "m", {}, {"model.safetensors": tensors})
    rows = tensors["embed_tokens.weight"].tolist()
    assert undertrained_ids(folder, TEXTS, SPECIAL, USED) == lowest([math.hypot(*r) for r in rows])


@pytest.mark.parametrize("alike", [[], [391, 392], [1, 2, 3, 390]])
def test_tied_without_a_token_known_to_be_unused_is_refused(
    tmp_path: Path, alike: list[int]
) -> None:
    matrix = embeddings(402)
    matrix[alike] = embeddings(1, 3)
    folder = write_model(
        tmp_path / "m", {}, {"model.safetensors": {"model.embed_tokens.weight": matrix}}
    )
    with pytest.raises(ValueError, match="none of its tokens is known to be unused"):
        undertrained_ids(folder, [b" w%d" % i for i in range(400)], SPECIAL, USED)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, r"can't be told: .* has no \*\.safetensors"),
        ({"lm_head.weight": embeddings(400)}, "none of the tensors .* an input embedding"),
        ({"embed_tokens.weight": torch.zeros(400, D, dtype=torch.int8)}, r"quantised \(I8 "),
        ({"embed_tokens.weight": torch.zeros(400)}, "quantised"),
    ],
)
def test_a_folder_without_readable_embeddings_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, message: str
) -> None:
    shards = {} if tensors is None else {"model.safetensors": tensors}
    folder = write_model(tmp_path / "m", {}, shards)
    with pytest.raises(ValueError, match=message):
        undertrained_ids(folder, TEXTS, SPECIAL, USED)


def test_a_damaged_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {})
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"has unreadable weights: .*header"):
        undertrained_ids(folder, TEXTS, SPECIAL, USED)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    tensors = {"model.embed_tokens.weight": embeddings(400), "lm_head.weight": embeddings(400, 1)}
    return write_model(tmp_path / "m", {}, {"model.safetensors": tensors})


def test_the_result_is_kept_until_weights_or_tokenizer_change(
    untied: Path, cache_folder: Path
) -> None:
    first = undertrained_ids(untied, TEXTS, SPECIAL, USED)
    (kept,) = cache_folder.iterdir()
    np.save(kept, np.array([1, 2]))
    assert undertrained_ids(untied, TEXTS, SPECIAL, USED) == [1, 2]
    assert undertrained_ids(untied, TEXTS[:399], SPECIAL, USED) != [1, 2]
    os.utime(untied / "model.safetensors", ns=(0, 0))
    assert undertrained_ids(untied, TEXTS, SPECIAL, USED) == first
    assert len(list(cache_folder.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_is_measured_anew(untied: Path, cache_folder: Path, content: bytes) -> None:
    first = undertrained_ids(untied, TEXTS, SPECIAL, USED)
    (kept,) = cache_folder.iterdir()
    kept.write_bytes(content)
    assert undertrained_ids(untied, TEXTS, SPECIAL, USED) == first
    assert kept.read_bytes() != content
    assert list(cache_folder.iterdir()) == [kept]


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(
    untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = undertrained_ids(untied, TEXTS, SPECIAL, USED)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEGTEMP_CACHE", str(tmp_path / "file"))
    assert undertrained_ids(untied, TEXTS, SPECIAL, USED) == first


def test_a_table_asks_the_models_folder_for_its_undertrained_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level()
    n_tokens = len(tokenizer)
    matrix = embeddings(n_tokens)
    matrix[[70, 80, tokenizer.eos_token_id]] *= 0.01
    tensors = {"model.embed_tokens.weight": matrix, "lm_head.weight": embeddings(n_tokens, 1)}
    folder = write_model(tmp_path / "m", {}, {"model.safetensors": tensors})
    found = token_table(tokenizer, str(folder)).members("undertrained", n_tokens)
    assert {70, 80} <= set(found.nonzero().flatten().tolist())
    assert not found[tokenizer.eos_token_id]


@pytest.mark.parametrize("model_path", [None, "org/not-on-this-machine", "/no/such/folder"])
def test_without_the_models_folder_its_undertrained_tokens_can_not_be_told(
    model_path: str | None,
) -> None:
    table = token_table(byte_level(), model_path)
    with pytest.raises(ValueError, match=f"no folder of the model {model_path!r}"):
        table.members("undertrained", 10)
