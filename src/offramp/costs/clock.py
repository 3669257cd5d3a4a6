"""Wall-clock that waits for the device."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch


def timed(
    call: Callable[..., Any], *inputs: Any, device: torch.device | str = "cpu"
) -> tuple[float, Any]:
    """Milliseconds until the result of ``call(*inputs)`` is really there, and that result."""
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
    start = perf_counter()
    result = call(*inputs)
    if on_cuda:
        torch.cuda.synchronize(device)
    return (perf_counter() - start) * 1e3, result
