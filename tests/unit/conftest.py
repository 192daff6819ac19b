"""Fixtures of the unit tests."""

import pytest

from sampling_cases import IMPLEMENTATIONS, Implementation


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """Each way to carry out the heavy part of a step."""
    return IMPLEMENTATIONS[request.param]
