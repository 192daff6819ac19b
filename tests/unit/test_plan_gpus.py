"""`negtemp plan` on the GPUs that a job can have."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from negtemp_data.cli.main import negtemp
from small_head import Head

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(
        negtemp, ["plan", str(QUICKSTART), "--prompts", "0", *arguments], catch_exceptions=False
    )


@pytest.mark.usefixtures("smol_model")  # which makes sure that the model is here
def test_a_plan_shows_what_a_clusters_gpus_have_room_for(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(Head, "n_gpus", 8)
    monkeypatch.setattr(Head, "gpus", [{"memoryTotal": 40960}, {"memoryTotal": 81920}])
    two_parts = ("--set", "generate.engine.tensor_parallel_size=2", "--set", "generate.replicas=3")
    shown = " ".join(plan("--address", head, *two_parts).stdout.split())
    assert f"an engine on {head} has 73.6 GiB for both" in shown  # 2 × 92% of the smallest
    assert "its 8 GPUs have room for 4 engines; the job wants 3" in shown
    memory = json.loads(plan("--address", head, *two_parts, "--json").stdout)["memory"]
    assert (memory["engines"], memory["fits"]) == (4, True)


def test_a_plan_says_where_a_clusters_gpus_are_not_known(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(Head, "gpus", [])
    result = plan("--address", head)
    assert "does not say how much memory its 1 GPUs have" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "10.0.0.1:6379"], "--address 10.0.0.1:6379 needs --calibrate"),
        (["--address", "http://h:8265", "--calibrate", "4"], "http://h:8265 needs HOST:PORT"),
    ],
)
def test_an_address_that_plan_has_no_use_for_is_refused(arguments: list[str], message: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
