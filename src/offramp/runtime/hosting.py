"""What torch does between compiled segments, beside an engine with threads of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.runtime.engines.engine import Program


@contextmanager
def hosting(program: Program) -> Iterator[None]:
    """Inference mode, and one torch thread where the engine has its own.

    torch's threads keep spinning for a while after each parallel operation, on the very cores the
    engine is about to use: with OpenVINO on two cores, checking and compacting a batch in parallel
    cost up to half of what the exits saved. Alone, these small operations are as fast.
    """
    threads = torch.get_num_threads()
    own = program.own_threads and threads > 1
    if own:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        if own:
            torch.set_num_threads(threads)
