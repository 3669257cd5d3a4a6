"""A cascade: whole models one behind the other, each asked only about images the last left open.

Wang et al., "Wisdom of Committees: An Overlooked Approach To Faster and More Accurate Models",
ICLR 2022, arXiv 2012.01988. Published for two plain models at equal accuracy (Lebovitz et al.,
"Efficient Inference With Model Cascades", TMLR 2023): ImageNet in 1.9× fewer multiply-accumulates
between 80 and 86 %, in 3.1× fewer above 86 %. One model at growing resolution is a cascade too.

Here is the network alone. Seen as a chain (`offramp.chains.cascade`) every member's end is an exit.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.errors import OfframpError

Size = tuple[int, int]
Norm = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel that images are normalised with."""


class Shared(NamedTuple):
    """A member that has another member's weights, but for those named in ``own``."""

    of: int
    own: tuple[str, ...] = ()


class Member(nn.Module):
    """A model of a cascade: the cascade's images (B, 3, H, W) → its logits (B, num_classes).

    Args:
        model: the model as it is.
        size: (H, W) it looks at.
        full: (H, W) of the cascade's images, which are made smaller here, antialiased.
        norm, given: what the model wants images normalised with, and what the cascade's are.
    """

    scale: Tensor | None
    shift: Tensor

    def __init__(
        self, model: nn.Module, size: Size, full: Size, norm: Norm | None, given: Norm | None
    ) -> None:
        super().__init__()
        self.model, self.size, self.resizes = model, size, size != full
        scale = shift = None
        if norm is not None and given is not None and norm != given:
            (mean, std), (had_mean, had_std) = (map(torch.tensor, pair) for pair in (norm, given))
            scale, shift = (
                v[None, :, None, None] for v in (had_std / std, (had_mean - mean) / std)
            )
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """The cascade's images as this model wants them: its size, its mean and deviation."""
        if self.resizes:
            # in float32: not every device resizes smaller types
            resized = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
            images = resized.to(images.dtype)
        return images if self.scale is None else images * self.scale + self.shift

    def forward(self, images: Tensor) -> Tensor:
        answer = self.model(self.prepare(images))
        return getattr(answer, "logits", answer)  # transformers' models answer with more


class Cascade(nn.Module):
    """Whole models in the order they are asked, from the cheapest to the best.

    Called as a module it asks every one of them and answers as the last, or with the mean of all
    logits. Images come at the largest member's size, normalised as that member wants them.

    Args:
        models: at least two image classifiers with the same classes.
        sizes: pixels each looks at, one number or (H, W).
        average: answer with the mean of the logits of the models asked so far.
        norms: mean and deviation each wants; all the same when omitted.
        shared: per model, whose weights it has (one model at several sizes); None: its own.

    Attributes:
        image_size: (H, W) of the images it takes.
        lead: number of the member whose size and normalisation these are.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        sizes: Sequence[int | Sequence[int]],
        *,
        average: bool = False,
        norms: Sequence[Norm] | None = None,
        shared: Sequence[Shared | None] | None = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise OfframpError(f"a cascade of {len(models)} models, but it needs two at least")
        if len(sizes) != len(models):
            raise OfframpError(f"{len(models)} models, but sizes for {len(sizes)} of them")
        pairs = [_pair(size) for size in sizes]
        wanted: list[Norm | None] = list(norms) if norms else [None] * len(models)
        self.average = average
        self.shared = tuple(shared or [None] * len(models))
        self.lead = max(range(len(models)), key=lambda m: (math.prod(pairs[m]), m))
        self.image_size, self.norm = pairs[self.lead], wanted[self.lead]
        for m, twin in enumerate(self.shared):
            if twin is not None:
                share(models[m], models[self._owner(m, twin)], twin.own)
        self.members = nn.ModuleList(
            Member(model, size, self.image_size, norm, self.norm)
            for model, size, norm in zip(models, pairs, wanted, strict=True)
        )
        self.in_chans = _channels(models[self.lead])
        # a weight that two members share is stored once, with its owner
        self.register_state_dict_post_hook(_leave_out_twins)
        self.register_load_state_dict_pre_hook(_fill_in_twins)

    def _owner(self, m: int, twin: Shared) -> int:
        if twin.of == m or not 0 <= twin.of < len(self.shared) or self.shared[twin.of] is not None:
            raise OfframpError(
                f"members[{m}].shares = {twin.of}, but it must be the number of another member "
                "that has weights of its own"
            )
        return twin.of

    def twins(self) -> dict[str, str]:
        """State keys of members that share weights → those of the weights' owners."""
        found: dict[str, str] = {}
        for m, twin in enumerate(self.shared):
            if twin is not None:
                model: Any = self.members[m].model
                names = [name for name in model.state_dict() if name not in twin.own]
                found |= {_key(m, name): _key(twin.of, name) for name in names}
        return found

    def forward(self, images: Tensor) -> Tensor:
        total = self.members[0](images)
        for member in self.members[1:]:
            logits = member(images)
            total = total + logits if self.average else logits
        return total / len(self.members) if self.average else total


def share(twin: nn.Module, owner: nn.Module, own: Collection[str] = ()) -> None:
    """Give ``twin`` the owner's parameters and buffers themselves, but for those named in ``own``.

    Raises:
        OfframpError: when the two are not the same network.
    """
    theirs = owner.state_dict()
    for name, tensor in twin.state_dict().items():
        if name in own:
            continue
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise OfframpError(
                f"{type(twin).__name__} cannot share {name!r} with {type(owner).__name__}: "
                "it is of another shape there (name it in own)"
            )
        place, _, leaf = name.rpartition(".")
        module, source = twin.get_submodule(place), owner.get_submodule(place)
        kept = module._parameters if leaf in module._parameters else module._buffers
        kept[leaf] = getattr(source, leaf)


def _key(m: int, name: str) -> str:
    return f"members.{m}.model.{name}"


def _leave_out_twins(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for twin in module.twins():
        state.pop(prefix + twin, None)


def _fill_in_twins(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for twin, owner in module.twins().items():
        if prefix + owner in state:
            state[prefix + twin] = state[prefix + owner]


def _pair(size: int | Sequence[int]) -> Size:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _channels(model: nn.Module) -> int:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


class MemberSpec(BaseModel):
    """A member as ``backbone_args.members`` of a saved cascade or a recipe describes it."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(description="timm name")
    arguments: dict[str, Any] = Field(default={}, description="of timm.create_model")
    image_size: int | tuple[int, int] | None = Field(default=None, description="pixels")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    shares: int | None = Field(default=None, description="number of the member whose weights")
    own: list[str] = Field(default=[], description="weights it does not share, by name")


@register_model
def cascade(
    pretrained: bool = False,
    *,
    members: Sequence[Any] = (),
    average: bool = False,
    num_classes: int | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
) -> Cascade:
    """Whole models one behind the other.

    Args:
        pretrained: build every member with timm's weights for it.
        members: `MemberSpec`s, or mappings with their fields, in the order they are asked.
        average: as for `Cascade`.
        num_classes: classes of every member; None keeps their own.
    """
    from offramp.backbones import build_backbone, preprocessing_of
    from offramp.chains import chain

    if pretrained_cfg_overlay:
        raise OfframpError("a cascade has no weights file of its own: pretrained is true or false")
    specs = [_spec(i, given) for i, given in enumerate(members)]
    models, sizes, norms = [], [], []
    for spec in specs:
        model = build_backbone(
            spec.backbone,
            num_classes=num_classes,
            pretrained=pretrained,
            image_size=spec.image_size,
            arguments=spec.arguments,
        )
        known = preprocessing_of(chain(model, image_size=spec.image_size))
        models.append(model)
        sizes.append(known.image_size)
        norms.append((spec.mean or known.mean, spec.std or known.std))
    shared = [None if s.shares is None else Shared(s.shares, tuple(s.own)) for s in specs]
    return Cascade(models, sizes, average=average, norms=norms, shared=shared)


def _spec(number: int, given: Any) -> MemberSpec:
    try:
        return MemberSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("members", str(number), *map(str, first["loc"])))
        raise OfframpError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
