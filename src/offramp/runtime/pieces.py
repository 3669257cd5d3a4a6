"""A batch as calls of other sizes: filled up with repeated rows, or cut and put together again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4 … up to ``largest``, which is always in: the sizes shapes are compiled for."""
    return (*(2**i for i in range((largest - 1).bit_length())), largest)


def covering(n: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the calls for ``n`` samples: the largest while it is full, then what holds the rest.

    Args:
        sizes: what there is, ascending.
    """
    full, rest = divmod(n, sizes[-1])
    last = next(size for size in sizes if size >= rest)
    return (*[sizes[-1]] * full, *([last] if rest else []))


def fill(tensors: Tensors, size: int) -> Tensors:
    """Batch-first tensors with their last row repeated until there are ``size`` rows."""
    rows = torch.arange(size, device=tensors[0].device).clamp(max=len(tensors[0]) - 1)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)


def in_pieces(
    call: Callable[..., Tensors], inputs: Tensors, sizes: Sequence[int], *, filled: bool = True
) -> Tensors:
    """Run a batch of n samples as calls of ``sizes``; the outputs have n rows again.

    Args:
        inputs: batch-first tensors of n rows.
        sizes: together at least n; only the last may be larger than what is left for it.
        filled: repeat rows until the last call is full; False for calls that do so themselves.
    """
    n = len(inputs[0])
    if len(sizes) == 1:
        return _one(call, inputs, sizes[0] if filled else n)
    joined: Tensors = ()
    start = 0
    for size in sizes:
        stop = min(start + size, n)
        piece = tuple(tensor[start:stop] for tensor in inputs)
        returned = _one(call, piece, size if filled else stop - start)
        # Copied at once: the next call may write where these lie.
        joined = joined or tuple(tensor.new_empty(n, *tensor.shape[1:]) for tensor in returned)
        for whole, rows in zip(joined, returned, strict=True):
            whole[start:stop] = rows
        start = stop
    return joined


def _one(call: Callable[..., Tensors], inputs: Tensors, size: int) -> Tensors:
    n = len(inputs[0])
    if size == n:
        return call(*inputs)
    return tuple(tensor[:n] for tensor in call(*fill(inputs, size)))
