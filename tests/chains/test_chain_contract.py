"""The contract every backbone family keeps, on one small member or more of each.

Static == dynamic, segments joined == whole model, compacted == one by one, traced == eager: a
family that adds itself to ``families.VARIANTS`` is held to all of it.
"""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import offramp
from families import VARIANTS
from offramp.chains import Chain, State
from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.exits.lgvit import TokenBatchNorm
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.prediction import join
from offramp.training import StageSettings

pytestmark = pytest.mark.parametrize("name", VARIANTS)
CLASSES = 10


@cache
def shared(name: str) -> Chain:
    """The variant's chain, for tests that leave it as it is."""
    return offramp.chain(VARIANTS[name].make(), **size(name))


@cache
def images(name: str, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    chain = shared(name)
    return torch.randn(batch, chain.in_chans, *chain.image_size, generator=generator)


@cache
def states(name: str) -> list[State]:
    """The state after the embedding and after every step."""
    chain = shared(name)
    with torch.no_grad():
        found = [chain.embed(images(name))]
        for step in chain.steps:
            found.append(step(*found[-1]))
    return found


@cache
def positions(name: str) -> tuple[int, ...]:
    """Where exits stand when nobody says."""
    return offramp.create(shared(name).backbone, exits="linear", **size(name)).positions


def size(name: str) -> dict[str, tuple[int, int]]:
    return {"image_size": VARIANTS[name].image_size}


def multi_exit(name: str, *heads: str) -> MultiExitModel:
    """A fresh variant with heads in turn at its default positions; sure and unsure answers."""
    backbone = VARIANTS[name].make()
    exits = [
        {"after": after, "head": heads[i % len(heads)]} for i, after in enumerate(positions(name))
    ]
    model = offramp.create(backbone, exits=exits, **size(name))
    with torch.no_grad():
        for module in model.exits.modules():
            if isinstance(module, TokenBatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        for head in model.exits:
            for classifier in head.classifiers.heads:
                classifier.weight.mul_(25)
    return model.eval()


def same(name: str, got: Tensor, expected: Tensor) -> None:
    """Bit for bit, or within the variant's own tolerance."""
    if VARIANTS[name].tolerance == 0:
        assert torch.equal(got, expected)
    else:
        tolerance = VARIANTS[name].tolerance
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def close(got: Tensor, expected: Tensor) -> None:
    """Up to rounding: other batch sizes run other kernels."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * scale)


@torch.no_grad()
def test_chain_equals_the_backbone(name: str) -> None:
    chain, x = shared(name), images(name)
    expected = chain.whole(x)
    assert expected.shape == (len(x), CLASSES)
    assert expected.std(dim=0).min() > 1e-2, "images that are answered alike would prove nothing"
    same(name, chain(x), expected)
    same(name, chain.finish(*states(name)[-1]), expected)


def test_chain_describes_itself(name: str) -> None:
    chain = shared(name)
    assert chain.image_size == VARIANTS[name].image_size
    assert chain.in_chans == 3
    assert chain.num_classes == CLASSES
    assert len(chain) == len(chain.steps) >= 2
    assert chain.schema.chain_width == len(chain.schema.backbone) == len(states(name)[0])
    assert chain.classifier_heads in (1, 2)
    assert chain.token_spec(len(chain) - 1).width % chain.attention_heads == 0
    own = {id(p) for p in chain.backbone.parameters()}
    assert {id(p) for p in chain.parameters()} == own
    assert all(id(p) in own for step in chain.steps for p in step.parameters())
    assert all(key.startswith("backbone.") for key in chain.state_dict())


def test_tokens_look_as_announced(name: str) -> None:
    chain, batch = shared(name), len(images(name))
    assert all(len(tensor) == batch for state in states(name) for tensor in state)
    for i, state in enumerate(states(name)[1:]):
        tokens, spec = chain.tokens(state, i), chain.token_spec(i)
        assert tokens.grid == spec.grid
        assert tokens.patches.ndim == 3
        assert tokens.patches.shape[::2] == (batch, spec.width)
        if spec.grid is not None:
            assert all(isinstance(side, int) for side in spec.grid)
            assert tokens.patches.shape[1] == spec.patches == spec.grid[0] * spec.grid[1]
        assert tokens.prefix.shape[::2] == (batch, spec.width)
        assert tokens.classes.shape == (batch, spec.class_tokens, spec.width)


def test_patches_stand_in_raster_order(name: str) -> None:
    """The patch at the top right depends on that corner more than on the opposite one."""
    chain, x = shared(name), images(name).clone().requires_grad_()
    tokens = chain.tokens(chain.steps[0](*chain.embed(x)), 0)
    if tokens.grid is None:
        pytest.skip("these tokens have no grid")
    rows, columns = tokens.grid
    assert min(rows, columns) >= 2
    patch = tokens.patches.unflatten(1, tokens.grid)[:, 0, -1]  # (B, C)
    mixed = patch @ torch.randn(patch.shape[1], generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(mixed.sum(), x)
    energy = gradient.square().sum(1)  # (B, H, W)
    height, width = x.shape[2] // rows, x.shape[3] // columns
    assert energy[:, :height, -width:].sum() > energy[:, -height:, :width].sum()


@torch.no_grad()
def test_samples_may_leave_and_change_places_between_steps(name: str) -> None:
    chain, x = shared(name), images(name)
    rows = torch.arange(len(x))
    state = states(name)[0]
    for i, step in enumerate(chain.steps):
        index = torch.arange(len(rows)).roll(1)
        if i in (1, len(chain) - 1):
            index = index[1:]  # somebody stops
        state, rows = tuple(tensor.index_select(0, index) for tensor in state), rows[index]
        state = step(*state)
    assert len(rows) == len(x) - len({1, len(chain) - 1})
    close(chain.finish(*state), chain.whole(x)[rows])


@pytest.mark.parametrize("head", ["linear", "mlp", "lph", "gah"])
@torch.no_grad()
def test_segments_joined_equal_the_whole(name: str, head: str) -> None:
    if any(shared(name).token_spec(p - 1).grid is None for p in positions(name)):
        head = {"lph": "linear", "gah": "mlp"}.get(head, head)
    model, x = multi_exit(name, head), images(name)
    said = model(x)
    assert len(said) == len(positions(name)) + 1
    same(name, said[-1].logits, model.chain.whole(x))
    state = model.chain.embed(x)
    for i, step in enumerate(model.chain.steps):
        state = step(*state)
        if i + 1 in model.positions:
            k = model.positions.index(i + 1)
            expected, _ = model.heads[k](model.chain.tokens(state, i))
            assert torch.equal(said[k].logits, expected.logits)
    flow: State = (x,)
    for segment in model.segments([0], inference=True):
        flow, fast = segment(*flow)
        close(fast.logits, said[segment.exit_index].logits)
    assert torch.equal(fast.logits, said[-1].logits)


@torch.inference_mode()
def test_a_compacted_batch_equals_one_by_one(name: str) -> None:
    model, x = multi_exit(name, "linear", "mlp"), images(name, 10)
    thresholds, alive = [], torch.ones(len(x), dtype=torch.bool)
    for said in model(x)[:-1]:  # some leave, where the gap between two scores is widest
        score = said.logits.softmax(-1).amax(-1)
        ordered = score[alive].sort(descending=True).values
        gaps = -ordered.diff()[: max(1, len(ordered) // 3)]
        last = int(gaps.argmax()) if len(gaps) else None
        middle = Confidence.never if last is None else float(ordered[last : last + 2].mean())
        thresholds.append(middle)
        alive &= score <= middle
    policy = Confidence([*thresholds, 0.0])
    for active in (None, [0]):
        runner = offramp.compile(model, policy=policy, active=active)
        together, alone = runner(x), join([runner(image[None]) for image in x])
        assert torch.equal(together.exit, alone.exit)
        assert len(together.exit.unique()) >= 2
        close(together.logits, alone.logits)
    static = offramp.compile(model, active=())(x)
    same(name, static.logits, model.chain.whole(x))


@torch.no_grad()
def test_another_image_size_is_understood_or_refused(name: str) -> None:
    """In a sentence that names the size, if the model was built for one."""
    backbone = VARIANTS[name].make()
    height, width = VARIANTS[name].image_size
    other = (2 * height, 2 * width)
    try:
        chain = offramp.chain(backbone, image_size=other)
    except OfframpError as error:
        refusal = str(error)
    else:
        x = torch.randn(1, 3, *other, generator=torch.Generator().manual_seed(0))
        assert chain.image_size == other
        same(name, chain(x), chain.whole(x))
        return
    assert str(other) in refusal
    assert str((height, width)) in refusal


@pytest.mark.parametrize(
    ("recipe", "stage", "trains"),
    [
        ("frozen", "heads", "exits"),
        ("lgvit", "end_to_end", "backbone"),  # its first step trains the final classifier alone
        ("lgvit", "self_distillation", "exits"),
    ],
)
def test_one_training_step_changes_what_it_may(
    name: str, recipe: str, stage: str, trains: str
) -> None:
    if any(shared(name).token_spec(p - 1).grid is None for p in positions(name)):
        pytest.skip("LGViT's heads need a grid")
    model = offramp.create(VARIANTS[name].make(), exits="lgvit", at=positions(name), **size(name))
    before = copy.deepcopy(model.state_dict())
    fixed = {k for k, p in model.named_parameters() if not p.requires_grad}
    options = {s: StageSettings(epochs=0) for s in ("end_to_end", "self_distillation")}
    options = (options if recipe == "lgvit" else {}) | {
        stage: StageSettings(epochs=1, batch_size=8, lr=1e-3, sched="constant")
    }
    data = open_dataset("digits", limit=8)
    fit(model, recipe=recipe, data=data, progress=False, device="cpu", **options)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    part = "exits." if trains == "exits" else "chain.backbone."
    assert moved
    assert not moved & fixed
    assert fixed == {k for k, p in model.named_parameters() if not p.requires_grad}
    assert all(key.startswith(part) for key in moved)
    weights = {f"{part}{k}" for k, _ in getattr(model, trains).named_parameters()}
    assert len(moved & weights) > len(weights) / 2


def test_a_chain_can_be_copied_after_use(name: str) -> None:
    chain = copy.deepcopy(shared(name))
    x = images(name)
    chain(x).sum().backward()
    twin = copy.deepcopy(chain)
    chain(x).sum().backward()  # nothing of the first graph is left over
    with torch.no_grad():
        assert torch.equal(twin(x), chain(x))
        assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in chain.parameters())


class Part(nn.Module):
    """A function of a chain as a module that can be traced, with any number of inputs."""

    def __init__(self, chain: Chain, call: Callable[..., Tensor | State]) -> None:
        super().__init__()
        self.chain, self.call = chain, call

    def forward(self, *inputs: Tensor) -> Tensor | State:
        return self.call(*inputs)


def parts(name: str) -> list[tuple[Part, State, str]]:
    """A fresh chain cut as far as it goes: each part, what it reads, and its kind."""
    chain = offramp.chain(VARIANTS[name].make(), **size(name))
    ends = kind(chain)
    first = (Part(chain, chain.embed), (images(name),), f"embed {ends}")
    last = (Part(chain, chain.finish), states(name)[-1], f"finish {ends}")
    middle = [
        (Part(chain, step), state, kind(step))
        for step, state in zip(chain.steps, states(name), strict=False)
    ]
    return [first, *middle, last]


def kind(module: nn.Module) -> str:
    """Classes and switches of a module and all it contains, whatever their sizes."""

    def switches(part: nn.Module) -> list[str]:
        flags = {k: v for k, v in vars(part).items() if isinstance(v, bool | tuple)}
        return [k for k, v in flags.items() if (v if isinstance(v, bool) else any(v))]

    return str([(type(part).__name__, switches(part)) for part in module.modules()])


def check_trace(part: Part, inputs: State) -> None:
    """Traced with two samples and a dynamic batch, it says the same about all."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    two = tuple(tensor[:2].clone() for tensor in inputs)
    program = torch.export.export(part, two, dynamic_shapes=(({0: batch},) * len(two),))
    got, expected = program.module()(*inputs), part(*inputs)
    for one, other in zip(as_state(got), as_state(expected), strict=True):
        close(one, other)


def as_state(said: Tensor | State) -> State:
    return (said,) if isinstance(said, Tensor) else said


traced: set[str] = set()


@torch.no_grad()
def test_steps_of_every_kind_can_be_traced(name: str) -> None:
    found = parts(name)
    for part, inputs, what in found:
        if what not in traced:
            traced.add(what)
            check_trace(part, inputs)
    assert torch.equal(found[0][0].chain(images(name)), shared(name)(images(name)))  # no traces


@pytest.mark.slow
@torch.no_grad()
def test_every_step_can_be_traced(name: str) -> None:
    for part, inputs, _ in parts(name):
        check_trace(part, inputs)


@pytest.mark.slow
@torch.no_grad()
def test_the_whole_chain_can_be_traced(name: str) -> None:
    chain = shared(name)
    check_trace(Part(chain, chain.forward), (images(name),))
