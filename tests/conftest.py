"""Marks that follow from a test's folder, and the models and commands of the slower tests."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from s3_server import S3Server, serve_s3
from small_model import two_layers

_HERE = Path(__file__).parent

# A busy machine is no failure.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of engines and clusters, whose libraries' own warnings are no errors of ours."""
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in {"integration", "chaos"}:
            item.add_marker(folder)
            # Before the test's own marks, so that one of those can be stricter.
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)


@pytest.fixture(scope="session")
def smol_model() -> str:
    """Folder of the embedded model."""
    from negtemp_data.engine.catalogue import resolve_model

    return resolve_model("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def tiny_model(smol_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random two-layer Llama with the embedded model's tokenizer.

    Its output layer is scaled so that the logits spread about as those of a trained model.
    """
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        two_layers(
            49152,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    torch.nn.init.normal_(model.lm_head.weight, std=2.5 / 64**0.5)
    model.save_pretrained(folder)
    for pattern in ("tokenizer*", "chat_template*"):
        for file in Path(smol_model).glob(pattern):
            shutil.copy(file, folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_engine(tiny_model: str) -> Iterator[Any]:
    """A real engine on the tiny model in float32, in this process.

    No longer than a module: an engine that is closed ends vLLM's process groups for all of them.
    """
    from negtemp_data.engine.engine import Engine, EngineSpec

    engine = Engine(
        EngineSpec(tiny_model, {"dtype": "float32", "max_model_len": 2048}, is_cpu=True, replicas=1)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all tests: a process's clients go on using the first address that they were given."""
    with serve_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server that this process, and those that it starts, reach by their environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def negtemp() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command line in a process of its own."""

    def run(*arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "negtemp_data", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
