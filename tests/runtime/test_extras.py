"""Optional libraries come without what reports their use, or with a sentence that names them."""

import subprocess
import sys

import pytest

from offramp.errors import OfframpError
from offramp.runtime.extras import require

OPENVINO = """
{first}
from offramp.runtime.extras import require
require("openvino", "openvino", "the OpenVINO engine")
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""


@pytest.mark.parametrize(
    ("first", "used"),
    [
        pytest.param("", "openvino.tools.ovc.telemetry_stub", id="silent"),
        pytest.param("import openvino_telemetry", "openvino_telemetry", id="asked for"),
    ],
)
def test_openvino_reports_nothing(first: str, used: str) -> None:
    code = OPENVINO.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [used]


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(OfframpError, match=r"the Abacus engine needs abacus.*offramp\[beads\]"):
        require("abacus", "beads", "the Abacus engine")
