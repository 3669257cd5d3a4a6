"""``offramp report``: one self-contained HTML file about a run."""

from offramp.cli.terminal import AsJson, Run, emit, show, working


def report(run: Run, as_json: AsJson = False) -> None:
    """Write one self-contained HTML file about a run.

    It goes to RUN/report.html, the plots also to RUN/plots/*.png.

    Example: [bold]offramp report runs/demo[/]
    """
    from offramp.report import write_report
    from offramp.runs import RunFolder

    folder = RunFolder(run).check()
    with working("drawing", as_json):
        path = write_report(folder)
    if as_json:
        emit({"report": str(path)})
    else:
        show(f"report: [bold]{path}[/]")
