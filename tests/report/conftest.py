"""Runs to report on, made once."""

import shutil
from pathlib import Path

import pytest
from report_runs import add_points, make_run

from offramp.runs import RunFolder


@pytest.fixture(scope="session")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained run that nobody has calibrated."""
    return make_run(tmp_path_factory.mktemp("runs") / "bare")


@pytest.fixture(scope="session")
def made_run(bare_run: RunFolder) -> tuple[RunFolder, str]:
    """A run with two operating points, and the newest's name."""
    path = bare_run.path.with_name("made")
    shutil.copytree(bare_run.path, path)
    run = RunFolder(path)
    return run, add_points(run)


@pytest.fixture
def run(made_run: tuple[RunFolder, str], tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    path = tmp_path / "run"
    shutil.copytree(made_run[0].path, path)
    return RunFolder(path)


@pytest.fixture
def name(made_run: tuple[RunFolder, str]) -> str:
    return made_run[1]
