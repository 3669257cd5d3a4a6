"""Recipe files: validated key by key, with errors for the person who wrote them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.training import RECIPES, recipes
from offramp.training.run_config import load_run_config
from tiny import tiny_model

GOOD: dict[str, Any] = {
    "name": "x",
    "model": {"backbone": "deit_tiny_patch16_224", "image_size": 32},
    "data": {"name": "digits"},
    "recipe": {"name": "lgvit"},
}
FILES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sead": 1}, r"recipe\.yaml: unknown key sead \(did you mean 'seed'\?"),
        ({"model": {"backbon": "x"}}, r"unknown key model\.backbon|model\.backbone"),
        ({"recipe": {"name": "lgvti"}}, r"unknown recipe 'lgvti' \(did you mean 'lgvit'\?"),
        ({"recipe": {"strategy": "normal"}}, r"recipe\.name is missing"),
        (
            {"recipe": {"name": "lgvit", "end_to_end": {"epoch": 3}}},
            r"unknown key recipe\.end_to_end\.epoch \(did you mean 'epochs'\?",
        ),
        (
            {"recipe": {"name": "lgvit", "end_to_end": {"lr": -1}}},
            r"recipe\.end_to_end\.lr: input should be greater than 0, but it is -1",
        ),
        ({"precision": "fp64"}, r"precision: input should be 'fp32' or 'bf16', but it is 'fp64'"),
        ({"data": {}}, r"data\.name: field required"),
        ({"exits": {"layuot": "lgvit"}}, r"layuot.*layout"),
    ],
)
def test_bad_recipes_are_named(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=sentence) as caught:
        load_run_config(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(OfframpError, match="no such recipe file"):
        load_run_config(path)
    path.write_text("a: [")
    with pytest.raises(OfframpError, match=r"x\.yaml: not valid YAML"):
        load_run_config(path)
    path.write_text("- 1")
    with pytest.raises(OfframpError, match="a mapping"):
        load_run_config(path)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path)
    config = load_run_config(
        path, ["seed=3", "recipe.end_to_end.lr=1e-3", "model.pretrained=true", "exits.at=[4, 8]"]
    )
    assert config.seed == 3
    assert config.model.pretrained is True
    assert config.dump()["recipe"]["end_to_end"]["lr"] == 1e-3
    assert config.dump()["exits"]["at"] == [4, 8]
    for override, sentence in (("seed", "key=value"), ("name.a=1", "'name' holds no keys")):
        with pytest.raises(OfframpError, match=sentence):
            load_run_config(path, [override])


def test_a_section_changes_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, recipe={"name": "jei_dnn", "joint": {"epochs": 3}})
    recipe = load_run_config(path, ["recipe.joint.lr=0.5"]).dump()["recipe"]
    own = RECIPES.get("jei_dnn")().model_dump()["joint"]
    assert own["optimizer"] == "momentum"  # not the optimizer of other recipes
    assert recipe["joint"] == own | {"epochs": 3, "lr": 0.5}


def test_exits_start_from_those_of_a_run(tmp_path: Path) -> None:
    small = {"embed_dim": 24, "depth": 6, "num_heads": 3}
    model = GOOD["model"] | {"backbone_args": small}
    linear: dict[str, Any] = {"layout": "linear", "at": [2, 4]}
    data = open_dataset("digits")
    run = tmp_path / "run"
    given = load_run_config(write(tmp_path, model=model, exits=linear)).build(data)
    given.save_pretrained(run)

    fewer = model | {"pretrained": str(run), "reducer": {"name": "evit", "keep": 0.7}}
    goes_on = write(tmp_path, model=fewer, exits=linear | {"pretrained": str(run)})
    found = load_run_config(goes_on).build(data).state_dict()
    assert all(found[name].equal(tensor) for name, tensor in given.state_dict().items())

    other = {"layout": "linear", "at": [2, 4, 5], "pretrained": str(run)}
    with pytest.raises(OfframpError, match=r"its exits are others \(exits\.2\."):
        load_run_config(write(tmp_path, model=fewer, exits=other)).build(data)
    nowhere = linear | {"pretrained": str(tmp_path / "none")}
    with pytest.raises(OfframpError, match=r"none.*no such file"):
        load_run_config(write(tmp_path, model=model, exits=nowhere)).build(data)


def test_options_are_for_every_head(tmp_path: Path) -> None:
    small = {"embed_dim": 24, "depth": 6, "num_heads": 3}
    model, data = GOOD["model"] | {"backbone_args": small}, open_dataset("digits")
    section = {"layout": "lph", "at": [2, 4], "options": {"norm": True, "kernel": 5}}
    path = write(tmp_path, model=model, exits=section)
    heads = load_run_config(path, ["exits.options.lte=true"]).build(data).config.exits
    assert [head.options for head in heads] == [{"kernel": 5, "norm": True, "lte": True}] * 2
    with pytest.raises(OfframpError, match=r"exit 'lph' has no option 'kernle'"):
        load_run_config(path, ["exits.options.kernle=3"]).build(data)


def test_every_recipe_is_registered() -> None:
    folder = Path(recipes.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    homes = {RECIPES.get(name).__module__.rpartition(".")[2] for name in RECIPES.names()}
    assert files == homes


def test_what_is_dumped_is_read_again(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, exits=[{"after": 2, "head": "linear"}]))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(config.dump()))
    assert load_run_config(path).dump() == config.dump()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_recipes_are_valid(path: Path) -> None:
    config = load_run_config(path)
    assert config.recipe.stages(tiny_model("linear"))
    assert path.read_text().startswith(f"# offramp train recipes/{path.name}")
