"""Cascades as chains: they say what their members say, and cost what they cost."""

import pytest
import torch
from cascade_pairs import big, pictures, small, smaller, spread_policy, vit

import offramp
from offramp.chains import Tokens, TokenSpec
from offramp.costs import count_macs, model_costs
from offramp.errors import OfframpError
from offramp.exits import build_exit
from offramp.policies import Confidence
from offramp.runtime.prediction import join
from offramp.zoo.cascade import Cascade

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.mark.parametrize("average", [False, True])
@torch.no_grad()
def test_every_exit_says_what_its_member_says_alone(average: bool) -> None:
    one, two, x = small(), big(), pictures()
    model = offramp.cascade([one, two], average=average)
    assert model.exit_names == ["model 1 block 1", "model 1", "model 2 block 2", "final"]
    assert model.blocks == (1, 2, 4, 5)
    first, end, inner, last = (said.logits for said in model(x))
    assert torch.equal(first, one(smaller(x))[0].logits)
    assert torch.equal(end, one.backbone(smaller(x)))
    assert torch.equal(inner, two(x)[0].logits)
    mean = (one.backbone(smaller(x)) + two.backbone(x)) / 2
    assert torch.equal(last, mean if average else two.backbone(x))
    assert torch.equal(model.chain.whole(x), last)
    assert torch.equal(model.chain.baseline(x), two.backbone(x))


@pytest.mark.parametrize("average", [False, True])
@torch.no_grad()
def test_three_members_hand_on_what_the_later_ones_need(average: bool) -> None:
    models, x = [small(), vit(24, 2, 40, seed=2), big()], pictures()
    model = offramp.cascade(models, average=average)
    chain = model.chain
    assert chain.schema_after(-1).backbone == ("pixels", "x")
    assert chain.schema_after(1).backbone == chain.schema_after(3).backbone == ("pixels", "logits")
    assert chain.schema_after(2).backbone == ("pixels", *(["logits"] if average else []), "x")
    assert chain.schema_after(4).backbone == (*(["logits"] if average else []), "x")
    assert chain.schema_after(6).backbone == ("logits",)
    state = chain.embed(x)
    for i, step in enumerate(chain.steps):
        assert len(state) == chain.schema_after(i - 1).chain_width
        state = step(*state)
    views = (smaller(x, 32), smaller(x, 40), x)
    alone = [m.backbone(view) for m, view in zip(models, views, strict=True)]
    told = [model(x)[k].logits for k in (1, 2, 4)]
    for asked, logits in enumerate(told, start=1):
        expected = sum(alone[1:asked], alone[0]) / asked if average else alone[asked - 1]
        assert torch.equal(logits, expected)


@torch.inference_mode()
def test_stopping_always_is_the_small_model_and_never_the_big_one() -> None:
    one, two, x = small(), big(), pictures()
    model = offramp.cascade([one, two], exits=False)
    for threshold, alone, exit in ((0.0, one.backbone(smaller(x)), 0), (1.0, two.backbone(x), 1)):
        runner = offramp.compile(model, policy=Confidence([threshold, 0.0]))
        answer = runner(x)
        assert answer.exit.tolist() == [exit] * len(x)
        torch.testing.assert_close(answer.logits, alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(offramp.compile(model, active=())(x).logits, two.backbone(x))


@pytest.mark.parametrize("average", [False, True])
@torch.inference_mode()
def test_a_compacted_batch_equals_one_by_one(average: bool) -> None:
    model, x = offramp.cascade([small(), big()], average=average), pictures(16)
    runner = offramp.compile(model, policy=spread_policy(model, x))
    together, alone = runner(x), join([runner(image[None]) for image in x])
    assert len(together.exit.unique()) == 4
    assert torch.equal(together.exit, alone.exit)
    torch.testing.assert_close(together.logits, alone.logits, rtol=1e-4, atol=1e-5)
    streamed = join(list(runner.stream(x.split(3), batch_size=4)))
    assert torch.equal(streamed.exit, together.exit)


@torch.no_grad()
def test_members_get_their_own_mean_and_deviation() -> None:
    one, two = vit(mean=0.2, std=0.4), big()
    raw = pictures().clamp(0, 1)
    model = offramp.cascade([one, two])
    assert model.preprocessing == two.preprocessing
    assert two.preprocessing.mean == (0.5, 0.5, 0.5)
    said = model((raw - 0.5) / 0.25)
    expected = one.backbone((smaller(raw) - 0.2) / 0.4)
    torch.testing.assert_close(said[0].logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(said[-1].logits, two.backbone((raw - 0.5) / 0.25))


@torch.no_grad()
def test_the_largest_images_lead_wherever_they_are_looked_at() -> None:
    wide, last = vit(24, 2, 48, mean=0.1), vit(48, 3, 32, seed=1)
    model, x = offramp.cascade([wide, last]), pictures()
    assert model.preprocessing == wide.preprocessing
    assert model.chain.image_size == (48, 48)
    assert torch.equal(model(x)[0].logits, wide.backbone(x))
    adapted = smaller(x) + (0.1 - 0.5) / 0.25
    torch.testing.assert_close(model(x)[-1].logits, last.backbone(adapted), rtol=1e-4, atol=1e-5)


def test_macs_are_those_of_the_members_and_saved_against_the_last() -> None:
    one, two = small(), big()
    model = offramp.cascade([one, two])
    whole = [
        count_macs(m.backbone, torch.zeros(1, 3, *m.preprocessing.image_size)) for m in (one, two)
    ]
    costs = model_costs(model)
    assert costs.full == whole[1]
    assert costs.leave_cost(())[-1] == sum(whole)
    assert costs.leave_cost((1,))[1] == whole[0]
    own = model_costs(one, form="inference").leave_cost((0,))[0]
    assert costs.leave_cost((0,))[0] == own
    assert model.chain.full_blocks == 3


def test_the_member_head_needs_an_answer_and_forgets_the_carry() -> None:
    with pytest.raises(OfframpError, match="last block of a cascade's member"):
        build_exit("member", TokenSpec(24, (4, 4), 1), 10)
    head = build_exit("member", TokenSpec(10, None, 1, answers=True), 10)
    logits = torch.randn(2, 1, 10)
    said, carry = head(Tokens(logits, None, logits, 1), (torch.ones(2, 3),))
    assert torch.equal(said.logits, logits[:, 0])
    assert carry == ()
    assert not list(head.parameters())


def test_members_must_agree() -> None:
    one, two = small().backbone, vit(size=48).backbone
    with pytest.raises(OfframpError, match="needs two"):
        Cascade([one], [32])
    with pytest.raises(OfframpError, match="sizes for 1"):
        Cascade([one, two], [32])
    other = vit(size=48).backbone
    other.reset_classifier(7)
    with pytest.raises(OfframpError, match="num_classes is 10 in the first and 7 in model 2"):
        offramp.chain(Cascade([one, other], [32, 48]))
    inner = Cascade([one, two], [32, 48])
    with pytest.raises(OfframpError, match="model 2 is a cascade itself"):
        offramp.chain(Cascade([one, inner], [32, 48]))
    with pytest.raises(OfframpError, match=r"image_size = \(64, 64\).*other sizes of its members"):
        offramp.chain(inner, image_size=64)
