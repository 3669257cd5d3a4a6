"""Several tasks on one backbone: the same answers, one trunk."""

import pytest
import torch

from offramp.creation import create
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.shared import SharedBackbone
from tiny import TINY, tiny_model


def another(first: MultiExitModel, num_classes: int = 3) -> MultiExitModel:
    """A model for other classes on the trunk of the first."""
    torch.manual_seed(1)
    model = create(
        "deit_tiny_patch16_224",
        exits="ztw",
        at=[2, 3],
        num_classes=num_classes,
        image_size=32,
        backbone_args=TINY,
    )
    trunk = {k: v for k, v in first.backbone.state_dict().items() if not k.startswith("head.")}
    model.backbone.load_state_dict(trunk, strict=False)
    return model.eval()


def test_every_task_answers_as_its_own_model(images: torch.Tensor) -> None:
    first = tiny_model("linear")
    second = another(first)
    expected = {"a": first(images), "b": second(images)}
    tasks = SharedBackbone({"a": first, "b": second})
    runs: list[int] = []
    first.backbone.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    said = tasks(images)
    assert len(runs) == 1
    for name, outputs in expected.items():
        assert len(said[name]) == len(outputs)
        for ours, alone, again in zip(said[name], outputs, tasks[name](images), strict=True):
            assert torch.equal(ours[0], alone[0])
            assert torch.equal(again[0], alone[0])


def test_the_trunk_is_held_once() -> None:
    first = tiny_model("linear")
    second = another(first)
    apart = sum(p.numel() for model in (first, second) for p in model.parameters())
    trunk = sum(p.numel() for p in first.backbone.blocks.parameters())
    tasks = SharedBackbone({"a": first, "b": second})
    together = sum(p.numel() for p in tasks.parameters())
    assert together < apart - trunk
    shared = second.backbone.blocks[2].attn.qkv.weight
    assert shared is first.backbone.blocks[2].attn.qkv.weight
    assert second.backbone.head.weight is not first.backbone.head.weight


def test_another_backbone_is_refused() -> None:
    first = tiny_model("linear")
    other = another(first)
    with torch.no_grad():
        other.backbone.blocks[1].attn.qkv.weight[0, 0] += 1e-6
    with pytest.raises(
        OfframpError, match=r"b and a do not share .*: blocks\.1\.attn\.qkv\.weight"
    ):
        SharedBackbone({"a": first, "b": other})
    with pytest.raises(OfframpError, match="they differ in kind, depth"):
        SharedBackbone({"a": first, "b": tiny_model("linear", depth=5)})
    with pytest.raises(OfframpError, match="at least one"):
        SharedBackbone({})
