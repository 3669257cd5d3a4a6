"""Pictures of tokens show what the maps say."""

import numpy as np
import torch
from PIL import Image

from offramp.chains.reduced import TokenMap
from offramp.report.token_picture import PAPER, painted, tally, token_picture

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8), "RGB")


def made(token: list[int], shared: list[bool]) -> TokenMap:
    return TokenMap(torch.tensor([token]), torch.tensor([shared]))


def test_patches_look_like_their_tokens() -> None:
    found = made([0, 1, 1, -1], [False, True, True, True])
    pixels, before = painted(IMAGE, (2, 2), found), np.asarray(IMAGE, dtype=float)
    assert np.array_equal(pixels[:4, :4], before[:4, :4])  # alone: as it is
    assert np.array_equal(pixels[4:, 4:], np.broadcast_to(PAPER, (4, 4, 3)))  # gone: blank
    mean = (before[:4, 4:].mean((0, 1)) + before[4:, :4].mean((0, 1))) / 2
    expected = 0.25 * before[:4, 4:] + 0.75 * mean
    np.testing.assert_allclose(pixels[:4, 4:], expected)
    assert tally(found) == "2 tokens"


def test_placeholders_fade() -> None:
    found = made([2, 0, 3, 1], [True, False, True, False])
    pixels, before = painted(IMAGE, (2, 2), found), np.asarray(IMAGE, dtype=float)
    np.testing.assert_allclose(pixels[:4, :4], 0.3 * before[:4, :4] + 0.7 * PAPER)
    assert tally(found) == "2 at work"
    assert tally(made([0, 1, 2, 3], [False] * 4)) == "all"


def test_one_panel_per_block() -> None:
    figure = token_picture(IMAGE, (2, 2), [made([0, 1, 2, 3], [False] * 4)] * 8)
    assert sum(bool(axis.images) for axis in figure.axes) == 8
