"""Report: what was measured about a run, as tables, plots and one self-contained HTML file."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.runs import RunFolder

__all__ = ["write_report"]


def write_report(run: "RunFolder") -> Path:
    """Write ``report.html`` and ``plots/*.png`` into a run's folder and return the page's path.

    Everything is computed from records; those of the evaluated split (test by default) are
    collected first where they are missing.

    Raises:
        OfframpError: when the folder holds no trained model, or a point of another model.
    """
    from offramp.report.page import write_page  # plots need matplotlib, tables do not

    return write_page(run)
