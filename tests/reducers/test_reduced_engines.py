"""Reduced chains compile: every engine says what torch says."""

import pytest
import torch
from reduced_models import CASES, noise, reduced_model

from offramp.runtime.engines import ENGINES, EngineOptions
from offramp.runtime.speaker import EngineSpeaker

EXIT = {"after": 2, "head": "linear"}
QUICK = ("tome", "evo_vit fast")  # their states hold every kind of tensor; the others run whole
FULL = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in CASES
]


def agree(name: str, engine: str, exits: list[dict[str, object]]) -> None:
    model, images = reduced_model(CASES[name], exits, depth=3), noise(5)
    speaker = EngineSpeaker(model, ENGINES.get(engine)(EngineOptions(precision="float32")))
    with torch.inference_mode():
        wanted = model(images)
        for size in (1, 5):
            for found, said in zip(speaker(images[:size]), wanted, strict=True):
                torch.testing.assert_close(found[0], said[0][:size], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", FULL)
def test_engines_agree_with_torch_across_segments(name: str, engine: str) -> None:
    agree(name, engine, [EXIT])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["evit", "dynamicvit", "diffrate"])
def test_engines_agree_with_torch(name: str, engine: str) -> None:
    agree(name, engine, [])
