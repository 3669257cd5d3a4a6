"""JEI-DNN's gates as an option of every head: the card's statistics, and nothing else changes."""

import math

import pytest
import torch

from offramp.chains import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits import build_exit
from offramp.exits.certainty import CertaintyExit
from offramp.exits.gated import GatedExit, gates, statistics
from tiny import tiny_model

SPEC = TokenSpec(48, (4, 4), 1)


def tokens() -> Tokens:
    torch.manual_seed(0)
    return Tokens(torch.randn(3, 16, 48), (4, 4), torch.randn(3, 1, 48), 1)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([2.0, 1.0, 0.0], [0.66524, 0.83240, 0.42051, 0.44106]),
        ([0.0] * 10, [0.1, 2.30259, 0.0, 2.30259]),
        ([5.0, 0.0, 0.0, 0.0], [0.98019, 0.11908, 0.97358, 0.00150]),
    ],
)
def test_the_four_statistics_are_the_cards(logits: list[float], expected: list[float]) -> None:
    found = statistics(torch.tensor([logits]))[0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_statistics_do_not_depend_on_scale_offset_or_names_of_classes() -> None:
    z = 3 * torch.randn(20, 7)
    found = statistics(z)
    torch.testing.assert_close(statistics(z + 11.0), found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(statistics(z[:, torch.randperm(7)]), found, atol=1e-6, rtol=1e-5)
    p = z.softmax(-1)
    power = p.square() / p.square().sum(-1, keepdim=True)
    torch.testing.assert_close(found[:, 3], -(power * power.log()).sum(-1), atol=1e-5, rtol=1e-4)
    assert statistics(torch.tensor([[1000.0, 0.0]]))[0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found[:, 1].max() <= math.log(7) + 1e-6


@pytest.mark.parametrize("name", ["linear", "lph", "cnn_add_ee"])
def test_the_answer_is_the_heads_own(name: str) -> None:
    torch.manual_seed(0)
    plain = build_exit(name, SPEC, 5, {}).eval()
    gated = build_exit(name, SPEC, 5, {"gate": True}).eval()
    assert isinstance(gated, GatedExit)
    gated.head.load_state_dict(plain.state_dict())
    outputs, _ = gated(tokens())
    assert outputs._fields == ("logits", "gate")
    assert torch.equal(outputs.logits, plain(tokens())[0].logits)
    expected = statistics(outputs.logits) @ gated.gate.weight[0] + gated.gate.bias
    torch.testing.assert_close(outputs.gate, expected)
    extra = sum(p.numel() for p in gated.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 5 == sum(p.numel() for p in gates(gated))


def test_a_gates_gradient_stays_in_the_gate() -> None:
    gated = build_exit("linear", SPEC, 5, {"gate": True})
    gated(tokens())[0].gate.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates(gated))
    assert all(p.grad is None for p in gated.head.parameters())


def test_gates_and_certainty_go_together() -> None:
    both = build_exit("linear", SPEC, 5, {"gate": True, "lte": True}).eval()
    assert isinstance(both, CertaintyExit)
    assert both(tokens())[0]._fields == ("logits", "gate", "certainty")
    assert len(gates(both)) == 2
    fast = both.for_inference()
    for a, b in zip(both(tokens())[0], fast(tokens())[0], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_one_number_has_no_gate() -> None:
    with pytest.raises(OfframpError, match="needs at least two"):
        build_exit("linear", SPEC, 1, {"gate": True})


def test_the_layout_gates_every_early_exit() -> None:
    model = tiny_model("jei_dnn")
    said = model(torch.randn(2, 3, 32, 32))
    assert [hasattr(outputs, "gate") for outputs in said] == [True, True, True, False]
    assert sum(p.numel() for p in gates(model)) == 15
