"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from sampling_cases import IMPLEMENTATIONS, Implementation
from small_head import serve_head

# numpy, which stands in for the GPU, warns of inf - inf where a GPU goes on.
_MARKS = {"kernels": pytest.mark.filterwarnings("ignore::RuntimeWarning")}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=_MARKS.get(name, ())) for name in IMPLEMENTATIONS],
)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """Each way to carry out the heavy part of a step."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a small cluster's head."""
    with serve_head() as address:
        yield address
