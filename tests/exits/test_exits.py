"""The contract every registered exit keeps, on every kind of tokens."""

import pytest
import torch

from offramp.chains import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits import EXITS, build_exit
from tiny import tiny_model

TOKENS = {"class": 1, "two classifiers": 2, "no class": 0}
OPTIONS = {
    "linear": [{}, {"pool": "mean"}, {"norm": False}, {"pooler": True}, {"pool": "both"}],
    "mlp": [{}, {"pool": "mean"}, {"ratio": 2.0}, {"pool": "both"}],
    "pooler": [{}, {"norm": False}, {"pool": "both"}],
    "lph": [
        {},
        {"kernel": 1},
        {"kernel": 5},
        {"residual": False},
        {"expansion": 2.0},
        {"final_activation": True},
        {"norm": True},
        {"norm": True, "kernel": 1, "residual": False},
    ],
    "gah": [
        *({"ratio": r, "convergence": c} for r in (1, 2, 3) for c in ("stride", "mean")),
        {"norm": True},
    ],
    "mlp_ee": [{}, {"head": "mlp"}],
    "cnn_ignore_ee": [{}, {"head": "mlp"}],
    "cnn_add_ee": [{}, {"head": "mlp"}],
    "cnn_project_ee": [{}, {"join": "concat"}, {"head": "mlp"}],
    "vit_ee": [{}, {"pool": "mean"}, {"heads": 4, "ratio": 2.0}, {"head": "mlp"}],
    "mixer_ee": [{}, {"pool": "mean"}, {"tokens": "patches"}, {"token_ratio": 4.0}],
    "resmlp_ee": [{}, {"pool": "auto"}, {"tokens": "patches"}, {"head": "mlp"}],
    "sl_vit": [{}, {"patch": 2, "width": 24}, {"pool": "mean", "heads": 3}],
    "sdn": [{}, {"size": 2}],
    "ztw": [
        {},
        {"first": True},
        {"detach": False},
        {"link": "isc"},
        {"pool": "both"},
        {"pool": "mean"},
    ],
}
CASES = [
    (name, options)
    for name in EXITS.names()
    for options in [*OPTIONS.get(name, [{}]), {"lte": True}]
]


def undefined(name: str, options: dict, class_tokens: int) -> bool:
    """Whether these tokens, on a grid, lack what the head reads."""
    joins = options.get("pool") == "both" or name in ("cnn_add_ee", "cnn_project_ee")
    return name == "member" or (joins and class_tokens == 0)


def tokens(class_tokens: int, *, batch: int = 3, grid: tuple[int, int] = (5, 4)) -> Tokens:
    generator = torch.Generator().manual_seed(3)
    n = grid[0] * grid[1]
    return Tokens(
        patches=torch.randn(batch, n, 48, generator=generator),
        grid=grid,
        prefix=torch.randn(batch, class_tokens + 1, 48, generator=generator),
        class_tokens=class_tokens,
    )


def used(name: str, options: dict, class_tokens: int) -> torch.nn.Module:
    """A head whose norms have seen data, so that folding has something to fold."""
    torch.manual_seed(0)
    head = build_exit(name, TokenSpec(48, (5, 4), class_tokens), 7, options)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head.train()
    for _ in range(3):
        head(tokens(class_tokens, batch=8), before(head, 8))
    return head.eval()


def before(head: torch.nn.Module, batch: int) -> tuple[torch.Tensor, ...]:
    """The carry that a head needs."""
    generator = torch.Generator().manual_seed(4)
    return () if head.standalone else (torch.randn(batch, 7, generator=generator),)


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_exit_contract(name: str, options: dict, kind: str) -> None:
    if undefined(name, options, TOKENS[kind]):
        with pytest.raises(OfframpError):
            used(name, options, TOKENS[kind])
        return
    head = used(name, options, TOKENS[kind])
    view, past = tokens(TOKENS[kind]), before(head, 3)
    with torch.no_grad():
        outputs, carry = head(view, past)
        assert outputs._fields[0] == "logits"
        assert outputs.logits.shape == (3, 7)
        assert isinstance(carry, tuple)
        assert outputs._fields == head.says._fields
        fast, _ = head.for_inference()(view, past)
        for said, expected in zip(fast, outputs, strict=True):
            torch.testing.assert_close(said, expected, atol=2e-5, rtol=1e-4)
        one = Tokens(view.patches[1:2], view.grid, view.prefix[1:2], view.class_tokens)
        torch.testing.assert_close(
            head(one, tuple(part[1:2] for part in past))[0].logits,
            outputs.logits[1:2],
            atol=1e-5,
            rtol=1e-4,
        )
    head.train()
    sum(said.square().sum() for said in head(view, past)[0]).backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("name", EXITS.names())
def test_registers_and_other_class_tokens_do_not_reach_the_answer(name: str) -> None:
    if undefined(name, {}, 1):
        return
    head, view = used(name, {}, 1), tokens(1)
    past = before(head, 3)
    prefix = view.prefix.clone()
    prefix[:, 1:] += 5.0
    changed = Tokens(view.patches, view.grid, prefix, 1)
    with torch.no_grad():
        assert torch.equal(head(view, past)[0].logits, head(changed, past)[0].logits)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("lph", {"kernel": 2}, "kernel = 2, but it must be odd"),
        ("gah", {"heads": 7}, "heads = 7 does not divide the token width 48"),
        ("gah", {"ratio": 0}, "ratio = 0"),
        ("gah", {"convergence": "max"}, "'stride' or 'mean'"),
        ("lph", {"kernal": 3}, "no option 'kernal'.*kernel"),
        ("lhp", {}, "unknown exit 'lhp'.*'lph'"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        build_exit(name, TokenSpec(48, (4, 4), 1), 7, options)


def test_lgvit_heads_need_a_grid() -> None:
    with pytest.raises(OfframpError, match="needs tokens on a grid"):
        build_exit("lph", TokenSpec(48, None, 1), 7, {})


def test_model_with_every_exit_runs() -> None:
    names = [name for name in EXITS.names() if not undefined(name, {}, 1)]
    exits = [
        {"after": i + 1, "head": name, "options": EXITS.get(name).along(1)[0]}
        for i, name in enumerate(names)
    ]
    model = tiny_model(exits, depth=len(exits) + 1)
    assert len(model(torch.randn(2, 3, 32, 32))) == len(exits) + 1
