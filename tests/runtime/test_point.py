"""From calibration to a runner: the point brings policy, exits and costs, and is checked."""

import warnings

import pytest
import torch
from torch import Tensor

from offramp.calibration import OperatingPoint, Records, calibrate, records_meta, replay
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.compiling import compile_runner


@pytest.fixture(scope="module")
def records(model: MultiExitModel, images: Tensor) -> Records:
    with torch.inference_mode():
        logits = torch.stack([said.logits for said in model(images)], dim=1)
    costs = model_costs(model)
    meta = records_meta(model, dataset="noise", split="calibration", costs=costs)
    labels = logits[:, -1].argmax(-1)
    return Records.from_logits(logits, labels, ids=torch.arange(40), signals={}, meta=meta)


@pytest.fixture(scope="module")
def point(records: Records) -> OperatingPoint:
    return calibrate(records, max_cost=0.9)


def test_a_runner_does_what_the_point_promises(
    model: MultiExitModel, point: OperatingPoint, records: Records, images: Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner = compile_runner(model, point)
    assert runner.active == tuple(sorted(point.active))
    said = runner(images)
    replayed = replay(point.policy_object(), records, active=point.active)
    assert torch.equal(said.exit, replayed.exit)
    share = said.exit.bincount(minlength=4) / len(images)
    assert share.tolist() == pytest.approx(point.exit_share)
    assert said.cost is not None
    assert model_costs(model).full / said.cost.mean().item() == pytest.approx(point.speedup_macs)


def test_points_of_another_model_engine_or_precision_are_refused(
    model: MultiExitModel, point: OperatingPoint
) -> None:
    for change, wanted, message in (
        ({"fingerprint": "0" * 16}, {}, "belongs to model 0000"),
        ({"engine": "openvino"}, {"engine": "torch"}, "calibrated on engine 'openvino'"),
        ({"precision": "bfloat16"}, {"precision": "fp32"}, "calibrated at precision bfloat16"),
    ):
        with pytest.raises(OfframpError, match=message):
            compile_runner(model, point.model_copy(update=change), **wanted)


def test_another_library_version_warns(model: MultiExitModel, point: OperatingPoint) -> None:
    older = point.model_copy(update={"versions": {"torch": "1.0"}})
    with pytest.warns(UserWarning, match="torch is .* calibrated with 1.0"):
        compile_runner(model, older)


def test_a_point_and_a_policy_at_once_are_refused(
    model: MultiExitModel, point: OperatingPoint
) -> None:
    with pytest.raises(OfframpError, match="not both"):
        compile_runner(model, point, policy=Confidence.shared(0.5, 4))
