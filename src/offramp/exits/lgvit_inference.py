"""LGViT's heads for inference: equal to the trained ones up to rounding, and faster."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.state import Tokens
from offramp.exits.exit import Outputs, linear_layer
from offramp.exits.lgvit import GAH, LPH, LGViTExit, convolve, with_classes


class FoldedLPH(nn.Module):
    """LPH for inference: norms folded into the next layer, pooling before the last 1×1.

    Exact in real arithmetic. A norm's shift ahead of the zero-padded depth-wise convolution
    becomes a bias map (1, hidden, H, W); mean pooling commutes with the last linear and norm,
    unless a LayerNorm stands between them.
    """

    def __init__(self, head: LPH) -> None:
        super().__init__()
        with torch.no_grad():
            scale, shift = head.norm1.affine_form()
            self.expand = copy.deepcopy(head.expand)  # its own: freezing must not reach the head
            self.depthwise: nn.Conv2d | None = None
            if head.depthwise is not None:
                assert head.spec.grid is not None
                conv = copy.deepcopy(head.depthwise)
                conv.bias = None
                conv.weight.mul_(scale.view(-1, 1, 1, 1))
                bias = head.depthwise(shift.view(1, -1, 1, 1).expand(1, -1, *head.spec.grid))
                self.register_buffer("bias_map", bias.permute(0, 2, 3, 1).flatten(1, 2).clone())
                self.depthwise = conv
                scale, shift = head.norm2.affine_form()
            last_scale, last_shift = head.norm3.affine_form()
            weight = last_scale.unsqueeze(1) * head.project.weight  # (D, hidden)
            bias = last_scale * head.project.bias + last_shift + weight @ shift
            self.answer = answer_of(head, weight * scale, bias, residual=head.residual)
        self.requires_grad_(False)

    bias_map: Tensor

    def forward(self, tokens: Tokens, carry: tuple[Tensor, ...] = ()) -> tuple[Outputs, tuple]:
        x = F.gelu(self.expand(tokens.patches))  # (B, N, hidden)
        if self.depthwise is not None:
            x = F.gelu(convolve(self.depthwise, x, tokens.grid) + self.bias_map)
        return self.answer(x, tokens), carry


class PooledGAH(nn.Module):
    """GAH for inference: tokens are averaged before the output projection, where that commutes."""

    def __init__(self, head: GAH) -> None:
        super().__init__()
        self.head = copy.deepcopy(head)
        self.answer = answer_of(head, head.proj.weight, head.proj.bias, residual=False)
        del self.head.proj, self.head.norm, self.head.classifiers
        self.requires_grad_(False)

    def forward(self, tokens: Tokens, carry: tuple[Tensor, ...] = ()) -> tuple[Outputs, tuple]:
        return self.answer(self.head.attend(tokens.patches), tokens), carry


def answer_of(head: LGViTExit, weight: Tensor, bias: Tensor, *, residual: bool) -> nn.Module:
    """What follows a trunk's last activation (B, n, hidden), in its quickest form.

    Args:
        head: whose norm, classifiers and class tokens.
        weight, bias: (D, hidden) and (D,) of the trunk's last linear layer, norms folded in.
        residual: whether the patches are added to its result.
    """
    build = PooledAnswer if head.norm is None else NormedAnswer
    return build(head, weight, bias, residual=residual)


class PooledAnswer(nn.Module):
    """The last linear layer of a trunk and the classifiers behind it, as one linear layer.

    Arguments as for `answer_of`. With m the mean over tokens, g = W m + b (+ mean patch) and
    logits the mean over t of C_t (g + cls_t) + c_t, the logits are linear in m and in each
    cls_t + mean patch: one small product instead of three.
    """

    def __init__(self, head: LGViTExit, weight: Tensor, bias: Tensor, *, residual: bool) -> None:
        super().__init__()
        self.residual, self.class_tokens = residual, head.spec.class_tokens
        layers = [m for m in head.classifiers.heads if isinstance(m, nn.Linear)]
        mean = torch.stack([m.weight for m in layers]).mean(0)  # (C, D)
        parts = [mean @ weight]
        if residual or self.class_tokens:
            parts += [m.weight / len(layers) for m in layers]
        shift = torch.stack([m.bias for m in layers]).mean(0) + mean @ bias
        self.linear = linear_layer(torch.cat(parts, dim=1), shift)

    def forward(self, x: Tensor, tokens: Tokens) -> Outputs:
        """Trunk (B, n, hidden) and the tokens it came from → outputs."""
        parts = [x.mean(dim=1)]
        if self.residual:
            parts.append(with_classes(tokens.patches.mean(dim=1), tokens).flatten(1))
        elif self.class_tokens:
            parts.append(tokens.classes.flatten(1))
        return Outputs(self.linear(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]))


class NormedAnswer(nn.Module):
    """The last linear layer of a trunk, LayerNorm, pooling, and the classifiers as one layer.

    Arguments as for `answer_of`. With normalised features n, their mean m and the LayerNorm's
    a ⊙ n + d, the logits are linear in m and in each cls_t.
    """

    def __init__(self, head: LGViTExit, weight: Tensor, bias: Tensor, *, residual: bool) -> None:
        super().__init__()
        assert head.norm is not None
        self.residual, self.class_tokens = residual, head.spec.class_tokens
        self.eps = head.norm.eps
        self.last = linear_layer(weight, bias)
        layers = [m for m in head.classifiers.heads if isinstance(m, nn.Linear)]
        mean = torch.stack([m.weight for m in layers]).mean(0)  # (C, D)
        parts = [mean * head.norm.weight]
        if self.class_tokens:
            parts += [m.weight / len(layers) for m in layers]
        shift = torch.stack([m.bias for m in layers]).mean(0) + mean @ head.norm.bias
        self.linear = linear_layer(torch.cat(parts, dim=1), shift)

    def forward(self, x: Tensor, tokens: Tokens) -> Outputs:
        """Trunk (B, n, hidden) and the tokens it came from → outputs."""
        x = self.last(x)
        if self.residual:
            x = x + tokens.patches
        pooled = F.layer_norm(x, x.shape[-1:], eps=self.eps).mean(dim=1)
        if self.class_tokens:
            pooled = torch.cat([pooled, tokens.classes.flatten(1)], dim=1)
        return Outputs(self.linear(pooled))
