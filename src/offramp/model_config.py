"""What is needed to build a multi-exit model again, and how its images are prepared."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from offramp.exits.layout import ExitSpec


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
    num_classes: int = Field(gt=0)
    exits: list[ExitSpec]
    preprocessing: Preprocessing
    labels: list[str] | None = Field(default=None, description="class names, by index")
    task: Literal["classification"] = "classification"
