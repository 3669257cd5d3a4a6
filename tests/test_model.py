"""MultiExitModel: segments, saving and loading, and errors when things do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import offramp
from offramp.chains import Tokens
from offramp.errors import OfframpError
from offramp.exits import Exit, Outputs, build_exit
from offramp.exits.exit import Carry
from offramp.model import MultiExitModel
from tiny import TINY, tiny_model


def run_segments(model: MultiExitModel, images: Tensor, **options: Any) -> dict[int, Tensor]:
    inputs: tuple[Tensor, ...] = (images,)
    said = {}
    for segment in model.segments(**options):
        inputs, outputs = segment(*inputs)
        said[segment.exit_index] = outputs[0]
    assert inputs == ()
    return said


@torch.no_grad()
def test_segments_joined_equal_the_whole_model(model: MultiExitModel, images: Tensor) -> None:
    whole = [outputs[0] for outputs in model(images)]
    assert len(whole) == model.num_exits == 4
    assert torch.equal(whole[-1], model.backbone(images))
    assert all(torch.equal(whole[k], z) for k, z in run_segments(model, images).items())


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 2)))
def test_any_active_exits_say_what_they_say_in_the_whole_model(active: set[int]) -> None:
    model, images = tiny_model(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        whole = [outputs[0] for outputs in model(images)]
        said = run_segments(model, images, active=sorted(active))
        fast = run_segments(model, images, active=sorted(active), inference=True)
    assert set(said) == active | {3}
    for k in said:
        assert torch.equal(said[k], whole[k])
        torch.testing.assert_close(fast[k], whole[k], atol=2e-5, rtol=1e-4)


def test_inference_segments_leave_the_model_alone(model: MultiExitModel) -> None:
    before = model.fingerprint()
    model.train()
    model.segments(inference=True)
    assert model.exits.training
    assert model.fingerprint() == before
    assert all(p.requires_grad for p in model.parameters())


def test_positions_names_and_blocks(model: MultiExitModel) -> None:
    assert model.positions == (1, 2, 3)
    assert model.exit_names == ["block 1", "block 2", "block 3", "final"]
    assert model.blocks == (1, 2, 3, 4)
    assert model.standalone == [True] * 4


@pytest.mark.parametrize("active", [[3], [-1], [0, 7]])
def test_unknown_active_exits_are_refused(active: list[int], model: MultiExitModel) -> None:
    with pytest.raises(OfframpError, match=r"does not exist \(early exits: 0…2\)"):
        model.segments(active)


class _Cascade(Exit):
    """Adds the previous exit's logits, which ride in the carry."""

    standalone = False

    def __init__(self, model: MultiExitModel, after: int) -> None:
        spec = model.chain.token_spec(after)
        super().__init__(spec, 10)
        self.head = build_exit("linear", spec, 10)

    def read(self, tokens: Tokens) -> Outputs:
        return self.head.read(tokens)

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[Outputs, Carry]:
        logits = self.read(tokens).logits
        logits = logits + carry[0] if carry else logits
        return Outputs(logits), (logits,)


@torch.no_grad()
def test_carry_rides_in_the_state_and_is_compacted_with_it(images: Tensor) -> None:
    model = tiny_model("linear")
    for k in range(3):
        model.exits[k] = _Cascade(model, k).eval()
    whole = [outputs[0] for outputs in model(images)]
    segments = model.segments()
    state, _ = segments[0](images)
    assert len(state) == 2
    keep = torch.tensor([3, 1])
    state, outputs = segments[1](*(t.index_select(0, keep) for t in state))
    torch.testing.assert_close(outputs[0], whole[1][keep], atol=1e-5, rtol=1e-4)
    assert torch.equal(whole[-1], model.backbone(images))
    with pytest.raises(OfframpError, match="depends on every exit before it"):
        model.segments([1, 2])
    assert len(model.segments([0, 1])) == 3


def test_save_and_load_give_the_same_outputs(tmp_path: Path, images: Tensor) -> None:
    model = tiny_model()
    model.recipe = {"name": "x"}
    model.points = {"half": {"accuracy": 50.0}}
    model.measured = {
        "dataset": "digits",
        "split": "test",
        "samples": 7,
        "rows": [{"name": "final", "accuracy": 91.25, "layers": 1.0, "macs": 1.0}],
    }
    model.save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    with torch.no_grad():
        for before, after in zip(model(images), again(images), strict=True):
            assert torch.equal(before[0], after[0])
    assert again.fingerprint() == model.fingerprint()
    assert again.recipe == {"name": "x"}
    assert again.points == {"half": {"accuracy": 50.0}}
    assert not again.training
    card = (tmp_path / "README.md").read_text()
    assert "91.25 %" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "offramp"
    assert offramp.load(tmp_path).config == model.config


def test_model_object_needs_itself_again(tmp_path: Path, images: Tensor) -> None:
    arguments = {"img_size": 32, "num_classes": 10, **TINY}
    backbone = timm.create_model("deit_tiny_patch16_224", **arguments).eval()
    model = offramp.create(backbone, exits="linear", at=[2]).eval()
    assert torch.equal(model(images)[-1][0], backbone(images))
    model.save_pretrained(tmp_path)
    with pytest.raises(OfframpError, match="given as an object; load it with backbone="):
        MultiExitModel.from_pretrained(tmp_path)
    other = timm.create_model("deit_tiny_patch16_224", **arguments)
    again = MultiExitModel.from_pretrained(tmp_path, backbone=other)
    assert torch.equal(again(images)[0][0], model(images)[0][0])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def rename_key(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["exits"][0]["aftr"] = config["exits"][0].pop("after")
    (folder / "config.json").write_text(json.dumps(config))


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_classes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = 11
    (folder / "config.json").write_text(json.dumps(config))


def fewer_exits(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["exits"][0]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lose_weights, r"model\.safetensors: no such file"),
        (truncate, r"model\.safetensors: not a complete safetensors file"),
        (rename_key, r"config\.json: exits\.0\.after"),
        (not_json, r"config\.json: not valid JSON"),
        (other_classes, r"has shape \(10.*needs \(11"),
        (fewer_exits, r"does not fit its config\.json"),
    ],
)
def test_damaged_models_are_named(damage: Any, sentence: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(OfframpError, match=sentence):
        MultiExitModel.from_pretrained(tmp_path)


def test_places_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OfframpError, match="no such folder"):
        MultiExitModel.from_pretrained("./nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfframpError, match="nobody/nothing: not a folder here"):
        MultiExitModel.from_pretrained(
            "nobody/nothing", cache_dir=str(tmp_path), local_files_only=True
        )


def test_pushing_uploads_the_saved_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, folder_path: Any, repo_id: str, **kwargs: Any) -> str:
            uploaded[repo_id] = sorted(p.name for p in Path(folder_path).iterdir())
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    tiny_model().save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/model")
    assert uploaded == {"someone/model": ["README.md", "config.json", "model.safetensors"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"backbone": "deit_tinny_patch16_224"}, r"unknown model.*did you mean 'deit_tiny_patch16"),
        ({"exits": "lgvt"}, r"unknown exit 'lgvt' \(did you mean 'lgvit'"),
        ({"exits": [{"after": 14, "head": "lph"}]}, r"exits\[0\]\.after = 14, but .* has 4 blocks"),
        ({"exits": [{"after": 4, "head": "lph"}]}, r"use 1…3"),
        ({"exits": [{"after": 1, "head": "lph"}] * 2}, "stands twice"),
        ({"exits": [{"after": 1, "head": "hlp"}]}, "unknown exit 'hlp'"),
        ({"num_classes": 0}, "has no classifier"),
        ({"count": 9}, "room for 1…3"),
        ({"count": 2, "at": [1]}, r"count = 2, but at = \[1\]"),
        ({"exits": [{"after": 1, "head": "lph"}], "count": 1}, "not with a list of exits"),
        ({"pretrained": "nowhere.safetensors"}, r"nowhere\.safetensors: no such file"),
        ({"backbone_args": {"patch": 3}}, "cannot be built"),
    ],
)
def test_impossible_models_are_named(arguments: dict[str, Any], sentence: str) -> None:
    values: dict[str, Any] = {
        "backbone": "deit_tiny_patch16_224",
        "num_classes": 10,
        "image_size": 32,
        "backbone_args": TINY,
    } | arguments
    with pytest.raises(OfframpError, match=sentence):
        offramp.create(values.pop("backbone"), **values)


def test_wrong_class_count_is_named() -> None:
    backbone = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10, **TINY)
    with pytest.raises(OfframpError, match=r"num_classes = 7, but .* has 10"):
        offramp.create(backbone, num_classes=7)


def test_pretrained_from_a_local_file_at_another_size_and_class_count(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=1000, **TINY)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = offramp.create(
        "deit_tiny_patch16_224",
        exits="lgvit",
        num_classes=7,
        image_size=32,
        pretrained=tmp_path / "weights.safetensors",
        backbone_args=TINY,
    )
    state = model.backbone.state_dict()
    assert torch.equal(state["blocks.2.mlp.fc1.weight"], source.blocks[2].mlp.fc1.weight)
    assert state["pos_embed"].shape == (1, 17, 48)
    assert state["head.weight"].shape == (7, 48)


def test_missing_pretrained_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfframpError, match=r"no weights for deit_tiny.*pretrained = PATH"):
        offramp.create(
            "deit_tiny_patch16_224", pretrained=True, backbone_args={"cache_dir": tmp_path}
        )


def test_fingerprint_names_weights_and_architecture() -> None:
    model = tiny_model()
    assert model.fingerprint() == tiny_model().fingerprint()
    assert model.fingerprint() != tiny_model(seed=1).fingerprint()
    with torch.no_grad():
        model.exits[0].classifiers.heads[0].bias[0] += 1e-3
    assert model.fingerprint() != tiny_model().fingerprint()
