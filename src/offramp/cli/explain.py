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
    point: Annotated[
        str | None, typer.Option(help="Operating point whose tokens to draw, with its reducer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what becomes of an image's patches, block by block.

    Patches that share a token show their mean colour, placeholders fade, dropped ones are blank.

    Example: [bold]offramp explain runs/evit photo.png[/]
    """
    from offramp.data import read_image
    from offramp.reduced_run import reduced_run
    from offramp.report.style import save_png
    from offramp.report.token_picture import follow_tokens, tally
    from offramp.runs import RunFolder

    folder = RunFolder(run).check()
    spec = None if point is None else folder.point(point)[1].reducer
    model = reduced_run(folder, spec).model
    if model.config.reducer is None:
        raise OfframpError(f"{run}: this model has no reducer, so there is nothing to explain")
    drawn, maps = follow_tokens(model, read_image(image))
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
