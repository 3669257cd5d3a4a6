"""What heads on a frozen backbone read of an image: tokens per head, and the final answer."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.chains import Tokens
from offramp.data import Batch
from offramp.files import tensor_digest
from offramp.model import MultiExitModel
from offramp.training.every_image import EveryImage
from offramp.training.feature_cache import FeatureCache
from offramp.training.recipe import Step

PROBED = 8  # images that tell whose features are on disk


class Features(NamedTuple):
    """What each early head reads, the last block's state, and what the full model answers."""

    tokens: list[Tokens]
    last: tuple[Tensor, ...]
    final: Tensor  # logits (B, C)


def early_answers(model: MultiExitModel, features: Features) -> list[NamedTuple]:
    """What every early head says of features."""
    carry: tuple[Tensor, ...] = ()
    said = []
    for head, tokens in zip(model.heads, features.tokens, strict=True):
        outputs, carry = head(tokens, carry)
        said.append(outputs)
    return said


class FrozenFeatures:
    """Features of images under a backbone that does not change, computed once where cached.

    Heads that read pooled vectors get the class tokens and the mean patch (`Exit.summary`), so that
    of 45,000 images under eleven such heads a few hundred megabytes are kept; other heads get
    whole token maps. Samples that find no room are computed again each time they are met.

    Args:
        model: whose backbone is frozen, and in eval mode.
        cache: None computes everything anew.
        keep_last: also the last block's state, which a new classifier on top reads.
    """

    def __init__(
        self, model: MultiExitModel, cache: FeatureCache | None, *, keep_last: bool = False
    ) -> None:
        self.model, self.cache, self.keep_last = model, cache, keep_last
        self.complete = False
        self._shape: list[Tokens] = []

    def prepare(self, images: EveryImage) -> None:
        """Fill the cache, in the order of the images, as far as it goes."""
        if self.cache is None:
            return
        self.cache.clear()
        key = self.key(next(iter(images))) if self.cache.lasting else ""
        self.complete = self.cache.find(key, images.ids)
        if self.complete:
            return
        self.complete = all(
            self.cache.add(batch.ids, self._flat(self.compute(batch.images))) for batch in images
        )
        if self.complete:
            self.cache.keep(key)

    def key(self, batch: Batch) -> str:
        """What decides features, as a word: the backbone's weights, and pixels and features of the
        first images, which differ where anything else does (blocks that are read, taps,
        pre-processing, precision, data set, device)."""
        images = batch.images[:PROBED]  # the same few at any batch size
        weights = {f"weights.{name}": x for name, x in self.model.backbone.state_dict().items()}
        said = {f"features.{i}": x for i, x in enumerate(self._flat(self.compute(images)))}
        return tensor_digest({**weights, **said, "images": images, "ids": batch.ids[:PROBED]})

    @torch.no_grad()
    def compute(self, images: Tensor) -> Features:
        """Images (B, 3, H, W) → features, through the backbone."""
        model = self.model
        states = list(model.walk(images))
        tokens = []
        for head, block, state in zip(model.heads, model.positions, states, strict=False):
            read = model.chain.tokens(state, block - 1)
            tokens.append(read.summary if head.summary else read)
        last = states[-1] if self.keep_last else ()
        return Features(tokens, last, model.chain.finish(*states[-1]))

    def of(self, step: Step | Batch) -> Features:
        """Features of samples, on the device of their images; these are (B, 0) if all are kept."""
        images, ids = step.images, step.ids
        if self.cache is None:
            return self.compute(images)
        device = images.device
        held = self.cache.holds(ids)
        if held.all():
            return self._whole([x.to(device) for x in self.cache.fetch(ids)])
        flat = self._flat(self.compute(images[~held]))
        if held.any():
            kept = self.cache.fetch(ids[held])
            for i, (fresh, old) in enumerate(zip(flat, kept, strict=True)):
                joined = torch.empty(len(held), *fresh.shape[1:], device=device)
                joined[~held], joined[held] = fresh.float(), old.to(device)
                flat[i] = joined
        return self._whole(flat)

    def _flat(self, features: Features) -> list[Tensor]:
        """One tensor per thing that a head reads, and the final logits last."""
        self._shape = features.tokens
        flat: list[Tensor] = []
        for tokens in features.tokens:
            flat += [tokens.patches, tokens.prefix]
            flat += [x for x in (tokens.index, tokens.size) if x is not None]
        return [*flat, *features.last, features.final]

    def _whole(self, flat: list[Tensor]) -> Features:
        """The inverse of ``_flat``."""
        left = iter(flat)
        tokens = [
            replace(
                shape,
                patches=next(left),
                prefix=next(left),
                index=None if shape.index is None else next(left).to(shape.index.dtype),
                size=None if shape.size is None else next(left),
            )
            for shape in self._shape
        ]
        *last, final = left
        return Features(tokens, tuple(last), final)
