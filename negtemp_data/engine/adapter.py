"""LoRA adapters: from a name to a folder that vLLM loads, and what its engine needs for it.

A name is a local folder or a Hugging Face id. Weights are read from safetensors alone: the other
formats are pickles.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negtemp_data.errors import ModelError, quote

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be. Source: vllm 0.32, config/lora.py, MaxLoRARanks."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on this machine."""

    name: str
    """As the job names it."""
    path: str
    """Folder with config and weights."""
    revision: str
    """Changes with the content of either."""
    rank: int
    """Largest rank of its matrices."""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """vLLM engine arguments that make room for it."""
        room = next(allowed for allowed in _ENGINE_RANKS if allowed >= self.rank)
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def is_known_adapter(name: str) -> bool:
    """Whether `name` may be an adapter, judged without touching the network."""
    return Path(name).expanduser().is_dir() or bool(_HUB_ID.fullmatch(name))


def resolve_adapter(name: str, on_progress: Callable[[str], None] = lambda _: None) -> Adapter:
    """Makes the adapter `name` available on this machine.

    Args:
        name: Local folder, or Hugging Face id.
        on_progress: Told, in a line, of a download.

    Raises:
        ModelError: There is no such adapter, it can't be had here, or vLLM can't load it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        rank = _rank(name, folder)
        return Adapter(name, str(folder), _content_revision(name, folder), rank)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"generate.lora {quote(name)}: no such adapter; it is a local folder, or a Hugging "
            "Face id such as org/name."
        )
    folder = _from_hub(name, on_progress)
    return Adapter(name, str(folder), f"hub-{folder.name}", _rank(name, folder))


def _rank(name: str, folder: Path) -> int:
    try:
        config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        rank = max(int(rank) for rank in ranks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"generate.lora {quote(name)}: its {_CONFIG_FILE} does not tell the rank: {error!r}."
        ) from error
    if not 1 <= rank <= _ENGINE_RANKS[-1]:
        raise ModelError(
            f"generate.lora {quote(name)}: its rank is {rank}; vLLM takes 1 to {_ENGINE_RANKS[-1]}."
        )
    if not (folder / _WEIGHTS_FILE).is_file():
        raise ModelError(f"generate.lora {quote(name)}: the folder has no {_WEIGHTS_FILE}.")
    return rank


def _content_revision(name: str, folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    try:
        for file in (_CONFIG_FILE, _WEIGHTS_FILE):
            with (folder / file).open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "blake2b").digest())
    except OSError as error:
        raise ModelError(f"generate.lora {quote(name)}: can't be read: {error}.") from error
    return f"local-{digest.hexdigest()}"


def _from_hub(name: str, on_progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    files = [_CONFIG_FILE, _WEIGHTS_FILE]
    try:
        try:
            return Path(snapshot_download(name, local_files_only=True, allow_patterns=files))
        except LocalEntryNotFoundError:
            on_progress(f"downloading {name} from the Hugging Face hub")
            return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the hub's client raises those of its transport, too
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ModelError(
            f"generate.lora {quote(name)} is not on this machine and can't be downloaded: {reason} "
            "A local folder works without the hub."
        ) from error
