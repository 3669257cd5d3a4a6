"""The page: one HTML file with everything in it, and the same plots as PNG beside it."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from offramp.anytime import ANYTIME
from offramp.calibration import Reliability, reliability
from offramp.files import write_atomic
from offramp.report import diagrams, facts, gallery, leavers, tradeoff
from offramp.report import uncertainty as trust
from offramp.report.anytime import plot_anytime, read_anytime, sentences
from offramp.report.findings import Findings
from offramp.report.frontier import plot_frontier, read_frontier
from offramp.report.style import css_variables, save_png, styled, to_svg
from offramp.report.tables import threshold_name
from offramp.report.tokens import Tokens
from offramp.runs import RunFolder
from offramp.tasks import figure_name
from offramp.uncertainty.evaluation import UNCERTAINTY, read_uncertainty
from offramp.version import __version__

Draw = Callable[[], Figure]


def write_page(run: RunFolder) -> Path:
    """Draw everything into ``plots/*.png`` and ``report.html``; returns the page's path."""
    page = Page(Findings(run))
    for name, draw in page.plots():
        with styled(name):
            save_png(draw(), run.path / "plots" / f"{name}.png")
    path = run.path / "report.html"
    write_atomic(path, page.render())
    return path


class Page:
    """What one report shows, as plots for files and as SVG for the page."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.chosen = findings.headline
        self.metrics = [m for m in findings.run.metrics() if "validation" in m]
        file = findings.run.path / "frontier.json"
        self.frontier = read_frontier(file, findings.records.meta.fingerprint)
        file = findings.run.path / ANYTIME
        self.anytime = read_anytime(file, findings.records.meta.fingerprint)
        file = findings.run.path / UNCERTAINTY
        self.trust = read_uncertainty(file, findings.records.meta.fingerprint)

    @cached_property
    def reliability(self) -> list[Reliability]:
        """Per exit; with the newest point's temperatures where it has some."""
        if self.findings.task.fewer:
            return []  # a number comes without a confidence that could be checked
        if self.chosen is None:
            return reliability(self.findings.records)
        temperatures = self.chosen.point.policy.get("temperatures")
        return reliability(self.chosen.records, temperatures=temperatures)

    @cached_property
    def groups(self) -> dict[str, list[leavers.Group]]:
        return leavers.groups(self.findings, self.chosen) if self.chosen else {}

    @cached_property
    def shelves(self) -> list[gallery.Shelf]:
        return gallery.shelves(self.findings, self.chosen) if self.chosen else []

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self.findings)

    def plots(self) -> Iterator[tuple[str, Draw]]:
        """File name and drawing of every PNG."""
        found, chosen = self.findings, self.chosen
        yield "tradeoff", partial(tradeoff.plot_tradeoff, found)
        if self.reliability:
            yield "reliability", partial(diagrams.plot_reliabilities, self.reliability)
        if self.metrics:
            yield "training", self._training
        if self.frontier:
            yield "frontier", partial(plot_frontier, self.frontier)
        if self.anytime:
            yield "anytime", partial(plot_anytime, self.anytime)
        if self.trust:
            yield "uncertainty", partial(trust.plot_selective, self.trust)
        for number, followed in enumerate(self.tokens.followed, 1):
            yield f"tokens-{number}", partial(self.tokens.draw, followed)
        if chosen is None:
            return
        yield "exits", partial(leavers.plot_shares, found, chosen)
        yield "accuracy", partial(leavers.plot_accuracy, found, chosen)
        for name, values in self.groups.items():
            yield f"by-{name}", partial(leavers.plot_groups, found, name, values)
        if self.shelves:
            yield "images", partial(gallery.plot_shelves, self.shelves)

    def render(self) -> str:
        """The page as HTML."""
        environment = Environment(
            loader=PackageLoader("offramp.report", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.j2").render(self._context())

    def _context(self) -> dict[str, Any]:
        found, chosen = self.findings, self.chosen
        exits = found.records.num_exits
        return {
            "name": found.run.path.resolve().name,
            "version": __version__,
            "light": css_variables(exits, dark=False),
            "dark": css_variables(exits, dark=True),
            "meta": found.records.meta,
            "task": found.task,
            "metric": found.task.metric,
            "more": [figure_name(key) for key in found.more[0]],
            "samples": len(found.records),
            "headline": facts.headline(found),
            "promises": facts.promises(found),
            "summary": facts.summary(found),
            "panels": [
                (panel, self._svg(f"{panel.title} panel", tradeoff.plot_panel, found, panel))
                for panel in tradeoff.panels(found)
            ],
            "legend": tradeoff.legend_names(found),
            "measured": found.timing.measured,
            "exits": facts.exits(found, chosen, self.reliability) if chosen else [],
            "threshold": threshold_name(chosen.point) if chosen else "",
            "shares": self._leavers(),
            "groups": [
                (name, values, self._svg(f"by {name}", leavers.plot_groups, found, name, values))
                for name, values in self.groups.items()
            ],
            "shelves": self.shelves,
            "reducer": self.tokens.reducer,
            "tokens": [
                (followed.label, self._svg(f"tokens, {followed.label}", self.tokens.draw, followed))
                for followed in self.tokens.followed
            ],
            "reliability": [
                self._svg(f"reliability, {r.exit_name}", diagrams.plot_reliability, r, k, exits)
                for k, r in enumerate(self.reliability)
            ],
            "training": self._svg("training", self._training) if self.metrics else None,
            "front": facts.front(found),
            "timings": facts.timings(found),
            "frontier": self._svg("frontier", plot_frontier, self.frontier)
            if self.frontier
            else None,
            "anytime": self._svg("anytime", plot_anytime, self.anytime) if self.anytime else None,
            "budgets": sentences(self.anytime) if self.anytime else [],
            "trust": self._trust(),
            "verdicts": self.frontier.verdicts() if self.frontier else [],
            "environment": facts.environment(found),
            "commands": facts.commands(found),
        }

    def _trust(self) -> dict[str, Any] | None:
        """What `offramp eval --uncertainty` found, where it has looked."""
        found = self.trust
        if found is None:
            return None
        shown = found.points or {"full model": found.exits[-1]}
        return {
            "about": trust.about(found),
            "sentences": trust.sentences(found),
            "plot": self._svg("selective risk", trust.plot_selective, found),
            "heads": trust.SCORES,
            "rows": trust.scores_rows(found),
            "set_heads": trust.SETS,
            "sets": {n: trust.sets_rows(s, found.exit_names) for n, s in shown.items()},
            "sets_from": f"{found.sets_samples} {found.sets_from} samples",
            "outside": found.outside,
            "foreign": trust.outside_rows(found) if found.outside else ([], []),
        }

    def _leavers(self) -> list[Markup]:
        if self.chosen is None:
            return []
        shown = (self.findings, self.chosen)
        return [
            self._svg("share of samples leaving", leavers.plot_shares, *shown),
            self._svg("accuracy of those who leave", leavers.plot_accuracy, *shown),
        ]

    def _training(self) -> Figure:
        return diagrams.plot_training(self.metrics, self.findings.exit_names)

    def _svg(self, label: str, draw: Callable[..., Figure], *arguments: Any) -> Markup:
        """What ``draw(*arguments)`` draws, as an element of the page."""
        with styled(label):
            svg = to_svg(draw(*arguments), label=label, num_exits=self.findings.records.num_exits)
        return Markup(svg)
