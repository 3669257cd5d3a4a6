"""Drift watch: rarely wrong about data like the reference's, soon right about other data."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from streams import made_records, stream

from offramp.calibration import OperatingPoint, Records, calibrate, records_meta, replay
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.monitor import Watch
from offramp.monitor.comparison import combined, exits_p_value, readings_p_value
from offramp.monitor.reference import Reference, Sight, sight_of
from offramp.policies import Confidence
from offramp.runtime import compile_runner
from tiny import tiny_model

STREAMS = 150


@pytest.fixture(scope="module")
def watch(point: OperatingPoint) -> Watch:
    return Watch(point, made_records(), window=128)


def cut_at_random(sight: Sight, seed: int) -> Sight:
    """A deadline ends every sample at an exit that has nothing to do with it."""
    limit = np.random.default_rng(seed).integers(0, 4, len(sight))
    return Sight(np.minimum(sight.exits, limit), sight.readings, sight.exits > limit)


class TestFalseAlarms:
    def test_all_looks_together_raise_no_more_than_alpha(self, point: OperatingPoint) -> None:
        alpha, alarms = 0.3, 0
        for seed in range(STREAMS):
            watch = Watch(point, made_records(300, seed=seed), window=64, alpha=alpha)
            alarms += watch.add(stream(point, 64 * 5, seed=seed)).drift
        most = stats.binom.ppf(0.999, STREAMS, alpha)
        assert alarms <= most

    def test_p_values_are_no_smaller_than_chance(self, point: OperatingPoint) -> None:
        found = []
        for seed in range(STREAMS):
            reference = Reference(point, made_records(300, seed=seed))
            live = stream(point, 128, seed=seed)
            found.append([exits_p_value(reference, live), readings_p_value(reference, live)])
        for column in np.array(found).T:
            for level in (0.05, 0.2, 0.5):
                assert (column <= level).sum() <= stats.binom.ppf(0.999, STREAMS, level)
            assert column.mean() > 0.2

    def test_looks_spend_alpha_and_no_more(self) -> None:
        spent = sum(1 / (i * (i + 1)) for i in range(1, 10_000))
        assert spent == pytest.approx(1 - 1e-4)


class TestDetection:
    def test_noisier_samples_are_found_soon(self, point: OperatingPoint) -> None:
        for seed in range(5):
            watch = Watch(point, made_records(seed=seed), window=128)
            verdict = watch.add(stream(point, 512, seed=seed, noise=1.5))
            assert verdict.drift
            assert verdict.since is not None
            assert verdict.since <= 512
            assert "DRIFT found at sample" in verdict.sentence
            assert point.promise.statement in verdict.sentence

    def test_a_late_change_too_and_the_alarm_stays(self, point: OperatingPoint) -> None:
        watch = Watch(point, made_records(1500), window=128)
        assert not watch.add(stream(point, 1280, seed=3)).drift
        verdict = watch.add(stream(point, 640, seed=4, noise=1.6))
        assert verdict.since is not None
        assert 1280 < verdict.since <= 1920
        assert watch.add(stream(point, 1280, seed=5)).drift
        watch.reset()
        assert not watch.verdict.drift
        assert watch.verdict.samples == 0

    def test_confidences_alone_give_it_away(self, point: OperatingPoint) -> None:
        watch = Watch(point, made_records(), window=256)
        same = stream(point, 512, seed=1)
        verdict = watch.add(replace(same, readings=same.readings**3))
        assert verdict.drift
        assert {t.what for t in verdict.tests if t.p <= verdict.alpha} == {"confidences"}

    def test_the_verdict_tells_what_it_costs(self, watch: Watch, point: OperatingPoint) -> None:
        watch.reset()
        verdict = watch.add(stream(point, 512, seed=1, noise=1.6))
        assert verdict.exit_share is not None
        assert sum(verdict.exit_share) == pytest.approx(1)
        assert verdict.cost_share is not None
        assert verdict.cost_share > verdict.expected_cost_share
        assert verdict.confidence is not None
        assert verdict.confidence < verdict.expected_confidence
        decisions = replay(point.policy_object(), made_records(), point.active)
        assert verdict.expected_share == pytest.approx(decisions.exit_share)


class TestDeadlines:
    def test_who_is_cut_for_other_reasons_raises_no_alarm(self, point: OperatingPoint) -> None:
        watch = Watch(point, made_records(1500), window=256)
        sight = cut_at_random(stream(point, 2048, seed=7), seed=7)
        assert sight.cut.any()
        assert not watch.add(sight).drift
        naive = Sight(sight.exits, sight.readings, np.zeros_like(sight.cut))
        assert exits_p_value(watch.reference, naive) < 1e-6  # as if the policy had let them go

    def test_drift_behind_a_deadline_is_found(self, point: OperatingPoint) -> None:
        watch = Watch(point, made_records(1500), window=256)
        assert watch.add(cut_at_random(stream(point, 2048, seed=8, noise=1.7), seed=8)).drift

    def test_nothing_but_cut_samples_says_nothing(self, watch: Watch) -> None:
        cut = Sight(np.zeros(300, np.int64), np.full(300, 0.5), np.ones(300, bool))
        active = min(watch.reference.leaves)
        sight = replace(cut, exits=cut.exits + active)
        assert readings_p_value(watch.reference, sight) == 1.0


class TestExact:
    def test_one_exit_is_fishers_exact_test(self, point: OperatingPoint) -> None:
        first = Reference(point, made_records())
        k, last = first.leaves[0], first.leaves[-1]
        known = first.sight
        left = int((known.exits == k).sum())
        live = Sight(np.array([k] * 9 + [last] * 21), np.full(30, 0.9), np.zeros(30, bool))
        table = [[9, 21], [left, len(known) - left]]
        one_sided = [stats.fisher_exact(table, side).pvalue for side in ("less", "greater")]
        p = min(1.0, 2 * min(one_sided))
        others = []
        for j in first.leaves[1:-1]:  # of 21 who came there, nobody left
            came, gone = int((known.exits >= j).sum()), int((known.exits == j).sum())
            table = [[0, 21], [gone, came - gone]]
            sides = [stats.fisher_exact(table, side).pvalue for side in ("less", "greater")]
            others.append(min(1.0, 2 * min(sides)))
        assert exits_p_value(first, live) == pytest.approx(combined([p, *others]))

    def test_no_test_gives_one(self) -> None:
        assert combined([]) == 1.0
        assert combined([0.0]) < 1e-200


class TestState:
    def test_pieces_and_interruptions_change_nothing(
        self, point: OperatingPoint, tmp_path: Path
    ) -> None:
        whole = Watch(point, made_records(), window=64)
        live = stream(point, 500, seed=2, noise=1.2)
        wanted = whole.add(live)
        path, at = tmp_path / "state.json", 0
        for size in (1, 62, 3, 200, 0, 234):
            watch = Watch(point, made_records(), window=64)
            if path.is_file():
                watch.resume(path)
            rows = slice(at, at + size)
            found = watch.add(Sight(live.exits[rows], live.readings[rows], live.cut[rows]))
            watch.save(path)
            at += size
        assert found == wanted
        assert watch.state == whole.state

    def test_a_save_that_is_killed_leaves_the_old_state(
        self, point: OperatingPoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "state.json"
        watch = Watch(point, made_records())
        watch.add(stream(point, 10, seed=0))
        watch.save(path)
        before = path.read_bytes()
        watch.add(stream(point, 10, seed=1))

        def killed(*arguments: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                watch.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
        assert Watch(point, made_records()).resume(path).verdict.samples == 10

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "not valid JSON"),
            ("{}", "state.json: point: Field required"),
            ('{"format": 2}', "state.json: format"),
        ],
    )
    def test_what_is_no_state(self, watch: Watch, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "state.json"
        path.write_text(text)
        with pytest.raises(OfframpError, match=said):
            watch.resume(path)

    def test_a_state_of_another_watch(self, point: OperatingPoint, tmp_path: Path) -> None:
        path = tmp_path / "state.json"
        Watch(point, made_records()).save(path)
        other = calibrate(made_records(seed=5), max_cost=0.9)
        for watch, key in (
            (Watch(other, made_records()), "point"),
            (Watch(point, made_records(seed=1)), "reference"),
            (Watch(point, made_records(), window=64), "window"),
            (Watch(point, made_records(), alpha=0.05), "alpha"),
        ):
            with pytest.raises(OfframpError, match=rf"a watch with {key} .*delete it to begin"):
                watch.resume(path)


class TestBadInput:
    def test_settings(self, point: OperatingPoint) -> None:
        with pytest.raises(OfframpError, match="window = 5"):
            Watch(point, made_records(), window=5)
        with pytest.raises(OfframpError, match="alpha = 0"):
            Watch(point, made_records(), alpha=0)

    def test_records_of_another_model(self, point: OperatingPoint) -> None:
        other = made_records()
        other.meta = other.meta.model_copy(update={"fingerprint": "0" * 16})
        with pytest.raises(OfframpError, match="belongs to model"):
            Watch(point, other)

    @pytest.mark.parametrize(
        ("exit_index", "confidence", "said"),
        [(9, 0.5, "left at exit 9"), (3, 1.5, "between 0 and 1"), (3, np.nan, "a confidence of")],
    )
    def test_nothing_is_taken_in(
        self, watch: Watch, exit_index: int, confidence: float, said: str
    ) -> None:
        watch.reset()
        sight = Sight(np.array([3, exit_index]), np.array([0.5, confidence]), np.zeros(2, bool))
        with pytest.raises(OfframpError, match=said):
            watch.add(sight)
        assert watch.verdict.samples == 0


def test_a_runner_shows_what_its_records_predict() -> None:
    model = tiny_model("linear")
    images = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        logits = torch.stack([said.logits for said in model(images)], dim=1)
    meta = records_meta(model, dataset="noise", split="calibration", costs=model_costs(model))
    records = Records.from_logits(logits, logits[:, -1].argmax(-1), meta=meta)
    scaled = torch.tensor([2.0, 1.0, 1.0, 0.5])[:, None]
    sure = (logits / scaled).softmax(-1).amax(-1).sort(dim=0).values
    halves = (sure[len(images) // 2 - 1] + sure[len(images) // 2]) / 2
    policy = Confidence(halves.tolist(), scaled[:, 0].tolist())
    changes = {"policy": policy.to_config(), "active": (0, 1, 2)}
    point = calibrate(records, max_cost=0.9).model_copy(update=changes)
    watch = Watch(point, records, window=32)
    prediction = compile_runner(model, point)(images)
    seen, expected = sight_of(prediction), watch.reference.sight
    assert np.array_equal(seen.exits, expected.exits)
    assert len(set(seen.exits.tolist())) == 4
    np.testing.assert_allclose(seen.readings, expected.readings, atol=1e-4)
    assert watch.update(prediction).samples == 48
    assert not watch.verdict.drift
