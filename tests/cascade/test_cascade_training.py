"""Exits inside a cascade are trained by the usual recipes."""

import copy

import pytest
import torch
from cascade_pairs import big, small

import offramp
from offramp.data import open_dataset
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.training import StageSettings


@pytest.mark.parametrize(
    ("recipe", "options", "trains"),
    [
        ("frozen", {"heads": {"epochs": 1, "batch_size": 8, "lr": 1e-3}}, "exits."),
        ("frozen", {"heads": {"epochs": 1, "batch_size": 8}, "cache_gb": 0.1}, "exits."),
        ("joint", {"joint": {"epochs": 1, "batch_size": 8, "lr": 1e-3}}, "chain."),
    ],
    ids=["frozen", "cached", "joint"],
)
def test_exits_inside_members_learn(recipe: str, options: dict, trains: str) -> None:
    model: MultiExitModel = offramp.cascade([small(), big()], average=True)
    before = copy.deepcopy(model.state_dict())
    settings = {
        key: StageSettings(**value) if isinstance(value, dict) else value
        for key, value in options.items()
    }
    data = open_dataset("digits", limit=16)
    fit(model, recipe=recipe, data=data, progress=False, device="cpu", **settings)
    after = model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    heads = {key for key in after if key.startswith("exits.")}
    assert heads <= moved
    members = {key.split(".")[3] for key in moved - heads}
    assert members == ({"0", "1"} if trains == "chain." else set())
