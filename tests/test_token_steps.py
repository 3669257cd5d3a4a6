"""Which reducer is worth it, from times."""

import timm
import torch

import offramp
from families import VIT
from offramp.reducers import ReducerSpec
from offramp.token_steps import Timed, advise, auto_reducer, measure_reducers, token_count


def tome(r: int) -> ReducerSpec:
    return ReducerSpec(name="tome", options={"r": r})


def timings(*ratios: float) -> list[Timed]:
    untouched = Timed(None, 68, 10.0, 1.0)
    made = [Timed(tome(r), 68 - 10 * r, 10 * ratio, ratio) for r, ratio in enumerate(ratios, 1)]
    return [untouched, *made]


def test_the_gentlest_on_the_lowest_step_is_taken() -> None:
    said = advise(timings(0.95, 0.801, 0.80, 0.805))
    assert said.spec == tome(2)
    assert "20 tokens more" in said.reason


def test_it_turns_itself_off_where_nothing_is_won() -> None:
    for ratios in ((1.2, 1.1), (0.99, 0.98), ()):
        said = advise(timings(*ratios))
        assert said.spec is None
        assert said.ratio == 1
        assert said.reason.startswith("off")


def test_candidates_are_measured_beside_the_untouched_model() -> None:
    links = offramp.chain(timm.create_model("deit_tiny_patch16_224", num_classes=10, **VIT))
    images = torch.randn(2, 3, 32, 32)
    found = measure_reducers(links, [tome(2), tome(4)], images, rounds=2, warmup=1)
    assert [timing.spec for timing in found] == [None, tome(2), tome(4)]
    # four blocks on 17 tokens; the last of the strong one has room for two only
    assert [timing.tokens for timing in found] == [68, 48, 30]
    assert found[0].ratio == 1
    assert all(timing.ms > 0 for timing in found)
    assert token_count(links) == 68
    assert auto_reducer(links, [], images, rounds=1).spec is None
