"""``offramp explain``: a picture of tokens, from a saved model and an image file."""

from collections.abc import Callable
from pathlib import Path

import pytest

import offramp as package

Offramp = Callable[..., object]


def saved(folder: Path, reducer: object) -> Path:
    package.create(
        "deit_tiny_patch16_224",
        exits=[],
        num_classes=3,
        image_size=32,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
        reducer=reducer,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("reducer", ["tome", "evit", "evo_vit", "dynamicvit", "diffrate"])
def test_tokens_are_drawn_block_by_block(
    offramp: Offramp, tmp_path: Path, picture: Path, reducer: str
) -> None:
    run = saved(tmp_path / "run", reducer)
    said = offramp("explain", run, picture, "--json").json
    assert [block["block"] for block in said["blocks"]] == [1, 2, 3, 4]
    assert all(len(block["token"]) == 16 for block in said["blocks"])
    assert Path(said["picture"]).read_bytes().startswith(b"\x89PNG")
    shown = offramp("explain", run, picture, "--out", tmp_path / "drawn.png")
    assert shown.code == 0, shown.err
    assert "block 4: " in shown.out
    assert (tmp_path / "drawn.png").is_file()


def test_without_a_reducer_there_is_nothing_to_explain(
    offramp: Offramp, tmp_path: Path, picture: Path
) -> None:
    said = offramp("explain", saved(tmp_path / "run", None), picture)
    assert "this model has no reducer" in said.sentence
