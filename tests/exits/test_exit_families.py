"""Every registered head on backbones of every family: it works there, or is refused."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from families import VARIANTS
from offramp.chains import Tokens, TokenSpec, chain
from offramp.errors import OfframpError
from offramp.exits import EXITS, Exit, build_exit

USUAL = {
    *("deit", "deit distilled", "dinov3", "cait", "pit", "hf vit", "swin uneven", "levit"),
    *("crossvit", "cct", "efficientnet", "mobilevit", "convnext v2", "pvt v2", "twins svt"),
    *("hiera", "shuffle", "t2t", "vil", "cascade"),
}
FAMILIES = [
    family if family in USUAL else pytest.param(family, marks=pytest.mark.slow)
    for family in VARIANTS
]
WITHOUT_GRID = {"linear", "mlp", "mlp_ee", "pooler", "vit_ee", "ztw"}
JOINS_CLASS = {"cnn_add_ee", "cnn_project_ee"}
POOLS_FOUR = {"cnn_ignore_ee", *JOINS_CLASS}  # 2 × 2 patches at a time


class Place(NamedTuple):
    """Behind a step of a backbone: the tokens of three images and their shape."""

    spec: TokenSpec
    tokens: Tokens


@cache
def places(family: str) -> list[Place]:
    variant = VARIANTS[family]
    links = chain(variant.make(), image_size=variant.image_size)
    found = []
    with torch.no_grad():
        state = links.embed(torch.randn(3, 3, *variant.image_size))
        for i, step in enumerate(links.steps[:-1]):
            state = step(*state)
            found.append(Place(links.exit_spec(i), links.tokens(state, i)))
    return [found[0], found[-1]]


def defined(name: str, spec: TokenSpec) -> bool:
    if name == "member":
        return spec.answers
    if spec.grid is None:
        return name in WITHOUT_GRID
    if min(spec.grid) < 2 and name in POOLS_FOUR:
        return False
    return bool(spec.class_tokens) or name not in JOINS_CLASS


def built(name: str, spec: TokenSpec, options: dict | None = None) -> Exit:
    torch.manual_seed(0)
    return build_exit(name, spec, 7, EXITS.get(name).along(1)[0] | (options or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXITS.names())
def test_heads_on_families(name: str, family: str) -> None:
    for spec, view in places(family):
        if not defined(name, spec):
            with pytest.raises(OfframpError, match=name):
                built(name, spec)
            continue
        head = built(name, spec, {"lte": True})
        head.train()
        said, _ = head(view)
        assert said.logits.shape == (3, 7)
        sum(part.square().sum() for part in said).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        head.eval()
        fast = head.for_inference()
        assert not any(p.requires_grad for p in fast.parameters())
        with torch.no_grad():
            for a, b in zip(head(view)[0], fast(view)[0], strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
            if head.summary:
                for a, b in zip(head(view)[0], head(view.summary)[0], strict=True):
                    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EXITS.names())
def test_tokens_without_a_grid(name: str) -> None:
    spec = TokenSpec(48, None, 1)
    if not defined(name, spec):
        with pytest.raises(OfframpError):
            built(name, spec)
        return
    head = built(name, spec).eval()
    for n in (3, 9):
        view = Tokens(torch.randn(2, n, 48), None, torch.randn(2, 1, 48), 1)
        torch.testing.assert_close(
            head.for_inference()(view)[0].logits, head(view)[0].logits, atol=2e-5, rtol=1e-4
        )


class Reader(nn.Module):
    """A head on tensors, as a segment calls it."""

    def __init__(self, head: nn.Module, view: Tokens) -> None:
        super().__init__()
        self.head, self.grid, self.class_tokens = head, view.grid, view.class_tokens

    def forward(
        self, patches: Tensor, prefix: Tensor, carry: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        said, onward = self.head(Tokens(patches, self.grid, prefix, self.class_tokens), carry)
        return tuple(said), onward


@pytest.mark.parametrize("name", EXITS.names())
def test_heads_export_with_any_batch_size(name: str) -> None:
    spec, view = places("deit distilled")[0]
    if not defined(name, spec):
        pytest.skip("not defined there")
    head = build_exit(name, spec, 7, {"lte": True}).eval()
    carry = () if head.standalone else (torch.randn(3, 7),)
    reader = Reader(head.for_inference(), view).eval()
    inputs = (view.patches.contiguous(), view.prefix.contiguous(), carry)
    batch = {0: torch.export.Dim.DYNAMIC}
    free = (batch, batch, (batch,) * len(carry))
    with torch.no_grad():
        program = torch.export.export(reader, inputs, dynamic_shapes=free)
        larger = tree_map(lambda x: torch.cat([x, x.flip(0)])[:5], inputs)
        got, want = program.module()(*larger), reader(*larger)
    for a, b in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "heads"),
    [("deit", 3), ("swin", [1, 1, 2, 4, 4, 8]), ("convnext", 0), ("vil", [1, 2, 2, 3, 4])],
)
def test_attention_heads_follow_the_backbone(family: str, heads: int | list[int]) -> None:
    variant = VARIANTS[family]
    links = chain(variant.make(), image_size=variant.image_size)
    expected = heads if isinstance(heads, list) else [heads] * len(links)
    assert [links.exit_spec(i).heads for i in range(len(links))] == expected
