"""A backbone seen as ``embed → step → … → step → finish``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.registry import Registry


class Chain(nn.Module, ABC):
    """A backbone as a chain of steps, bound to one image size.

    ``finish(steps(embed(images)))`` equals ``whole(images)`` bit for bit on CPU. The chain owns
    nothing but the backbone: its steps are views of the backbone's blocks, so training, moving and
    saving act on the one original module.
    """

    schema: Schema
    image_size: tuple[int, int]
    in_chans: int
    num_classes: int

    def __init__(self, backbone: nn.Module, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self._views = tuple(steps)  # a tuple is not registered: parameters are listed once

    @property
    def whole(self) -> nn.Module:
        """The unmodified backbone as images → logits, to compare with and to measure against.

        It is the backbone itself, unless that answers with more than logits.
        """
        return self.backbone

    @property
    def baseline(self) -> nn.Module:
        """What savings are stated against: `whole`, unless the chain adds whole models to it."""
        return self.whole

    @property
    def undivided(self) -> nn.Module:
        """What the steps compute together, in one piece: `whole`, unless they leave tokens out."""
        return self.whole

    @property
    def full_blocks(self) -> int:
        """Blocks of the baseline, which layer speed-ups are stated against."""
        return len(self)

    @property
    def input_defaults(self) -> dict[str, Any]:
        """What the backbone expects of images, as far as it says: timm's mean, std, crop_pct …"""
        return getattr(self.backbone, "pretrained_cfg", None) or {}

    @property
    def steps(self) -> tuple[nn.Module, ...]:
        """The steps in order; each maps ``(*state) -> state``."""
        return self._views

    def __len__(self) -> int:
        return len(self._views)

    @abstractmethod
    def embed(self, images: Tensor) -> State:
        """Images (B, 3, H, W) → the first state."""

    @abstractmethod
    def finish(self, *state: Tensor) -> Tensor:
        """The last state → logits (B, num_classes)."""

    def classify(self, *state: Tensor) -> Tensor:
        """``finish`` without the final norm, which LGViT's released teacher leaves out."""
        raise OfframpError(f"{type(self.backbone).__name__} has no final norm to leave out")

    @abstractmethod
    def tokens(self, state: State, step: int) -> Tokens:
        """What a head after step ``step`` (0-based) reads."""

    @abstractmethod
    def token_spec(self, step: int) -> TokenSpec:
        """Shape of the tokens after step ``step`` (0-based)."""

    def exit_spec(self, step: int) -> TokenSpec:
        """`token_spec` with attention heads, for exits that are a block of the backbone's shape.

        In a pyramid every stage has heads as wide as those of the last block, as far as they divide
        its tokens.
        """
        spec = self.token_spec(step)
        if self.attention_heads == 1:  # what chains without attention say
            return spec
        full = self.token_spec(len(self) - 1).width
        most = max(1, self.attention_heads * spec.width // full)
        return spec._replace(heads=max(h for h in range(1, most + 1) if spec.width % h == 0))

    def schema_after(self, step: int) -> Schema:
        """Names of the state's tensors after step ``step`` (0-based; -1: after the embedding)."""
        return self.schema

    def place(self, step: int) -> str:
        """What people call the place behind step ``step`` (0-based)."""
        return f"block {step + 1}"

    @property
    def classifier_heads(self) -> int:
        """How many classifiers the backbone averages (2 for distilled models)."""
        return 1

    @property
    def attention_heads(self) -> int:
        """Heads of the backbone's attention, for exits that are a block of its own shape."""
        return 1

    def forward(self, images: Tensor) -> Tensor:
        state = self.embed(images)
        for step in self.steps:
            state = step(*state)
        return self.finish(*state)


class Family:
    """A family of backbones: how to recognise a member and how to see it as a chain."""

    def __init__(
        self,
        summary: str,
        matches: Callable[[nn.Module], bool],
        build: Callable[[nn.Module, tuple[int, int] | None], Chain],
    ) -> None:
        self.__doc__ = summary
        self.matches = matches
        self.build = build


FAMILIES: Registry[Family] = Registry("backbone family")


def descends(model: nn.Module, package: str, *names: str) -> bool:
    """Whether the model's class, or one it derives from, is a class of ``package`` so named.

    Nothing is imported: a library that is not installed cannot have made the model.
    """
    kinds = type(model).__mro__
    return any(k.__name__ in names and f"{k.__module__}.".startswith(f"{package}.") for k in kinds)


def chain(model: nn.Module, *, image_size: int | tuple[int, int] | None = None) -> Chain:
    """See a backbone as a chain of steps.

    Args:
        model: the backbone, for instance from ``timm.create_model``.
        image_size: pixels, one number or (H, W); only for backbones built for any size.

    Raises:
        OfframpError: when no registered family recognises the model.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        if family.matches(model):
            return family.build(model, size)
    raise OfframpError(
        f"{type(model).__name__} is no backbone Offramp can see as a chain "
        f"(families: {', '.join(FAMILIES.names())}; offramp list models names their members, "
        "CONTRIBUTING.md shows how to add one)"
    )
