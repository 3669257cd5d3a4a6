"""MACs of DeiT-T/S/B under each reducer: the card's numbers, and what choosing tokens costs."""

import pytest
import timm
import torch

import offramp
from offramp.chains.vit import ViTChain
from offramp.costs.macs import count_macs
from offramp.reducers import ReducerSpec, reduced

WIDTH = {"tiny": 192, "small": 384, "base": 768}


def measured(size: str, **reducer: object) -> int:
    with torch.device("meta"):
        model = timm.create_model(f"deit_{size}_patch16_224").eval()
        links = offramp.chain(model)
        assert isinstance(links, ViTChain)
        chain = reduced(links, ReducerSpec.model_validate(reducer)).eval()
        return count_macs(chain, torch.zeros(1, 3, 224, 224))


def vit(C: int, lengths: list[tuple[int, int]]) -> int:
    """The papers' count: T tokens in attention and T' in the MLP of each block."""
    blocks = sum(4 * T * C**2 + 2 * T**2 * C + 8 * U * C**2 for T, U in lengths)
    return 196 * 768 * C + blocks + 1000 * C


def lengths(after: list[int]) -> list[tuple[int, int]]:
    """Tokens in each block whose number falls between attention and MLP."""
    return list(zip([197, *after[:-1]], after, strict=True))


@pytest.mark.parametrize(("size", "billions"), zip(WIDTH, (0.818, 3.033, 11.658), strict=True))
@pytest.mark.parametrize("selection", ["stage", "layer"])
def test_evo_vit(size: str, billions: float, selection: str) -> None:
    C = WIDTH[size]
    paper = vit(C, [(197, 197)] * 4 + [(99, 99)] * 8)
    assert paper / 1e9 == pytest.approx(billions, abs=6e-4)
    rows = 197 + 99 * (4 if selection == "stage" else 7)  # class rows that are read later
    assert measured(size, name="evo_vit", selection=selection) == paper + rows * C


@pytest.mark.parametrize(("size", "billions"), zip(WIDTH, (0.822, 3.049, 11.717), strict=True))
def test_evo_vit_with_the_representative_token(size: str, billions: float) -> None:
    C = WIDTH[size]
    paper = vit(C, [(197, 197)] * 4 + [(100, 100)] * 8)
    assert paper / 1e9 == pytest.approx(billions, abs=6e-4)
    extra = (197 + 4 * 100) * C + 2 * 98 * C
    assert measured(size, name="evo_vit", fast=True) == paper + extra


@pytest.mark.parametrize(
    ("keep", "length", "billions"),
    [
        (0.3, 59, 2.428),
        (0.4, 79, 2.728),
        (0.6, 118, 3.328),
        (0.7, 138, 3.642),
        (0.8, 157, 3.946),
        (0.9, 177, 4.270),
    ],
)
def test_evo_vit_by_keep_ratio(keep: float, length: int, billions: float) -> None:
    paper = vit(384, [(197, 197)] * 4 + [(length, length)] * 8)
    assert paper / 1e9 == pytest.approx(billions, abs=6e-4)
    assert measured("small", name="evo_vit", keep=keep) == paper + (197 + 4 * length) * 384


@pytest.mark.parametrize(
    ("size", "keep", "fuse", "after", "billions"),
    [
        ("tiny", 0.7, True, (140, 100, 72), 0.821),
        ("small", 0.7, True, (140, 100, 72), 3.029),
        ("base", 0.7, True, (140, 100, 72), 11.610),
        ("tiny", 0.7, False, (139, 98, 69), 0.812),
        ("small", 0.7, False, (139, 98, 69), 2.997),
        ("base", 0.7, False, (139, 98, 69), 11.485),
        ("small", 0.9, True, None, 4.022),
        ("small", 0.8, True, None, 3.477),
        ("small", 0.6, True, None, 2.635),
        ("small", 0.5, True, None, 2.309),
    ],
)
def test_evit(
    size: str, keep: float, fuse: bool, after: tuple[int, ...] | None, billions: float
) -> None:
    C, T, counts, extra = WIDTH[size], 197, [], 0
    for _ in range(3):
        left = 1 + -(-round(keep * 10) * (T - 1) // 10) + fuse
        extra += T * C + fuse * (T - 1) * C  # class row, fused token
        counts, T = [*counts, left], left
    assert after is None or tuple(counts) == after
    blocks = [197] * 3 + [n for n in counts for _ in range(3)]
    paper = vit(C, lengths(blocks))
    assert paper / 1e9 == pytest.approx(billions, abs=6e-4)
    assert measured(size, name="evit", keep=keep, fuse=fuse) == paper + extra


@pytest.mark.parametrize(("size", "billions"), zip(WIDTH, (0.801, 2.981, 11.476), strict=True))
def test_dynamicvit_with_its_predictors(size: str, billions: float) -> None:
    C = WIDTH[size]
    blocks = [197] * 3 + [n + 1 for n in (137, 96, 67) for _ in range(3)]
    predictor = C * C + C * C // 2 + C * C // 8 + C // 2
    macs = vit(C, [(n, n) for n in blocks]) + (196 + 137 + 96) * predictor
    assert macs / 1e9 == pytest.approx(billions, abs=6e-4)
    assert measured(size, name="dynamicvit") == macs


@pytest.mark.parametrize(
    ("size", "r", "billions"),
    [
        ("tiny", 13, 0.735),
        ("small", 13, 2.706),
        ("base", 13, 10.370),
        ("tiny", 16, 0.625),
        ("small", 16, 2.294),
        ("base", 16, 8.775),
    ],
)
def test_tome(size: str, r: int, billions: float) -> None:
    C, T, after, matching, sums = WIDTH[size], 197, [], 0, 0
    for _ in range(12):
        merged, a, b = min(r, (T - 1) // 2), (T - 1) // 2, T // 2
        matching += a * b * 64  # likeness of keys, which the card counts too
        sums += b * merged * C
        T -= merged
        after.append(T)
    assert after[-1] == {13: 41, 16: 11}[r]
    paper = vit(C, lengths(after)) + matching
    assert paper / 1e9 == pytest.approx(billions, abs=6e-4)
    assert measured(size, name="tome", r=r) == paper + sums


def test_diffrate_at_the_published_schedule() -> None:
    from offramp.reducers.diffrate import MERGED, PRUNED

    C, T, extra = 384, 197, 0
    for p, m in zip(PRUNED, MERGED, strict=True):
        extra += (m < T) * T * C + (p - m) * (m - 1) * C + (p - m) * m * C
        T = m
    paper = vit(C, lengths(MERGED))
    assert paper / 1e9 == pytest.approx(2.905, abs=6e-4)
    assert measured("small", name="diffrate") == paper + extra
