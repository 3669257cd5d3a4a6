"""The one image size a chain is bound to."""

from offramp.errors import OfframpError


def bound_size(
    asked: tuple[int, int] | None, native: tuple[int, int], *, remedy: str | None = "img_size=…"
) -> tuple[int, int]:
    """The size a size-bound model was built for.

    Args:
        asked: (H, W) in pixels somebody asked for, or None.
        native: (H, W) the model was built for.
        remedy: argument that builds it for another size, for the message; None: any size will do.

    Raises:
        OfframpError: when another size is asked for and the model cannot take it.
    """
    height, width = native if asked is None else asked
    if remedy is not None and (height, width) != tuple(native):
        raise OfframpError(
            f"image_size = {(height, width)}, but this model was built for {tuple(native)} "
            f"(build it with {remedy})"
        )
    return int(height), int(width)
