"""PABEE: the card's examples."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from offramp.policies import Patience


def exits_used(predictions: list[int], patience: int, counting: str = "agreements") -> int:
    policy = Patience(patience, counting)
    memory = policy.start(1)
    for k, prediction in enumerate(predictions):
        logits = one_hot(torch.tensor([prediction]), 6).float()
        stop, answer, memory = policy.step(k, SimpleNamespace(logits=logits), memory)
        assert answer is logits
        if stop.item():
            return k + 1
    return len(predictions)


@pytest.mark.parametrize(("patience", "used"), [(1, 2), (2, 5), (3, 6), (4, 12), (5, 12)])
def test_multi_exit_card_item_6(patience: int, used: int) -> None:
    assert exits_used([3, 3, 5, 5, 5, 5, 2, 5, 5, 5, 5, 5], patience) == used


@pytest.mark.parametrize(("patience", "layer"), [(1, 3), (2, 6), (3, 7), (6, 10)])
def test_palbert_card(patience: int, layer: int) -> None:
    assert exits_used([0, 1, 1] + [0] * 9, patience) == layer


def test_earliest_exit_and_full_depth() -> None:
    same = [4] * 12
    assert exits_used(same, 1) == 2
    assert exits_used(same, 11) == 12  # t > K - 1 runs everything; t = 11 agrees only at the end
    assert exits_used(same, 12) == 12


@pytest.mark.parametrize(("patience", "used"), [(1, 1), (2, 2), (3, 5), (4, 6), (5, 12)])
def test_counting_predictions_as_lgvit_does_is_one_exit_sooner(patience: int, used: int) -> None:
    predictions = [3, 3, 5, 5, 5, 5, 2, 5, 5, 5, 5, 5]
    assert exits_used(predictions, patience, "predictions") == used
    if patience > 1:
        assert exits_used(predictions, patience - 1, "agreements") == used


def test_memory_lives_on_the_device_asked_for() -> None:
    memory = Patience(2).start(3, device=torch.device("meta"))
    assert all(part.device.type == "meta" for part in memory)
