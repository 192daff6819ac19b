"""Fixtures of the unit tests."""

import pytest

from sampling_cases import IMPLEMENTATIONS, Implementation

# numpy, which stands in for the GPU, warns of inf - inf where a GPU goes on.
_MARKS = {"kernels": pytest.mark.filterwarnings("ignore::RuntimeWarning")}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=_MARKS.get(name, ())) for name in IMPLEMENTATIONS],
)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """Each way to carry out the heavy part of a step."""
    return IMPLEMENTATIONS[request.param]
