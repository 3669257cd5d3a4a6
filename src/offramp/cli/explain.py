"""``offramp explain``: which patches a reducer keeps, merges, or lets wait."""

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.terminal import AsJson, emit, show
from offramp.errors import OfframpError


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run with a token reducer.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    out: Annotated[
        Path | None, typer.Option(help="PNG to write; RUN/tokens-IMAGE.png when omitted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what becomes of an image's patches, block by block.

    Patches that share a token show their mean colour, placeholders fade, dropped ones are blank.

    Example: [bold]offramp explain runs/evit photo.png[/]
    """
    from PIL import Image

    from offramp.chains.reduced import ReducedChain
    from offramp.data import eval_transform, read_image
    from offramp.reducers import kept_tokens
    from offramp.report.style import save_png
    from offramp.report.token_picture import tally, token_picture
    from offramp.runs import RunFolder

    model = RunFolder(run).check().model
    links = model.chain
    if not isinstance(links, ReducedChain):
        raise OfframpError(f"{run}: this model has no reducer, so there is nothing to explain")
    seen = eval_transform(model.preprocessing)(read_image(image))  # (3, H, W)
    maps = kept_tokens(links, seen[None])
    mean, std = (
        seen.new_tensor(values)[:, None, None]
        for values in (model.preprocessing.mean, model.preprocessing.std)
    )
    pixels = (255 * (seen * std + mean)).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    drawn = token_picture(Image.fromarray(pixels), links.base.grid, maps)
    path = save_png(drawn, out or run / f"tokens-{image.stem}.png")
    if as_json:
        blocks = [
            {"block": i, "token": found.token[0].tolist(), "shared": found.shared[0].tolist()}
            for i, found in enumerate(maps, 1)
        ]
        emit({"run": str(run), "image": str(image), "picture": str(path), "blocks": blocks})
        return
    show("\n".join(f"block {i}: {tally(found)}" for i, found in enumerate(maps, 1)))
    show(f"drawn to {path}")
