"""Every family on the engines that run files: torch's answers and exits, at any batch size."""

import pytest
import torch

import offramp
from families import VARIANTS
from offramp.policies import Confidence

pytestmark = pytest.mark.slow


def halfway(scores: torch.Tensor) -> float:
    """In the widest gap between two scores, so that rounding decides nothing."""
    ordered = scores.sort().values
    widest = int(ordered.diff().argmax())
    return float(ordered[widest : widest + 2].mean())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_answers_and_exits_are_torchs(name: str, engine: str) -> None:
    variant = VARIANTS[name]
    where = {"image_size": variant.image_size}
    middle = offramp.create(variant.make(), exits="linear", **where).positions[:1]
    model = offramp.create(variant.make(), exits="linear", at=middle, **where).eval()
    for classifier in model.heads[0].classifiers.heads:
        classifier.weight.mul_(25)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5, model.chain.in_chans, *variant.image_size, generator=generator)
    threshold = halfway(model(x)[0].logits.softmax(-1).amax(-1))
    policy = Confidence([threshold, Confidence.never])
    expected = offramp.compile(model, policy=policy)(x)
    assert len(expected.exit.unique()) == 2
    runner = offramp.compile(model, policy=policy, engine=engine)
    scale = max(1.0, float(expected.logits.abs().max()))
    for size in (1, 2, 5):
        got = runner(x[:size])
        assert torch.equal(got.exit, expected.exit[:size])
        torch.testing.assert_close(got.logits, expected.logits[:size], rtol=1e-3, atol=1e-3 * scale)
