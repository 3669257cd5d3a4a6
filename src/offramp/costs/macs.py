"""Multiply-accumulates from torch's flop counter, attention included."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.costs.evaluating import evaluating
from offramp.costs.table import CostTable

if TYPE_CHECKING:
    from offramp.model import MultiExitModel

Form = Literal["inference", "train"]


def count_macs(run: Callable[..., Any], *inputs: Tensor) -> int:
    """Multiply-accumulates of ``run(*inputs)``: convolutions and every matrix product.

    Fused attention on CPU is invisible to the counter (ViT-S reads 4.24 instead of 4.60 G), so
    attention runs as plain matrix products while counting. Norms, activations, softmax, biases
    and pooling count nothing, as in the papers.
    """
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), frozen(run), sdpa_kernel(SDPBackend.MATH), counter:
        run(*inputs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def frozen(run: Callable[..., Any]) -> Iterator[None]:
    """Parameters of a module, or of a method's module, need no gradient meanwhile.

    The counter hangs gradient hooks on a block's inputs and fails where such an input is a view of
    a parameter, as class tokens are in CaiT and PiT.
    """
    owner = run if isinstance(run, nn.Module) else getattr(run, "__self__", None)
    found = owner.parameters() if isinstance(owner, nn.Module) else ()
    trained = [parameter for parameter in found if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def model_costs(model: "MultiExitModel", *, form: Form = "inference") -> CostTable:
    """MACs per image of every exit's body and head, and of the chain's baseline.

    Args:
        form: what is counted: ``"inference"``, the segments a runner executes (BatchNorm folded,
            pooling ahead of products it commutes with), or ``"train"``, the heads as they are
            trained and as the papers count them.
    """
    chain = model.chain
    first = next(model.parameters())
    shape = (1, chain.in_chans, *chain.image_size)
    images = torch.zeros(shape, device=first.device, dtype=first.dtype)
    body, head = [], []
    with evaluating(model), torch.inference_mode():
        flow: tuple[Tensor, ...] = (images,)
        for segment in model.segments(inference=form == "inference"):
            body.append(float(count_macs(segment.body, *flow)))
            state = segment.body(*flow)
            head.append(float(count_macs(segment.read, *state)))
            flow, _ = segment.read(*state)
        full = count_macs(chain.baseline, images)
    meta = {"form": form, "image_size": list(chain.image_size)}
    return CostTable(unit="MACs", body=tuple(body), head=tuple(head), full=full, meta=meta)
