"""The examples of CONTRIBUTING.md do what it says of them."""

import re
from pathlib import Path

import pytest
import torch

from offramp import exits, policies
from offramp.calibration import Records, calibrate, records_meta
from offramp.costs.macs import model_costs
from tiny import tiny_model

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def run_block(heading: str) -> None:
    """Execute the Python of a section, with the names a file of that package would import."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    exec(block, {"nn": torch.nn, **vars(exits), **vars(policies)})


@pytest.fixture(autouse=True)
def _registries_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (exits.EXITS, policies.POLICIES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_the_exit_builds_and_answers_in_a_model(images: torch.Tensor) -> None:
    run_block("An exit")
    model = tiny_model("mean")
    said = model(images)
    assert [answer.logits.shape for answer in said] == [(5, 10)] * 4
    assert exits.EXITS.describe("mean") == "A linear classifier on the mean patch."


def test_the_policy_is_searched_at_once() -> None:
    run_block("A policy")
    model = tiny_model("linear")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (400,), generator=generator)
    right = torch.nn.functional.one_hot(labels, 10).float()[:, None]  # (400, 1, 10)
    sure = torch.tensor([1.0, 2.0, 3.0, 8.0])[:, None]  # deeper exits are right more often
    logits = sure * right + torch.randn(400, 4, 10, generator=generator)
    meta = records_meta(model, dataset="noise", split="calibration", costs=model_costs(model))
    records = Records.from_logits(logits, labels, meta=meta)
    point = calibrate(records, policy="gini", max_drop=5.0)
    assert point.policy["name"] == "gini"
    assert any(0 < threshold < 1 for threshold in point.policy["thresholds"])
    assert point.speedup_macs > 1
    score = policies.policy_from_config(point.policy).read(0, exits.Outputs(logits[:, 0]))
    assert torch.equal(score, logits[:, 0].softmax(-1).square().sum(-1))
