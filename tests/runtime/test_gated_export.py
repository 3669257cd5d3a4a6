"""Learned gates run inside the segments of every file engine, and decide there as in torch."""

import pytest
import torch

import offramp
from offramp.policies.jei_dnn import HALF, Gated
from tiny import tiny_model


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_gates_decide_the_same_on_engines(engine: str) -> None:
    pytest.importorskip(engine)
    model = tiny_model("jei_dnn")
    with torch.no_grad():
        for head in model.heads:
            head.head.classifiers.heads[0].weight.mul_(15)
            head.gate.weight.copy_(torch.tensor([[2.0, -0.5, 1.0, -0.5]]))
            head.gate.bias.fill_(-2.3)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    policy = Gated([0.4, HALF, 0.6, Gated.never])
    expected = offramp.compile(model, policy=policy)(images)
    found = offramp.compile(model, policy=policy, engine=engine)(images)
    assert torch.equal(found.exit, expected.exit)
    assert len(expected.exit.unique()) > 1
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-3)
