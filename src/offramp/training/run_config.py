"""A recipe file: the complete, validated description of a run."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    model_validator,
)

from offramp.chains.tapped import Tap
from offramp.creation import create
from offramp.data import DataSource
from offramp.errors import OfframpError
from offramp.exits import ExitSpec
from offramp.model import MultiExitModel
from offramp.model_config import Preprocessing
from offramp.own_weights import load_run_heads
from offramp.reducers import ReducerSpec
from offramp.training.recipe import RECIPES, Recipe


class ModelSection(BaseModel):
    """The backbone."""

    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(description="timm model name")
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    image_size: int | tuple[int, int] | None = Field(default=None, description="pixels")
    pretrained: bool | str = Field(
        default=False,
        description="true, or the path of local weights, or the folder of a finished run",
    )
    reducer: ReducerSpec | None = Field(default=None, description="what leaves tokens out")
    preprocessing: Preprocessing | None = None
    task: Literal["classification", "regression"] | None = Field(
        default=None, description="what the data set asks for when omitted"
    )
    smooth_l1: float = Field(
        default=0.0,
        ge=0,
        description="regression: errors below so many standard deviations count squared; 0: L1",
    )


class ExitsSection(BaseModel):
    """The early heads: a layout's or head's name with its places, or a list."""

    model_config = ConfigDict(extra="forbid")

    layout: str = "lgvit"
    count: int | None = Field(default=None, description="exits, placed at equal MACs")
    at: list[int] | None = Field(default=None, description="1-based blocks")
    tap: Tap = Field(default="block", description="what heads read: block, attention or ffn")
    options: dict[str, Any] = Field(
        default_factory=dict, description="of every head, over the layout's own"
    )
    pretrained: str | None = Field(
        default=None, description="the folder of a finished run whose heads these start from"
    )


class DataSection(BaseModel):
    """The data set and how its splits are cut."""

    model_config = ConfigDict(extra="forbid")

    name: str
    calibration: float = Field(default=0.06, gt=0, lt=1, description="share cut from train")
    validation: float = Field(default=0.04, gt=0, lt=1, description="share cut from train")
    limit: int | None = Field(default=None, gt=0, description="at most so many samples a split")
    options: dict[str, Any] = Field(default_factory=dict, description="the data set's own")


_SECTION, _LIST = "<layout>", "<list>"  # how pydantic names the two forms in its errors


class RunConfig(BaseModel):
    """Everything a run needs; the YAML file mirrors it key by key."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str = Field(description="the run's folder")
    model: ModelSection
    exits: Annotated[
        Annotated[ExitsSection, Tag(_SECTION)] | Annotated[list[ExitSpec], Tag(_LIST)],
        Discriminator(lambda given: _LIST if isinstance(given, list) else _SECTION),
    ] = Field(default_factory=ExitsSection)
    data: DataSection
    recipe: SerializeAsAny[Recipe]
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    workers: int = Field(default=0, ge=0, description="data loading processes")
    checkpoint_minutes: float = Field(default=5.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _pick_recipe(cls, values: Any) -> Any:
        """``recipe: {name: lgvit, …}`` → the registered recipe with those options."""
        if isinstance(values, dict) and isinstance(values.get("recipe"), dict):
            options = dict(values["recipe"])
            name = options.pop("name", None)
            if name is None:
                raise OfframpError(f"recipe.name is missing (known: {', '.join(RECIPES.names())})")
            values = {**values, "recipe": validated(RECIPES.get(name), options, "recipe.")}
        return values

    def dump(self) -> dict[str, Any]:
        """The resolved description, as written to ``recipe.yaml``."""
        values = self.model_dump(mode="json")
        name = next(n for n in RECIPES.names() if RECIPES.get(n) is type(self.recipe))
        values["recipe"] = {"name": name, **values["recipe"]}
        return values

    def build(self, data: DataSource) -> MultiExitModel:
        """Build the untrained (or pretrained) model for this data set."""
        if self.model.task not in (None, data.task):
            raise OfframpError(
                f"model.task = {self.model.task}, but {data.name} is data for {data.task}"
            )
        target, classes = data.target, data.classes
        if target is not None:
            target = target.model_copy(update={"smooth": self.model.smooth_l1})
        elif self.model.smooth_l1:
            raise OfframpError(
                f"model.smooth_l1 is for regression, but {data.name} is data for {data.task}"
            )
        section = self.exits
        named = section if isinstance(section, ExitsSection) else None
        model = create(
            self.model.backbone,
            exits=section if isinstance(section, list) else section.layout,
            count=named.count if named else None,
            at=named.at if named else None,
            tap=named.tap if named else "block",
            options=named.options if named else None,
            num_classes=len(classes),
            pretrained=self.model.pretrained,
            image_size=self.model.image_size,
            backbone_args=self.model.backbone_args,
            reducer=self.model.reducer,
            labels=list(classes),
            preprocessing=self.model.preprocessing,
            task=data.task,
            target=target,
        )
        if named and named.pretrained:
            load_run_heads(model.exits, Path(named.pretrained).expanduser())
        return model


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a recipe file and apply ``key.sub=value`` overrides (values are YAML).

    Raises:
        OfframpError: naming the file, the key and what is accepted.
    """
    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OfframpError(f"{file}: no such recipe file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OfframpError(f"{file}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise OfframpError(f"{file}: a recipe is a mapping of keys to values")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise OfframpError(f"{override!r} is no override (write key=value, e.g. seed=1)")
        *parents, leaf = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise OfframpError(f"override {key!r}: {parent!r} holds no keys")
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise OfframpError(f"override {key!r}: {text!r} is not valid YAML") from None
    try:
        return validated(RunConfig, values, "")
    except OfframpError as error:
        raise OfframpError(f"{file}: {error}") from None


def validated(kind: type[BaseModel], values: Any, prefix: str) -> Any:
    """Validate ``values`` as ``kind``, turning the first complaint into one sentence."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part not in (_SECTION, _LIST)]
        key = prefix + ".".join(path)
        if first["type"] == "extra_forbidden":
            known = _keys_at(kind, path[:-1])
            close = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise OfframpError(f"unknown key {key} ({hint}known: {', '.join(known)})") from None
        given = f", but it is {first['input']!r}" if first["type"] != "missing" else ""
        raise OfframpError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}{given}") from None


def _keys_at(kind: Any, path: list[str]) -> list[str]:
    """Field names of the model found by following ``path`` from ``kind``."""
    for part in path:
        field = getattr(kind, "model_fields", {}).get(part)
        if field is None:
            continue  # a list index or the name of a union's member
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        kind = next((o for o in options if hasattr(o, "model_fields")), kind)
    return sorted(getattr(kind, "model_fields", {}))
