"""The client of a cluster's dashboard."""

import pytest
from tenacity import stop_after_attempt, wait_none

from negtemp_data.cluster.client import JobsClient
from negtemp_data.errors import ClusterError
from small_head import Head


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks again at once, four times."""
    retrying = JobsClient._do_request.retry  # type: ignore[attr-defined]
    monkeypatch.setattr(retrying, "wait", wait_none())
    monkeypatch.setattr(retrying, "stop", stop_after_attempt(5))


def test_a_machine_is_known_before_its_agent_reports(head: str) -> None:
    [node] = JobsClient(head).nodes()
    assert (node.hostname, node.gpus) == ("head", 1)


def test_a_cluster_that_is_coming_up_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(Head, "not_ready", 3)
    assert len(JobsClient(head).nodes()) == 1
    assert Head.not_ready == 0


def test_one_that_never_comes_up_is_an_error_with_its_words(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(Head, "not_ready", 1000)
    with pytest.raises(ClusterError, match="No available agent to submit job"):
        JobsClient(head).nodes()
    assert Head.not_ready == 995
