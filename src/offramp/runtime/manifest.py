"""What a bundle says about itself: enough to run it without Offramp, in any language."""

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.errors import OfframpError
from offramp.files import read_json
from offramp.model_config import Preprocessing
from offramp.runtime.parts import Layout

MANIFEST = "manifest.json"


class SegmentFile(BaseModel):
    """One segment: its file, and its tensors by name, batch first.

    Output ``next_x`` is what the next segment takes as ``x``. An early exit also gives ``answer``
    (B, classes), ``stop`` (B,) – these samples leave with their answer – and the ``score`` (B,)
    the decision hung on. The last segment only gives ``answer``.
    """

    model_config = ConfigDict(extra="forbid")

    file: str
    exit_index: int = Field(description="among all exits of the model")
    exit_name: str
    blocks: tuple[int, int] = Field(description="runs blocks first … last, counted from 1")
    inputs: tuple[str, ...]
    flow: tuple[str, ...] = Field(description="inputs of the next segment")
    says: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        return Layout(self.exit_index, self.inputs, self.flow, self.says)


class Manifest(BaseModel):
    """Everything about a bundle: how to prepare images, run segments and trust the numbers."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    offramp: str
    engine: str = Field(description="engine the operating point was calibrated on")
    precision: str
    model: str = Field(description="backbone")
    fingerprint: str
    channels: int
    preprocessing: Preprocessing
    task: str = Field(default="classification", description="what an answer is")
    num_classes: int
    classes: list[str] | None = Field(description="names by index, where known")
    exit_names: list[str]
    blocks: list[int] = Field(description="blocks run by a sample that leaves at each exit")
    macs: list[float] | None = Field(description="MACs of such a sample, active heads included")
    full_macs: float | None = Field(description="MACs of the unmodified model")
    segments: list[SegmentFile]
    single: str | None = Field(
        description="one file for batch 1 that stops early by itself: images → answer, exit, score"
    )
    policy: dict[str, Any] | None = Field(description="rule, thresholds, temperatures")
    promise: str | None
    promised: dict[str, Any] = Field(description="what calibration expects, and on what samples")
    verified: dict[str, Any] = Field(description="largest differences from torch at export")
    measured: dict[str, Any] = Field(description="times on the machine named there")
    versions: dict[str, str]
    files: dict[str, str] = Field(description="SHA-256 of every other file")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read and check a bundle's manifest and files, or raise `OfframpError`."""
        folder = Path(folder)
        path = folder / MANIFEST
        content = read_json(path)
        version = content.get("format") if isinstance(content, dict) else None
        if version != 1:
            raise OfframpError(f"{path}: format {version!r}, but this Offramp reads format 1")
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise OfframpError(f"{path}: {key}: {first['msg']}") from None
        for name, expected in manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise OfframpError(f"{file}: missing, though {MANIFEST} names it")
            if (found := digest(file)) != expected:
                raise OfframpError(
                    f"{file}: SHA-256 {found[:12]}… but {MANIFEST} says {expected[:12]}…: the file "
                    "was changed or damaged; export the bundle again"
                )
        return manifest


def digest(file: Path) -> str:
    """SHA-256 of a file in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
