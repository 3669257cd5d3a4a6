"""Bundles: what was exported is what ran, and nothing else is opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offramp.calibration import OperatingPoint, Records, calibrate, records_meta
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime import ENGINES, EngineOptions, compile_runner
from offramp.runtime.bundle import export_bundle, is_bundle, load_bundle
from offramp.runtime.engines.engine import CompiledSegment
from offramp.runtime.parts import build_parts
from offramp.runtime.verification import verify

ENGINE_NAMES = ("onnxruntime", "openvino")


def made_point(model: MultiExitModel, images: Tensor, policy: Confidence, engine: str) -> object:
    """A point of this model with the thresholds of ``policy``, as if calibrated on an engine."""
    with torch.inference_mode():
        logits = torch.stack([said.logits for said in model(images)], 1)
    meta = records_meta(
        model, dataset="noise", split="calibration", costs=model_costs(model), engine=engine
    )
    labels = logits[:, -1].argmax(-1)
    point = calibrate(Records.from_logits(logits, labels, meta=meta), max_drop=50.0)
    return point.model_copy(update={"policy": policy.to_config(), "active": (0, 1, 2)})


@pytest.fixture(scope="module", params=ENGINE_NAMES)
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model: MultiExitModel,
    images: Tensor,
    policy: Confidence,
) -> tuple[Path, OperatingPoint]:
    point = made_point(model, images, policy, request.param)
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    export_bundle(model, point, folder, images=images)
    return folder, point


def test_a_bundle_answers_like_the_model(
    exported: tuple[Path, OperatingPoint], model: MultiExitModel, images: Tensor
) -> None:
    folder, point = exported
    wanted, found = compile_runner(model, point)(images), load_bundle(folder)(images)
    assert torch.equal(wanted.exit, found.exit)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(wanted.cost, found.cost)
    assert torch.equal(wanted.blocks, found.blocks)


def test_the_manifest_tells_everything(
    exported: tuple[Path, OperatingPoint], model: MultiExitModel
) -> None:
    folder, point = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint"] == model.fingerprint()
    assert manifest["policy"] == point.policy
    assert [segment["blocks"] for segment in manifest["segments"]] == [
        [1, 1],
        [2, 2],
        [3, 3],
        [4, 4],
    ]
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert manifest["preprocessing"]["image_size"] == [32, 32]
    assert manifest["promised"]["full_accuracy"] == 100.0
    assert len(manifest["verified"]["segments"]) == 4
    assert (manifest["single"] == "single.onnx") == (point.engine == "onnxruntime")
    assert OperatingPoint.load(folder / "point.json").policy == point.policy


def test_changed_files_are_refused(exported: tuple[Path, OperatingPoint], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    file = next(folder.glob("segment-1.*"))
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(OfframpError, match=r"segment-1.*SHA-256.*changed or damaged"):
        load_bundle(folder)
    file.unlink()
    with pytest.raises(OfframpError, match=r"segment-1.*missing"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9, but this Offramp reads format 1"),
        ({"num_classes": "ten"}, "num_classes"),
        ({"extra": 1}, "extra"),
    ],
)
def test_other_manifests_are_refused(
    exported: tuple[Path, OperatingPoint], tmp_path: Path, change: dict, message: str
) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OfframpError, match=rf"manifest\.json.*{message}"):
        load_bundle(folder)


def test_no_bundle_no_runner(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(OfframpError, match="no such file"):
        load_bundle(tmp_path)


def test_wrong_images_are_refused(exported: tuple[Path, OperatingPoint]) -> None:
    with pytest.raises(OfframpError, match=r"expected an image tensor of shape \(B, 3, 32, 32\)"):
        load_bundle(exported[0])(torch.zeros(1, 3, 64, 64))


def test_existing_folders_are_kept(
    exported: tuple[Path, OperatingPoint], model: MultiExitModel, images: Tensor, tmp_path: Path
) -> None:
    folder, point = exported
    with pytest.raises(OfframpError, match="already exists: give overwrite"):
        export_bundle(model, point, folder, images=images)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OfframpError, match="already exists: choose another name"):
        export_bundle(model, point, tmp_path / "mine", images=images, overwrite=True)


def test_a_failed_export_leaves_nothing(
    model: MultiExitModel,
    images: Tensor,
    policy: Confidence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        raise OfframpError("differs")

    monkeypatch.setattr("offramp.runtime.bundle.verify", broken)
    point = made_point(model, images, policy, "openvino")
    with pytest.raises(OfframpError, match="differs"):
        export_bundle(model, point, tmp_path / "bundle", images=images)
    assert list(tmp_path.iterdir()) == []


def test_engines_without_files_are_refused(
    model: MultiExitModel, images: Tensor, policy: Confidence, tmp_path: Path
) -> None:
    point = made_point(model, images, policy, "torch")
    with pytest.raises(OfframpError, match=r"'torch', which has no files.*onnxruntime, openvino"):
        export_bundle(model, point, tmp_path / "bundle", images=images)


def test_verification_finds_a_wrong_segment(
    model: MultiExitModel, images: Tensor, policy: Confidence
) -> None:
    parts = build_parts(model, [0, 1, 2], policy)
    program = ENGINES.get("torch")(EngineOptions()).prepare(parts)
    assert len(verify(program, parts, images)["segments"]) == 4

    def with_second(change: object) -> object:
        segments = list(program.segments)
        layout, call = segments[1]

        def wrong(*flow: Tensor) -> tuple[Tensor, ...]:
            return tuple(
                change(name, t) for name, t in zip(layout.outputs, call(*flow), strict=True)
            )

        segments[1] = CompiledSegment(layout, wrong)
        return program._replace(segments=segments)

    shifted = with_second(lambda name, t: t + 0.1 if name == "answer" else t)
    with pytest.raises(OfframpError, match="ends in exit 1 differs from torch by"):
        verify(shifted, parts, images)
    flipped = with_second(lambda name, t: ~t if name == "stop" else t)
    with pytest.raises(OfframpError, match="ends in exit 1 decides differently"):
        verify(flipped, parts, images)
