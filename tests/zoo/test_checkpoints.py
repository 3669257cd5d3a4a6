"""Weights of other projects: unpacked, and refused with names when they do not fit."""

import re

import pytest
import torch
from torch import nn

from offramp.errors import OfframpError
from offramp.zoo.checkpoints import strict, unwrap


class Net(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, self.num_classes)


def weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(Net().state_dict()) | more


def test_unwrap_finds_the_weights() -> None:
    plain = weights()
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in plain.items()}
    for checkpoint in (plain, wrapped, {"model": wrapped, "epoch": 3}, {"net": plain, "arch": "x"}):
        found = unwrap(checkpoint)
        assert found.keys() == plain.keys()
        assert all(found[name] is plain[name] for name in plain)


def test_averaged_weights_come_first() -> None:
    plain, averaged = weights(), weights()
    found = unwrap({"state_dict": plain, "state_dict_ema": averaged})
    assert found["head.bias"] is averaged["head.bias"]


def test_what_holds_no_weights_is_refused() -> None:
    with pytest.raises(
        OfframpError, match=r"epoch is no tensor but int: .*looked for state_dict_em"
    ):
        unwrap({"epoch": 3})
    with pytest.raises(OfframpError, match="no weights by name in this checkpoint, but list"):
        unwrap({"model": [1, 2]})


def test_strict_names_everything_that_is_wrong() -> None:
    state = weights(extra=torch.zeros(1))
    del state["body.bias"]
    state["head.weight"] = torch.zeros(9, 5)
    sentence = (
        "these weights do not fit Net: missing: body.bias; unexpected: extra; "
        "wrong shape: head.weight (9, 5) instead of (3, 5)"
    )
    with pytest.raises(OfframpError, match=f"^{re.escape(sentence)}$"):
        strict(state, Net())
    with pytest.raises(OfframpError, match=r"unexpected: n0, n1, n2, n3 and 2 more$"):
        strict(weights(**{f"n{i}": torch.zeros(1) for i in range(6)}), Net())


def test_only_a_classifier_for_other_classes_may_differ() -> None:
    other = weights() | {"head.weight": torch.zeros(9, 5), "head.bias": torch.zeros(9)}
    net = Net()
    net.pretrained_cfg = {"classifier": "head", "num_classes": 9, "architecture": "net_9"}
    assert strict(other, net).keys() == other.keys()
    net.pretrained_cfg["num_classes"] = 3
    with pytest.raises(OfframpError, match=r"do not fit net_9: wrong shape: head\.weight"):
        strict(other, net)
