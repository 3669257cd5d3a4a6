"""One look for all plots: a warm accent on cool, calm exits; PNG for files, SVG for the page.

In the page colours are CSS variables, so a plot follows its reader from light to dark.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from offramp.files import write_atomic

FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
DPI = 200
# role: (light, dark); no two roles share a light colour, which names them in an SVG
ROLES = {
    "ink": ("#1d2329", "#e6e9ec"),
    "muted": ("#69737d", "#98a2ac"),
    "rule": ("#d5dade", "#39424b"),
    "grid": ("#eaedef", "#262d34"),
    "paper": ("#fefefe", "#14181c"),
    "accent": ("#d1480f", "#ff8a50"),
    "soft": ("#eda583", "#a2593a"),
}
# from the first exit to the last: depth is contrast with the paper
DEPTH_LIGHT = ("#a5d3cf", "#5aa9ad", "#2a7a8c", "#1d4f6b", "#1a2f4b")
DEPTH_DARK = ("#2c5a66", "#3b8490", "#5db0b4", "#9bd6d0", "#e0f5ef")


@dataclass(frozen=True)
class Look:
    """Colours of a run's plots: roles, and one per exit by depth."""

    exits: list[str]
    ink: str = ROLES["ink"][0]
    muted: str = ROLES["muted"][0]
    rule: str = ROLES["rule"][0]
    grid: str = ROLES["grid"][0]
    paper: str = ROLES["paper"][0]
    accent: str = ROLES["accent"][0]
    soft: str = ROLES["soft"][0]


def look(num_exits: int) -> Look:
    """The look of a model with so many exits."""
    return Look(exits=ramp(DEPTH_LIGHT, num_exits))


def ramp(stops: Sequence[str], count: int) -> list[str]:
    """``count`` different colours spread evenly over ``stops``; the last is the last stop."""
    if count == 1:
        return [stops[-1]]
    colours = []
    for k in range(count):
        place = k * (len(stops) - 1) / (count - 1)
        low = min(int(place), len(stops) - 2)
        pairs = zip(_channels(stops[low]), _channels(stops[low + 1]), strict=True)
        mixed = [round(a + (place - low) * (b - a)) for a, b in pairs]
        colours.append("#" + "".join(f"{channel:02x}" for channel in mixed))
    return colours


def css_variables(num_exits: int, *, dark: bool) -> dict[str, str]:
    """CSS variables of every role and exit in one theme."""
    roles = {f"--{role}": pair[dark] for role, pair in ROLES.items()}
    depth = ramp(DEPTH_DARK if dark else DEPTH_LIGHT, num_exits)
    return roles | {f"--exit-{k}": colour for k, colour in enumerate(depth)}


@contextmanager
def styled(salt: str) -> Iterator[None]:
    """Matplotlib's settings for drawing; ``salt`` keeps ids of different SVGs apart."""
    colours = look(1)
    with mpl.rc_context(
        {
            "font.family": _font(),
            "font.size": 9.5,
            "text.color": colours.ink,
            "axes.labelcolor": colours.muted,
            "axes.labelsize": 9.5,
            "axes.edgecolor": colours.rule,
            "axes.linewidth": 0.8,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "grid.color": colours.grid,
            "grid.linewidth": 0.8,
            "xtick.color": colours.rule,
            "ytick.color": colours.rule,
            "xtick.labelcolor": colours.muted,
            "ytick.labelcolor": colours.muted,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "figure.facecolor": colours.paper,
            "figure.dpi": 100,
            "savefig.dpi": DPI,
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "path.simplify": True,
        }
    ):
        yield


def figure(
    width: float,
    height: float,
    panels: int = 1,
    *,
    columns: int | None = None,
    sharex: bool = False,
    sharey: bool = False,
    pad: float = 0.04,
) -> tuple[Figure, list[Any]]:
    """A figure of ``width`` × ``height`` inches with panels side by side, or in rows of
    ``columns``; no global state."""
    made = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))
    columns = columns or panels
    grid = made.subplots(
        -(-panels // columns), columns, squeeze=False, sharex=sharex, sharey=sharey
    )
    axes = list(grid.flat)
    for spare in axes[panels:]:
        spare.remove()
    for lowest in axes[max(0, panels - columns) : panels]:
        lowest.tick_params(labelbottom=True)
    return made, axes[:panels]


def note(
    axis: Any,
    text: str,
    at: tuple[float, float],
    *,
    offset: tuple[float, float] = (0, 0),
    ha: str = "left",
    va: str = "center",
    **font: Any,
) -> None:
    """Write ``text`` beside a place in data coordinates, ``offset`` points away."""
    options = {"textcoords": "offset points", "ha": ha, "va": va, "annotation_clip": False}
    axis.annotate(text, at, xytext=offset, **options, **font)


def save_png(made: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    data = io.BytesIO()
    made.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, data.getvalue())
    return path


def to_svg(made: Figure, *, label: str, num_exits: int) -> str:
    """A figure as an SVG element for HTML, in CSS variables and the page's own font.

    Args:
        label: what is shown, for people who do not see it.
        num_exits: exits of the model, whose colours become variables too.
    """
    made.patch.set_visible(False)
    data = io.StringIO()
    made.savefig(data, format="svg", metadata={"Date": None, "Creator": None, "Format": None})
    head, _, body = data.getvalue().partition("<svg")[2].partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", body.replace("xlink:href", "href"))
    for name, colour in css_variables(num_exits, dark=False).items():
        body = body.replace(colour, f"var({name})")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(label)}">{body}'


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _font() -> str:
    """The first of our fonts that is installed (DejaVu Sans comes with matplotlib)."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return next(name for name in FONTS if name in installed)
