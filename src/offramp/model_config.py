"""What is needed to build a multi-exit model again, and how its images are prepared."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.exits.layout import ExitSpec
from offramp.reducers.reducer import ReducerSpec
from offramp.tasks import Target


class Preprocessing(BaseModel):
    """How an image becomes the network's input."""

    model_config = ConfigDict(extra="forbid")

    image_size: tuple[int, int] = Field(description="height and width in pixels")
    mean: tuple[float, float, float] = Field(description="per channel, of values in 0…1")
    std: tuple[float, float, float] = Field(description="per channel, of values in 0…1")
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop_pct: float = Field(default=1.0, gt=0, le=1, description="side kept by the centre crop")


class ModelConfig(BaseModel):
    """A multi-exit model's description, saved as ``config.json``."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(description="timm name, also hf-hub:… or local-dir:…")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of timm.create_model"
    )
    external: bool = Field(
        default=False, description="the backbone was given as an object, not built by name"
    )
    num_classes: int = Field(gt=0, description="outputs of an exit; one in regression")
    exits: list[ExitSpec]
    reducer: ReducerSpec | None = Field(default=None, description="what leaves tokens out")
    preprocessing: Preprocessing
    labels: list[str] | None = Field(
        default=None, description="class names by index; in regression what the number counts"
    )
    task: Literal["classification", "regression"] = "classification"
    target: Target | None = Field(default=None, description="unit of a regression's outputs")

    @property
    def sources(self) -> list[str]:
        """Names of the networks it is made of: its backbone, or the members of a cascade."""
        members = self.backbone_args.get("members") or [{"backbone": self.backbone}]
        return list(dict.fromkeys(member["backbone"] for member in members))

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.task == "regression" and self.num_classes != 1:
            raise ValueError(f"a regression model has one output, not {self.num_classes}")
        if self.task != "regression" and self.target is not None:
            raise ValueError(f"target belongs to regression, not to {self.task}")
        return self
