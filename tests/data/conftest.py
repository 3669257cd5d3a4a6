"""Data tests read nothing but what they write, and fetch nothing."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFRAMP_DOWNLOAD", "0")
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
