"""LoRA adapters: what vLLM has to be told of one, and what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from negtemp_data.engine.adapter import is_known_adapter, resolve_adapter
from negtemp_data.errors import ModelError


def make_adapter(folder: Path, config: Any, weights: bytes = b"w") -> str:
    """An adapter's folder, as far as it is read before the engine starts."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "rank", "room"),
    [
        ({"r": 1}, 1, 1),
        ({"r": 2, "rank_pattern": None}, 2, 8),
        ({"r": 8, "rank_pattern": {}}, 8, 8),
        ({"r": 8, "rank_pattern": {"q_proj": 9, "v_proj": 4}}, 9, 16),
        ({"r": 257}, 257, 320),
        ({"r": 512}, 512, 512),
    ],
)
def test_the_engine_makes_room_for_the_largest_rank(
    tmp_path: Path, config: dict[str, Any], rank: int, room: int
) -> None:
    adapter = resolve_adapter(make_adapter(tmp_path, config))
    assert (adapter.path, adapter.rank) == (str(tmp_path.resolve()), rank)
    assert adapter.engine_arguments == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": room,
    }


def test_ranks_that_vllm_takes_are_those_of_the_installed_version() -> None:
    import ast
    import importlib.util

    from negtemp_data.engine.adapter import _ENGINE_RANKS

    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        pytest.skip("vllm is not installed")
    source = Path(package.submodule_search_locations[0], "config", "lora.py").read_text()
    (ranks,) = (
        node.value.slice
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MaxLoRARanks"
        if isinstance(node.value, ast.Subscript)
    )
    assert ast.literal_eval(ranks) == _ENGINE_RANKS


def test_the_revision_changes_with_the_content_alone(tmp_path: Path) -> None:
    first = resolve_adapter(make_adapter(tmp_path / "a", {"r": 8}))
    same = resolve_adapter(make_adapter(tmp_path / "b", {"r": 8}))
    (tmp_path / "b" / "README.md").write_text("notes", encoding="utf-8")
    assert resolve_adapter(same.name).revision == same.revision == first.revision
    others = [
        resolve_adapter(make_adapter(tmp_path / "c", {"r": 8}, b"v")),
        resolve_adapter(make_adapter(tmp_path / "d", {"r": 9})),
    ]
    assert len({first.revision, *(other.revision for other in others)}) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "its adapter_config.json does not tell the rank: KeyError('r')"),
        ([], "its adapter_config.json does not tell the rank: "),
        ({"r": "many"}, "its adapter_config.json does not tell the rank: "),
        ({"r": 8, "rank_pattern": [1]}, "its adapter_config.json does not tell the rank: "),
        ({"r": 0}, "its rank is 0; vLLM takes 1 to 512."),
        ({"r": 513}, "its rank is 513; vLLM takes 1 to 512."),
    ],
    ids=str,
)
def test_a_folder_that_is_no_adapter_says_what_is_wrong(
    tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_adapter(make_adapter(tmp_path, config))
    assert f"generate.lora {str(tmp_path)!r}: {message}" in str(caught.value)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    name = make_adapter(tmp_path, {"r": 8})
    (tmp_path / file).unlink()
    # Weights in a pickle do not count.
    (tmp_path / "adapter_model.bin").write_bytes(b"w")
    with pytest.raises(ModelError, match=file):
        resolve_adapter(name)


def test_what_is_no_name_of_an_adapter_says_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert not is_known_adapter("a/b/c")
    assert is_known_adapter("org/name")
    assert is_known_adapter(str(tmp_path))
    with pytest.raises(ModelError, match=r"'a/b/c': no such adapter; it is a local folder, or"):
        resolve_adapter("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    notes: list[str] = []
    with pytest.raises(
        ModelError, match="is not on this machine and can't be downloaded"
    ) as caught:
        resolve_adapter("no-such-org/no-such-adapter", notes.append)
    assert "\n" not in str(caught.value)
    assert notes == ["downloading no-such-org/no-such-adapter from the Hugging Face hub"]
