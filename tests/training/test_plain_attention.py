"""In bf16 on a CPU attention is multiplied out while a model is trained, and only then."""

import pytest
import timm
import torch
from torch import nn

from offramp.training.plain_attention import plain_attention

CPU = torch.device("cpu")


def layers(model: nn.Module) -> list[bool]:
    return [block.attn.fused_attn for block in model.blocks]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return vit.eval()


def test_same_answers_and_gradients(model: nn.Module) -> None:
    images = torch.randn(4, 3, 32, 32)

    def answer() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        return logits.detach(), model.blocks[0].attn.qkv.weight.grad.clone()

    fused = answer()
    with plain_attention(model, CPU, "bf16"):
        plain = answer()
    torch.testing.assert_close(plain, fused)


@pytest.mark.parametrize(
    ("device", "precision", "plain"),
    [("cpu", "bf16", True), ("cpu", "fp32", False), ("cuda", "bf16", False)],
)
def test_only_where_it_is_quicker(
    model: nn.Module, device: str, precision: str, *, plain: bool
) -> None:
    model.blocks[1].attn.fused_attn = False  # somebody's own choice, which stays
    with plain_attention(model, torch.device(device), precision):
        assert layers(model) == [not plain, False]
    assert layers(model) == [True, False]


def test_undone_when_training_breaks_off(model: nn.Module) -> None:
    with pytest.raises(KeyboardInterrupt), plain_attention(model, CPU, "bf16"):
        raise KeyboardInterrupt
    assert layers(model) == [True, True]
