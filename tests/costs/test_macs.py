"""MACs against closed forms: the ViT's and those of LGViT's heads."""

import pytest
import torch
from torch import nn

from offramp.costs.macs import count_macs, model_costs
from offramp.creation import create
from offramp.model import MultiExitModel

EXITS = [
    {"after": 1, "head": "lph", "options": {"kernel": 3}},
    {"after": 2, "head": "lph", "options": {"kernel": 1}},
    {"after": 3, "head": "gah", "options": {"ratio": 2, "heads": 3}},
    {"after": 4, "head": "linear"},
    {"after": 5, "head": "mlp", "options": {"ratio": 2.0}},
]


def vit_macs(*, D: int, N: int, patch: int, K: int, prefix: int = 1) -> dict[str, int]:
    """Closed form per part for MLP ratio 4: N patches, K classes, ``prefix`` class tokens."""
    T = N + prefix
    block = T * 12 * D**2 + 2 * T**2 * D
    return {"embed": 3 * patch**2 * D * N, "block": block, "head": prefix * D * K}


TINY = {"patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
GRID, D, CLASSES = 4, 48, 10
N = GRID**2


def tiny(name: str = "deit_tiny_patch16_224") -> MultiExitModel:
    return create(name, exits=EXITS, num_classes=CLASSES, image_size=32, backbone_args=TINY)


@pytest.mark.parametrize(
    ("name", "prefix"), [("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)]
)
def test_body_and_full_equal_the_closed_form(name: str, prefix: int) -> None:
    model = tiny(name)
    parts = vit_macs(D=D, N=N, patch=8, K=CLASSES, prefix=prefix)
    table = model_costs(model)
    assert table.unit == "MACs"
    assert table.body == (parts["embed"] + parts["block"], *[parts["block"]] * 5)
    assert table.head[-1] == parts["head"]
    assert table.full == parts["embed"] + 6 * parts["block"] + parts["head"]
    assert sum(table.body) + table.head[-1] == table.full


def test_heads_as_trained_equal_the_papers_closed_forms() -> None:
    head = model_costs(tiny(), form="train").head
    n = (GRID // 2) ** 2
    assert head[0] == 2 * N * D**2 + 9 * N * D + CLASSES * D
    assert head[1] == 2 * N * D**2 + CLASSES * D
    assert head[2] == 4 * n * D**2 + 2 * n**2 * D + CLASSES * D
    assert head[3] == CLASSES * D
    assert head[4] == 2 * D * D + CLASSES * 2 * D


def test_heads_for_inference_count_what_runs() -> None:
    """After pooling, the trunk's last layer and the classifier are one linear layer per image."""
    table = model_costs(tiny(), form="inference")
    n = (GRID // 2) ** 2
    assert table.head[0] == N * D**2 + 9 * N * D + CLASSES * 2 * D
    assert table.head[1] == N * D**2 + CLASSES * 2 * D
    assert table.head[2] == 3 * n * D**2 + 2 * n**2 * D + CLASSES * 2 * D
    assert table.meta == {"form": "inference", "image_size": [32, 32]}


def test_vit_base_and_its_heads_equal_the_card() -> None:
    """LGViT's card: ViT-B/16, 224 px, 100 classes; heads 232.64, 231.29, 119.37, 60.02 M."""
    exits = [
        {"after": 1, "head": "lph", "options": {"kernel": 3}},
        {"after": 2, "head": "lph", "options": {"kernel": 1}},
        {"after": 3, "head": "gah", "options": {"ratio": 1, "heads": 8}},
        {"after": 4, "head": "gah", "options": {"ratio": 2, "heads": 8}},
        {"after": 5, "head": "gah", "options": {"ratio": 3, "heads": 8}},
    ]
    with torch.device("meta"):
        model = create(
            "vit_base_patch16_224", exits=exits, num_classes=100, backbone_args={"depth": 6}
        )
    table = model_costs(model, form="train")
    assert [round(value / 1e6, 2) for value in table.head[:-1]] == [
        232.64,
        231.29,
        521.51,
        119.37,
        60.02,
    ]
    assert table.body[1] / 1e9 == pytest.approx(1.4540, abs=5e-5)
    assert (table.body[0] - table.body[1]) / 1e9 == pytest.approx(0.1156, abs=5e-5)


def test_fused_attention_is_counted() -> None:
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_macs(Attend(), torch.zeros(1, 2, 7, 16)) == 2 * 2 * 7 * 7 * 16


def test_counting_leaves_the_model_as_it_was() -> None:
    model = tiny().train()
    model.exits[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    model_costs(model, form="train")
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(torch.zeros(2, 3, 32, 32))[0].logits.sum().backward()
