"""When a run that has lost a machine waits in vain."""

import pytest

from negtemp_data.pipeline.machines import is_still
from negtemp_data.pipeline.progress import Tally


@pytest.mark.parametrize(
    ("tally", "expected"),
    [
        (Tally(worked_at=9_990.0), False),
        (Tally(worked_at=9_900.0), True),
        (Tally(worked_at=9_000.0, starting={"a": 9_500.0}), False),
        # The worker went away with its machine while it loaded the model.
        (Tally(worked_at=9_000.0, starting={"a": 9_050.0}), True),
    ],
)
def test_a_run_is_still_when_nobody_works_and_no_engine_starts(
    tally: Tally, expected: bool
) -> None:
    assert is_still(tally, now=10_000.0) is expected
