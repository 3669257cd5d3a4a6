"""Tiny models and data shared by the suites."""

import pytest
import torch

from offramp import vision_cure
from offramp.model import MultiExitModel
from tiny import tiny_model

vision_cure.ensure()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> MultiExitModel:
    return tiny_model()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
