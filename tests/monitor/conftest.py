"""One operating point for all watches."""

import pytest
from streams import made_point

from offramp.calibration import OperatingPoint


@pytest.fixture(scope="session")
def point() -> OperatingPoint:
    return made_point()
