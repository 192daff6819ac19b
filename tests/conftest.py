"""Marks that follow from a test's folder."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of engines and clusters, whose libraries' own warnings are no errors of ours."""
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in {"integration", "chaos"}:
            item.add_marker(folder)
            # Before the test's own marks, so that one of those can be stricter.
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
