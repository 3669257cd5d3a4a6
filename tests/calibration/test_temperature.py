"""Temperature scaling recovers a known temperature and never hurts; reliability diagrams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_logits, made_meta, made_records

from offramp.calibration import Records, fit_temperatures, reliability
from offramp.calibration.temperature import BOUNDS, fit_temperature, nll


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5, 6.0])
def test_recovers_a_known_temperature(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.03)


def test_is_the_minimum() -> None:
    logits, labels = made_logits(500, 1, 5, scale=3.0)
    fitted = fit_temperature(logits[:, 0], labels)
    best = nll(logits[:, 0], labels, fitted)
    grid = torch.logspace(-1, 1, 400).tolist()
    assert best <= min(nll(logits[:, 0], labels, t) for t in grid) + 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 50), count=st.integers(1, 50))
def test_never_worse_than_no_temperature(seed: int, scale: float, count: int) -> None:
    logits, labels = made_logits(count, 1, 4, seed, scale)
    fitted = fit_temperature(logits[:, 0], labels)
    assert BOUNDS[0] * 0.999 <= fitted <= BOUNDS[1] * 1.001
    assert nll(logits[:, 0], labels, fitted) <= nll(logits[:, 0], labels, 1.0)


def test_one_temperature_per_exit() -> None:
    logits, labels = made_logits(400, 3, 5)
    logits[:, 1] *= 4
    single = Records.from_logits(logits, labels, meta=made_meta(3))
    fitted = fit_temperatures(single)
    assert len(fitted) == 3
    assert fitted[1] == pytest.approx(fit_temperature(logits[:, 1], labels))


def test_reliability_bins_add_up_to_the_error() -> None:
    records = made_records(500, 3, 4)
    for k, diagram in enumerate(reliability(records)):
        assert sum(diagram.count) == 500
        assert len(diagram.edges) == 16
        gaps = [
            count / 500 * abs(confidence - accuracy)
            for count, confidence, accuracy in zip(
                diagram.count, diagram.confidence, diagram.accuracy, strict=True
            )
            if confidence is not None and accuracy is not None
        ]
        assert diagram.ece == pytest.approx(sum(gaps), abs=1e-5)
        assert diagram.exit_name == records.meta.exit_names[k]
        filled = [a for a, n in zip(diagram.accuracy, diagram.count, strict=True) if n]
        assert None not in filled


def test_temperatures_lower_the_error_of_overconfident_exits() -> None:
    logits, labels = made_logits(2000, 2, 4, scale=4.0)
    records = Records.from_logits(logits, labels, meta=made_meta(2))
    before = reliability(records)
    after = reliability(records, temperatures=fit_temperatures(records))
    assert all(b.ece < a.ece for a, b in zip(before, after, strict=True))
