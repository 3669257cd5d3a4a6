"""Watch: looks at live answers again and again, and says when the promise may no longer hold."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ValidationError

from offramp.calibration.point import OperatingPoint
from offramp.calibration.records import Records
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.monitor.comparison import exits_p_value, readings_p_value
from offramp.monitor.reference import Reference, Sight, sight_of
from offramp.monitor.verdict import Alarm, Comparison, State, Verdict
from offramp.runtime.prediction import Prediction

WINDOW = 256
ALPHA = 0.01
LONG = 8  # windows the slower of the two spans holds
SMALLEST = 32
_TESTS = 4  # exits and confidences, each over both spans


class Watch:
    """Compares the live samples of an operating point with what its records predict.

    After every ``window`` samples it looks: at the newest window, for sudden changes, and at the
    newest eight, for slow ones. Look i may raise a false alarm with probability
    alpha / (i (i + 1)), shared equally by its four tests (Bonferroni); over all looks there ever
    are that adds up to alpha. So however long it runs, and however often it is asked, data like
    the reference's raises no alarm at all with probability 1 - alpha. An alarm stays.

    It sees whether data changed, not whether answers are wrong: a shift that leaves exits and
    confidences alone goes unseen, and one that does no harm is reported, too. What it can find
    is limited by the reference: with n records, shifts well below 1 / sqrt(n) standard deviations
    stay hidden however many samples come.

    Args:
        point: the operating point that answers live.
        records: of its model, engine and precision, on data like that which was promised for.
        window: samples between looks.
        alpha: probability of ever raising a false alarm.

    Raises:
        OfframpError: for records of another model or engine, or settings out of range.

    Example:
        >>> watch = Watch(point, records)                       # doctest: +SKIP
        >>> verdict = watch.update(runner(images))              # doctest: +SKIP
    """

    def __init__(
        self,
        point: OperatingPoint,
        records: Records,
        *,
        window: int = WINDOW,
        alpha: float = ALPHA,
    ) -> None:
        if window < SMALLEST:
            raise OfframpError(f"window = {window}, but it must be at least {SMALLEST} samples")
        if not 0 < alpha < 1:
            raise OfframpError(f"alpha = {alpha:g}, but it must be between 0 and 1")
        self.point, self.reference = point, Reference(point, records)
        self.state = State(
            point=_identity(point), reference=records.digest, window=window, alpha=alpha
        )

    def update(self, prediction: Prediction) -> Verdict:
        """Take in a runner's prediction, in the order of its samples."""
        return self.add(sight_of(prediction))

    def add(self, sight: Sight) -> Verdict:
        """Take in what was seen of some samples.

        Raises:
            OfframpError: for an exit where this point lets nobody leave, or a reading that is no
                number; nothing is taken in then.
        """
        self._check(sight)
        state, done = self.state, 0
        while done < len(sight):
            take = min(state.window - state.seen % state.window, len(sight) - done)
            self._remember(sight, slice(done, done + take))
            done += take
            if state.seen % state.window == 0:
                self._look()
        return self.verdict

    @property
    def verdict(self) -> Verdict:
        state, known = self.state, self.reference.sight
        kept = self._kept()
        mine = kept if len(kept) else None
        expected = self._share(known)
        share = None if mine is None else self._share(mine)
        return Verdict(
            drift=state.alarm is not None,
            sentence=self._sentence(),
            samples=state.seen,
            looks=state.looks,
            until_look=state.window - state.seen % state.window,
            since=None if state.alarm is None else state.alarm.at,
            alpha=state.alpha,
            tests=state.tests,
            exit_names=self.point.exit_names,
            exit_share=share,
            expected_share=expected,
            confidence=None if mine is None else float(mine.readings.mean()),
            expected_confidence=float(known.readings.mean()),
            cost_share=None if share is None else self._cost(share),
            expected_cost_share=self._cost(expected),
        )

    def reset(self) -> None:
        """Forget all samples and the alarm."""
        old = self.state
        self.state = State(**old.model_dump(include={"point", "reference", "window", "alpha"}))

    def save(self, path: Path | str) -> None:
        """Write everything remembered as JSON, whole or not at all."""
        write_json(path, self.state.model_dump(mode="json"))

    def resume(self, path: Path | str) -> Self:
        """Go on from a saved state.

        Raises:
            OfframpError: for a file that is no state, or one of another point, reference or
                settings.
        """
        try:
            state = State.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "state"
            raise OfframpError(f"{path}: {key}: {first['msg']}") from None
        for key in ("point", "reference", "window", "alpha"):
            saved, own = getattr(state, key), getattr(self.state, key)
            if saved != own:
                raise OfframpError(
                    f"{path}: a watch with {key} {saved}, but this one has {own}: give another "
                    "file, or delete it to begin again"
                )
        if not len(state.exits) == len(state.readings) == len(state.cut):
            raise OfframpError(f"{path}: exits, readings and cut are not equally many")
        self.state = state
        self._check(self._kept())
        return self

    def _check(self, sight: Sight) -> None:
        wrong = ~np.isin(sight.exits, self.reference.leaves)
        if wrong.any():
            names = ", ".join(self.point.exit_names[k] for k in self.reference.leaves)
            raise OfframpError(
                f"a sample left at exit {sight.exits[wrong][0]}, but this point's samples leave at "
                f"{names} ({', '.join(map(str, self.reference.leaves))})"
            )
        odd = ~np.isfinite(sight.readings)
        if self.reference.classes:
            odd |= (sight.readings < 0) | (sight.readings > 1 + 1e-6)
        if odd.any():
            accepted = "between 0 and 1" if self.reference.classes else "a finite number"
            raise OfframpError(f"a confidence of {sight.readings[odd][0]}: it must be {accepted}")

    def _remember(self, sight: Sight, rows: slice) -> None:
        state = self.state
        room = LONG * state.window
        state.exits = [*state.exits, *sight.exits[rows].tolist()][-room:]
        readings = self.reference.rounded(sight.readings[rows]).tolist()
        state.readings = [*state.readings, *readings][-room:]
        state.cut = [*state.cut, *sight.cut[rows].tolist()][-room:]
        state.seen += rows.stop - rows.start

    def _kept(self) -> Sight:
        state = self.state
        return Sight(
            np.array(state.exits, dtype=np.int64),
            np.array(state.readings, dtype=np.float64),
            np.array(state.cut, dtype=bool),
        )

    def _look(self) -> None:
        state, kept = self.state, self._kept()
        state.looks += 1
        factor = _TESTS * state.looks * (state.looks + 1)
        state.tests = []
        for samples in dict.fromkeys((state.window, len(kept))):
            live = kept.last(samples)
            for what, test in (("exits", exits_p_value), ("confidences", readings_p_value)):
                p = min(1.0, factor * test(self.reference, live))
                state.tests.append(Comparison(what=what, samples=samples, p=p))
        found = min(state.tests, key=lambda test: test.p)
        if state.alarm is None and found.p <= state.alpha:
            state.alarm = Alarm(at=state.seen, found=found)

    def _share(self, sight: Sight) -> list[float]:
        counts = np.bincount(sight.exits, minlength=len(self.point.exit_names))
        return [float(share) for share in counts / len(sight)]

    def _cost(self, share: list[float]) -> float:
        costs = self.point.costs
        return costs.mean_cost(share, self.point.active) / costs.full

    def _sentence(self) -> str:
        state = self.state
        if state.alarm is None:
            if not state.looks:
                return f"nothing to say yet: {state.seen} of {state.window} samples seen"
            lowest = min(test.p for test in state.tests)
            return (
                f"no sign of drift in {state.seen} samples, {state.looks} looks (smallest "
                f"corrected p of the newest {lowest:.2g})"
            )
        found = state.alarm.found
        return (
            f"DRIFT found at sample {state.alarm.at}: the {found.what} of the {found.samples} "
            f"samples up to it differ from the reference (corrected p {found.p:.1g}), so the "
            f"promise ({self.point.promise.statement}) may no longer hold: evaluate on data like "
            "this and calibrate again"
        )


def _identity(point: OperatingPoint) -> str:
    """What makes a point this one."""
    from hashlib import sha256

    parts: list[Any] = [point.fingerprint, point.engine, point.precision, point.active]
    return sha256(repr([*parts, point.policy]).encode()).hexdigest()[:16]
