"""Heads that hand on a carry and give signals, on every engine that runs files."""

import pytest
import torch

from offramp.runtime.engines import ENGINES
from offramp.runtime.speaker import EngineSpeaker
from tiny import tiny_model

EXITS = [
    {"after": 1, "head": "ztw", "options": {"first": True, "lte": True}},
    {"after": 2, "head": "ztw"},
]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_head_may_hand_on_what_it_answers(engine: str) -> None:
    pytest.importorskip(engine)
    model, images = tiny_model(EXITS, depth=3), torch.randn(3, 3, 32, 32)
    said = EngineSpeaker(model, ENGINES.get(engine)())(images)
    with torch.no_grad():
        expected = model(images)
    assert [out._fields for out in said] == [out._fields for out in expected]
    for got, want in zip(said, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.reshape_as(b), b, atol=1e-5, rtol=1e-4)
