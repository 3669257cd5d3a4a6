"""The search for cascades: what brute force finds, on samples that were aligned first."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from offramp.calibration import Records, RecordsMeta
from offramp.cascades import Pool, as_document, best_plan, joined, search
from offramp.cascades.search import decide
from offramp.errors import OfframpError

CLASSES = 4


def records(
    quality: float, *, seed: int, count: int = 24, ids: torch.Tensor | None = None, **meta: object
) -> Records:
    """A model's final exit; better ``quality`` is more often right. Labels belong to the ids."""
    ids = torch.arange(count) if ids is None else ids
    labels = ids % CLASSES
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1000, CLASSES, generator=generator)[ids]
    logits = noise + quality * torch.nn.functional.one_hot(labels, CLASSES)
    about = {"dataset": "made", "split": "calibration", "fingerprint": f"{seed:016d}"} | meta
    described = RecordsMeta(
        exit_names=["final"], positions=[], blocks=2, standalone=[True], **about
    )
    return Records.from_logits(logits[:, None], labels, ids=ids, meta=described)


def pool(count: int = 24, *, logits: bool = True) -> Pool:
    found = [records(q, seed=i, count=count) for i, q in enumerate((0.5, 1.0, 1.6, 2.2))]
    return joined(found, ["a", "b", "c", "d"], [1.0, 2.5, 4.0, 9.0], unit="ms", logits=logits)


def brute_force(pool: Pool, *, average: bool, longest: int) -> list[tuple[float, int]]:
    """The front (cost, right answers) by trying every threshold between two scores, in loops."""
    found = []
    size = len(pool.names)
    for length in range(1, longest + 1):
        for members in combinations(range(size), length):
            for mean in {False, average and length > 1}:
                stages = [pool.stage(members[: s + 1], average=mean) for s in range(length)]
                cuts = []
                for score, _ in stages[:-1]:
                    values = np.unique(score).astype(float)
                    cuts.append([-1.0, *((values[1:] + values[:-1]) / 2), 2.0])
                for thresholds in product(*cuts):
                    cost, right = 0.0, 0
                    for n in range(pool.count):
                        for s, m in enumerate(members):
                            cost += pool.costs[m] / pool.count
                            if s == length - 1 or stages[s][0][n] > thresholds[s]:
                                right += int(stages[s][1][n])
                                break
                    found.append((round(cost, 9), right))
    front: list[tuple[float, int]] = []
    for cost, right in sorted(set(found), key=lambda point: (point[0], -point[1])):
        if not front or right > front[-1][1]:
            front.append((cost, right))
    return front


@pytest.mark.parametrize(("average", "longest"), [(False, 2), (True, 2), (False, 3), (True, 3)])
def test_the_front_is_what_brute_force_finds(average: bool, longest: int) -> None:
    given = pool(24 if longest == 2 else 12)
    plans = search(given, average=average, longest=longest)
    found = [(round(plan.cost, 9), round(plan.accuracy * given.count)) for plan in plans]
    assert found == brute_force(given, average=average, longest=longest)
    assert any(len(plan.members) == longest for plan in plans)


def test_plans_do_what_they_say() -> None:
    given = pool(300)
    plans = search(given, average=True)
    assert {len(plan.members) for plan in plans} >= {1, 2, 3}
    assert [plan.cost for plan in plans] == sorted(plan.cost for plan in plans)
    best = given.correct[given.best]
    for plan in plans:
        at, right = decide(given, plan)
        assert plan.accuracy == right.mean()
        paid = [given.costs[list(plan.members[: stage + 1])].sum() for stage in at]
        assert plan.cost == pytest.approx(np.mean(paid))
        assert plan.drop == pytest.approx(best.mean() - right.mean())
        assert sum(plan.share) == pytest.approx(1)


def test_a_coarse_grid_loses_little() -> None:
    given = pool(600)
    fine, coarse = search(given, grid=600), search(given, grid=32)

    def accuracy(plans: list, budget: float) -> float:
        return max(plan.accuracy for plan in plans if plan.cost <= budget)

    for budget in (2.0, 3.0, 5.0, 8.0):
        assert accuracy(coarse, budget) <= accuracy(fine, budget)
        assert accuracy(coarse, budget) >= accuracy(fine, budget) - 0.01


def test_the_cheapest_that_keeps_the_promise_is_chosen() -> None:
    given = pool(300)
    plans = search(given)
    for max_drop in (0.0, 0.5, 5.0):
        chosen = best_plan(plans, max_drop=max_drop)
        assert 100 * chosen.drop <= max_drop + 1e-9
        cheaper = [plan for plan in plans if plan.cost < chosen.cost]
        assert all(100 * plan.drop > max_drop for plan in cheaper)
    assert best_plan(plans, max_drop=0.0).cost <= given.costs[given.best]
    with pytest.raises(OfframpError, match="no plan loses at most"):
        best_plan([plan for plan in plans if plan.drop > 0.1], max_drop=0.5)
    document = as_document(given, plans, chosen)
    assert document["best"] == given.names[given.best]
    assert len(document["plans"]) == len(plans)
    assert document["chosen"]["saves"] == pytest.approx(
        given.costs[given.best] / document["chosen"]["cost"]
    )


def test_samples_are_aligned_by_their_ids() -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    one, two = records(0.5, seed=0), records(2.0, seed=1, ids=order)
    plain = joined([one, records(2.0, seed=1)], ["a", "b"], [1, 2], unit="ms")
    mixed = joined([one, two], ["a", "b"], [1, 2], unit="ms")
    assert np.array_equal(plain.correct, mixed.correct)
    assert np.array_equal(plain.confidence, mixed.confidence)
    turned = joined([two, one], ["b", "a"], [2, 1], unit="ms")
    assert turned.names == ("a", "b")
    assert np.array_equal(turned.correct, mixed.correct)


def test_what_cannot_be_compared_is_refused() -> None:
    one = records(0.5, seed=0)

    def join(other: Records, **options: bool) -> Pool:
        return joined([one, other], ["a", "b"], [1, 2], unit="ms", **options)

    shifted = records(1.0, seed=1, ids=torch.arange(1, 25))
    with pytest.raises(OfframpError, match=r"b was recorded on other samples.*23 in common"):
        join(shifted)
    with pytest.raises(OfframpError, match="b was recorded with split 'validation'"):
        join(records(1.0, seed=1, split="validation"))
    with pytest.raises(OfframpError, match="b was recorded with engine 'openvino'"):
        join(records(1.0, seed=1, engine="openvino"))
    other = records(1.0, seed=1)
    other.labels[0] += 1
    with pytest.raises(OfframpError, match="other labels"):
        join(other)
    with pytest.raises(OfframpError, match="pool of 1 models"):
        joined([one], ["a"], [1], unit="ms")
    with pytest.raises(OfframpError, match="averaging needs"):
        search(pool(logits=False), average=True)
    with pytest.raises(OfframpError, match="up to 4 models"):
        search(pool(), longest=4)


def test_models_that_are_always_equally_sure_make_no_cascade() -> None:
    given = pool(24)
    flat = Pool(
        given.names,
        given.costs,
        "ms",
        np.full_like(given.confidence, 0.5),
        given.correct,
        given.labels,
    )
    assert all(len(plan.members) == 1 for plan in search(flat))
