"""Trained runs, each at one image size, as the models a cascade can be made from."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median

from offramp.cascades.pool import Pool, joined
from offramp.cascades.sizes import Size, pixels, resized
from offramp.costs.macs import count_macs
from offramp.data import DataSource
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.runs import RunFolder
from offramp.runtime.contest import Contender, contest
from offramp.runtime.static import static_program
from offramp.training.run_config import RunConfig

TIMED_IMAGES = 32
ROUNDS = 7


class SizedRun(RunFolder):
    """A run's whole model at another image size, without its early exits.

    Its records have a folder of their own inside the run: ``sizes/112x112/``.
    """

    def __init__(self, run: RunFolder, size: Size) -> None:
        super().__init__(run.path / "sizes" / f"{size[0]}x{size[1]}")
        self.run, self.size = run, size

    def check(self) -> "SizedRun":
        self.run.check()
        return self

    @cached_property
    def config(self) -> RunConfig:
        return self.run.config

    @cached_property
    def data(self) -> DataSource:
        return self.run.data

    @cached_property
    def model(self) -> MultiExitModel:
        native = self.run.model
        part = resized(native, self.size)
        preprocessing = native.preprocessing.model_copy(update={"image_size": self.size})
        config = native.config.model_copy(
            update={
                "backbone_args": part.arguments,
                "exits": [],
                "preprocessing": preprocessing,
            }
        )
        return MultiExitModel(part.module, config).eval()


class Contestant:
    """A run at one image size.

    Args:
        run: the trained run.
        size: (H, W); None: the run's own.
        label: what to call the run; its folder's name when omitted.
    """

    def __init__(self, run: RunFolder, size: Size | None = None, label: str | None = None) -> None:
        own = run.model.preprocessing.image_size
        self.run, self.size = run, size or own
        self.folder = run if self.size == own else SizedRun(run, self.size)
        at = "" if self.size == own else f"@{pixels(self.size).removesuffix(' px')}"
        self.name = (label or run.path.resolve().name) + at

    @property
    def model(self) -> MultiExitModel:
        return self.folder.model


def contestants(given: Sequence[str]) -> list[Contestant]:
    """``RUN``, ``RUN@112``, ``RUN@112,160x224`` … → every run at every size, none twice.

    A run that is named with sizes takes part at those alone.

    Raises:
        OfframpError: for a folder that is no run, or a size nobody can read.
    """
    asked: dict[Path, tuple[str, list[Size | None]]] = {}
    for text in given:
        path, sizes = _parsed(text)
        asked.setdefault(Path(path).resolve(), (path, []))[1].extend(sizes or [None])
    folders = [place.name for place in asked]
    found: dict[tuple[Path, Size], Contestant] = {}
    for place, (path, wanted) in asked.items():
        run = RunFolder(path).check()
        label = path if folders.count(place.name) > 1 else place.name
        for size in wanted:
            contestant = Contestant(run, size, label)
            found.setdefault((place, contestant.size), contestant)
    return list(found.values())


def pool_of(
    given: Sequence[Contestant],
    costs: Sequence[float],
    *,
    unit: str,
    split: str = "calibration",
    engine: str = "torch",
    precision: str | None = None,
    logits: bool = False,
    progress: bool = True,
) -> Pool:
    """What everybody says about a split: cached records, or collected now."""
    records = [
        contestant.folder.records(split, engine=engine, precision=precision, progress=progress)
        for contestant in given
    ]
    return joined(records, [c.name for c in given], costs, unit=unit, logits=logits)


def macs_of(given: Sequence[Contestant]) -> list[float]:
    """Multiply-accumulates of each whole model for one image at its size."""
    return [
        float(count_macs(c.model.chain.whole, c.folder.images("calibration", 1))) for c in given
    ]


def times_of(
    given: Sequence[Contestant],
    *,
    engine: str = "torch",
    precision: str | None = None,
    batch_size: int = 1,
    rounds: int = ROUNDS,
    advance: Callable[[], None] = lambda: None,
) -> list[float]:
    """Median milliseconds per image of each whole model on an engine; they take turns.

    Args:
        batch_size: images per batch.
        rounds: measured rounds, after one other.
        advance: called after every turn, of which there are ``len(given) * (rounds + 1)``.
    """
    contenders = {}
    for number, contestant in enumerate(given):
        folder, chain = contestant.folder, contestant.model.chain
        options = folder.engine_options(engine, precision, batch_size=batch_size)
        program = static_program(chain.whole, chain.image_size, engine, options=options)
        images = folder.images("calibration", max(TIMED_IMAGES, batch_size))
        whole = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
        contenders[str(number)] = Contender(program, whole)
    times = contest(contenders, rounds=rounds, advance=advance)
    return [median(times[str(number)]) for number in range(len(given))]


def _parsed(text: str) -> tuple[str, list[Size]]:
    path, _, sizes = text.rpartition("@")
    if not path:
        return text, []
    found = []
    for word in sizes.split(","):
        match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", word.strip())
        if match is None or 0 in (size := (int(match[1]), int(match[2] or match[1]))):
            raise OfframpError(
                f"{text}: {word!r} is no image size (write RUN@112, RUN@112,160 or RUN@96x128)"
            )
        found.append(size)
    return path, found
