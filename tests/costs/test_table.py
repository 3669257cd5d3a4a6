"""Cost tables: leaving costs, LGViT's published histograms, and files."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from offramp.costs.table import CostTable
from offramp.errors import OfframpError

TABLE = CostTable(unit="MACs", body=(10.0, 20.0, 30.0), head=(1.0, 2.0, 4.0), full=64.0)


def test_leave_cost_pays_the_heads_passed() -> None:
    assert TABLE.leave_cost() == (11.0, 33.0, 67.0)
    assert TABLE.leave_cost([1]) == (10.0, 32.0, 66.0)
    assert TABLE.leave_cost([]) == (10.0, 30.0, 64.0)
    assert TABLE.mean_cost((0.5, 0.5, 0.0)) == 22.0
    assert TABLE.speedup((0.0, 0.0, 1.0), []) == 1.0


@pytest.mark.parametrize(
    ("leavers", "mean_macs", "speedup"),
    [
        ((4330, 1556, 943, 894, 1136, 498, 236, 94, 313), 9.090, 1.932),
        ((3234, 1481, 878, 991, 1539, 675, 317, 174, 711), 10.191, 1.723),
        ((1149, 1105, 663, 999, 2103, 1087, 539, 316, 2039), 12.831, 1.369),
    ],
)
def test_lgvit_vit_b_histograms_of_the_card(
    leavers: tuple[int, ...], mean_macs: float, speedup: float
) -> None:
    heads = (0.23264, 0.23264, 0.23129, 0.23129, 0.11937, 0.11937, 0.06002, 0.06002, 0.0)
    table = CostTable(unit="GMACs", body=(5.931, *(1.454,) * 8), head=heads, full=17.563)
    share = [count / 10_000 for count in leavers]
    assert table.mean_cost(share) == pytest.approx(mean_macs, abs=2e-3)
    assert table.speedup(share) == pytest.approx(speedup, abs=1e-3)


def test_wrong_lengths_and_numbers() -> None:
    with pytest.raises(OfframpError, match="2 exit shares"):
        TABLE.mean_cost((0.5, 0.5))
    with pytest.raises(OfframpError, match="active exit 7 does not exist"):
        TABLE.leave_cost([7])
    with pytest.raises(ValidationError, match="one per exit"):
        CostTable(unit="MACs", body=(1.0,), head=(1.0, 2.0), full=1.0)
    with pytest.raises(ValidationError, match="not negative"):
        CostTable(unit="MACs", body=(-1.0,), head=(1.0,), full=1.0)
    with pytest.raises(ValidationError, match="full must be"):
        CostTable(unit="MACs", body=(1.0,), head=(1.0,), full=0.0)


def test_file_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    TABLE.save(path)
    assert CostTable.load(path) == TABLE
    path.write_text(path.read_text().replace('"MACs"', "3"))
    with pytest.raises(OfframpError, match=r"costs\.json: unit"):
        CostTable.load(path)
