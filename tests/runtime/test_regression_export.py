"""A regression model on the engines: values in the unit of the targets, with their decisions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import offramp
from offramp.errors import OfframpError
from offramp.policies import Settled
from offramp.runtime import Runner
from offramp.runtime.parts import build_parts
from regression_model import blobs, regression_model


def pictures() -> Tensor:
    from offramp.data import batches

    model = regression_model()
    stream = batches(blobs().split("test"), batch_size=24, preprocessing=model.preprocessing)
    return next(iter(stream)).images


def test_a_prediction_of_numbers_has_values_and_no_labels() -> None:
    runner = offramp.compile(regression_model(), policy=Settled(1, 0.5))
    said = runner(pictures())
    assert said.values.shape == (24,)
    assert torch.equal(said.values, said.logits[:, 0])
    for name in ("labels", "probs"):
        with pytest.raises(OfframpError, match="answers of a regression model: read values"):
            getattr(said, name)


def test_answers_leave_in_the_unit_of_the_targets() -> None:
    model, images = regression_model(mean=100.0, std=10.0), pictures()
    with torch.no_grad():
        raw = model(images)[-1].logits[:, 0]
    runner: Runner = offramp.compile(model, policy=Settled(1, 0.0))
    torch.testing.assert_close(runner(images).values, 10 * raw + 100, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(model.chain(images)[:, 0], raw)  # the backbone stays what it is


def test_a_segment_with_its_policy_exports() -> None:
    parts = build_parts(regression_model(), [0, 1, 2], Settled(1, 0.5))
    images = pictures()
    flow: tuple[Tensor, ...] = (images, *Settled(1, 0.5).start(len(images)))
    batch = torch.export.Dim("batch", min=2, max=64)
    for part in parts[:2]:
        shapes = (tuple({0: batch} for _ in part.example),)
        program = torch.export.export(part, part.example, dynamic_shapes=shapes).module()
        wanted, found = part(*flow), program(*flow)
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        flow = wanted[: len(part.layout.flow)]


def test_a_bundle_counts_without_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, data = (
        regression_model([{"after": k, "head": "linear"} for k in (1, 2)], depth=3),
        blobs(),
    )
    records = offramp.collect(model, data, progress=False)
    found = offramp.calibrate(records, policy="settled", max_drop=1.0)
    point = found.model_copy(update={"engine": "onnxruntime"})  # saves three exports
    manifest = offramp.export_bundle(model, point, tmp_path / "bundle", images=pictures())
    assert manifest.task == "regression"
    assert manifest.classes == ["blobs"]
    live = offramp.compile(model, found)(pictures())
    bundled = offramp.load_bundle(tmp_path / "bundle")(pictures())
    assert torch.equal(bundled.exit, live.exit)
    torch.testing.assert_close(bundled.values, live.values, rtol=1e-4, atol=1e-3)
