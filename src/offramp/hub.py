"""Saving, loading and publishing a multi-exit model: safetensors, config.json and a model card."""

from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from pydantic import ValidationError
from torch import nn

from offramp.errors import OfframpError
from offramp.files import read_json, read_tensors, write_atomic, write_json, write_tensors
from offramp.model_card import model_card
from offramp.model_config import ModelConfig
from offramp.version import __version__

WEIGHTS, CONFIG, CARD, RECIPE, POINTS = (
    "model.safetensors",
    "config.json",
    "README.md",
    "recipe.yaml",
    "points",
)


class HubModel(nn.Module, ModelHubMixin, library_name="offramp", tags=["early-exit", "offramp"]):
    """What a multi-exit model gets from ``huggingface_hub``: save, load, push.

    Attributes:
        recipe: how the model was trained, as resolved, when known.
        points: operating points by name, in their JSON form.
        measured: evaluation of the operating points on held-out data, for the model card.
    """

    config: ModelConfig

    def __init__(self, backbone: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recipe: dict[str, Any] | None = None
        self.points: dict[str, dict[str, Any]] = {}
        self.measured: dict[str, Any] | None = None

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write weights, ``config.json``, card, recipe and operating points to a folder.

        Each file is written beside its place and renamed. With ``push_to_hub`` the folder is
        published under ``repo_id`` and the commit's address returned.
        """
        folder = Path(save_directory)
        self._save_pretrained(folder)
        if not push_to_hub:
            return None
        return str(self.push_to_hub(repo_id=repo_id or folder.name, **push_to_hub_kwargs))

    def _save_pretrained(self, save_directory: Path) -> None:
        write_tensors(
            save_directory / WEIGHTS,
            dict(self.state_dict()),
            {"format": "pt", "offramp": __version__},
        )
        for name, point in self.points.items():
            write_json(save_directory / POINTS / f"{name}.json", point)
        if self.recipe is not None:
            write_atomic(save_directory / RECIPE, yaml.safe_dump(self.recipe, sort_keys=False))
        write_atomic(save_directory / CARD, self.card())
        write_json(save_directory / CONFIG, self.config.model_dump(mode="json"))

    def card(self) -> str:
        """The model card as Markdown, with measured numbers where there are some."""
        return model_card(self.config, recipe=self.recipe, measured=self.measured)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder written by ``save_pretrained`` or from the Hub.

        Args:
            pretrained_model_name_or_path: folder, or Hub id ``owner/model``.
            kwargs: ``backbone=`` for a model whose backbone was given as an object;
                ``revision``, ``cache_dir``, ``token``, ``local_files_only`` for the Hub.

        Raises:
            OfframpError: naming the file or key that is missing, truncated or wrong.
        """
        backbone = kwargs.pop("backbone", None)
        folder = _fetch(str(pretrained_model_name_or_path), kwargs)
        return cls._from_folder(folder, backbone)

    @classmethod
    def _from_folder(cls, folder: Path, backbone: nn.Module | None) -> Self:
        from offramp.backbones import build_backbone

        config = read_config(folder)
        if config.external and backbone is None:
            raise OfframpError(
                f"{folder}: its backbone was given as an object; load it with backbone=…"
            )
        tensors = read_tensors(folder / WEIGHTS)
        module = backbone or build_backbone(
            config.backbone, num_classes=config.num_classes, arguments=config.backbone_args
        )
        model = cls(module, config)
        _load(model, tensors, folder / WEIGHTS)
        if (folder / RECIPE).is_file():
            model.recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        for file in sorted((folder / POINTS).glob("*.json")):
            model.points[file.stem] = read_json(file)
        return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """Read and check ``config.json`` of a saved model."""
    path = folder / CONFIG
    try:
        return ModelConfig.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise OfframpError(f"{path}: {key}: {first['msg']}") from None


def _load(model: nn.Module, tensors: dict[str, Any], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(set(expected) - set(tensors))
    unknown = sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise OfframpError(
            f"{path}: does not fit its config.json "
            f"(missing: {missing[:3] or 'none'}, unknown: {unknown[:3] or 'none'})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise OfframpError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"the model needs {tuple(expected[name].shape)}"
            )
    model.load_state_dict(tensors)


def _fetch(name: str, options: dict[str, Any]) -> Path:
    """A folder that holds the model: the given one, or the Hub's files in the local cache."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise OfframpError(f"{name}: no such folder (give a saved model or a Hub id owner/model)")
    try:
        path = hf_hub_download(name, CONFIG, **options)
        hf_hub_download(name, WEIGHTS, **options)
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise OfframpError(
            f"{name}: not a folder here and not to be had from the Hub ({first})"
        ) from None
    for optional in (RECIPE, CARD):
        try:
            hf_hub_download(name, optional, **options)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue
    return Path(path).parent
