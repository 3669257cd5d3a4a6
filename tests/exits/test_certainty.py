"""Learning to exit as an option of every head."""

from pathlib import Path

import pytest
import torch

from offramp.chains import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits import build_exit
from offramp.exits.certainty import CertaintyExit
from offramp.policies import POLICIES
from tiny import tiny_model

SPEC = TokenSpec(48, (4, 4), 1)


def tokens(class_tokens: int = 1) -> Tokens:
    torch.manual_seed(0)
    return Tokens(torch.randn(3, 16, 48), (4, 4), torch.randn(3, class_tokens, 48), class_tokens)


@pytest.mark.parametrize("name", ["linear", "lph", "cnn_add_ee", "vit_ee"])
def test_the_answer_is_the_heads_own(name: str) -> None:
    torch.manual_seed(0)
    plain = build_exit(name, SPEC, 5, {}).eval()
    sure = build_exit(name, SPEC, 5, {"lte": True}).eval()
    assert isinstance(sure, CertaintyExit)
    sure.head.load_state_dict(plain.state_dict())
    outputs, _ = sure(tokens())
    assert outputs._fields == ("logits", "certainty")
    assert torch.equal(outputs.logits, plain(tokens())[0].logits)
    assert outputs.certainty.shape == (3,)
    assert ((outputs.certainty > 0) & (outputs.certainty < 1)).all()
    extra = sum(p.numel() for p in sure.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 2 * 48 + 48 + 1


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
def test_certainty_is_a_logistic_regression(class_tokens: int) -> None:
    spec, view = SPEC._replace(class_tokens=class_tokens), tokens(class_tokens)
    sure = build_exit("linear", spec, 5, {"lte": True})
    assert isinstance(sure, CertaintyExit)
    features = view.prefix.mean(1) if class_tokens else view.patches.mean(1)
    norm, linear = sure.judge
    expected = torch.sigmoid(linear(norm(features)))[:, 0]
    torch.testing.assert_close(sure(view)[0].certainty, expected)


def test_false_is_the_head_itself() -> None:
    assert not isinstance(build_exit("linear", SPEC, 5, {"lte": False}), CertaintyExit)


def test_a_dependent_head_stays_dependent() -> None:
    assert not build_exit("ztw", SPEC, 5, {"lte": True}).standalone
    assert build_exit("ztw", SPEC, 5, {"lte": True, "first": True}).standalone


def test_the_option_is_named_with_the_others() -> None:
    with pytest.raises(OfframpError, match=r"no option 'lt' \(it accepts: pool.*lte"):
        build_exit("linear", SPEC, 5, {"lt": True})


def test_the_learned_policy_stops_by_it() -> None:
    model = tiny_model("berxit")
    outputs = model(torch.randn(4, 3, 32, 32))
    policy = POLICIES.get("learned")([0.0, 0.0, 0.0, 0.0])
    memory = policy.start(4)
    stop, answer, _ = policy.step(0, outputs[0], memory)
    assert stop.all()
    assert torch.equal(answer, outputs[0].logits)
    assert not hasattr(outputs[-1], "certainty")


def test_a_model_survives_saving(tmp_path: Path) -> None:
    from offramp.model import load

    model, images = tiny_model("berxit"), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    again = load(tmp_path).eval()
    for one, other in zip(model(images), again(images), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
