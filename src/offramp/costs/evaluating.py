"""Look at a model in evaluation mode and leave every module as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode, then give every submodule its own flag back."""
    were = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Set the flag itself: `.train()` would overwrite modules frozen on purpose.
        for module, training in were:
            module.training = training
