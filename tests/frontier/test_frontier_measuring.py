"""Timing in turns, static models on engines, published figures."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import offramp
from offramp.data import batches
from offramp.errors import OfframpError
from offramp.frontier import DEFAULT_MODELS, measure_frontier
from offramp.frontier.candidates import static_candidates
from offramp.frontier.measuring import using_threads
from offramp.runtime.contest import Contender, contest
from offramp.runtime.static import static_program
from offramp.zoo.published import published, table

SMALL = "cct_2_3x2_32"


class Counting(nn.Module):
    """Notes every batch it is given, under its name."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, images: Tensor) -> Tensor:
        self.log.append((self.name, len(images)))
        return images


def test_contenders_take_turns_in_changing_order() -> None:
    log: list[tuple[str, int]] = []
    ticks: list[None] = []
    contenders = {
        name: Contender(Counting(name, log), [torch.zeros(2, 3, 4, 4)] * 3) for name in "abc"
    }
    times = contest(contenders, rounds=4, warmup=1, advance=lambda: ticks.append(None))
    assert {name: len(taken) for name, taken in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(ms > 0 for taken in times.values() for ms in taken)
    assert len(ticks) == 15
    # a turn is one unmeasured batch and three others, without anybody in between
    turns = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert all(turn == [turn[0]] * 4 for turn in turns)
    rounds = [tuple(turn[0][0] for turn in turns[i : i + 3]) for i in range(0, 15, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_time_is_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("offramp.costs.clock.perf_counter", lambda: next(clock))
    once = Contender(lambda x: x, [torch.zeros(5, 1)] * 2)
    assert contest({"a": once}, rounds=2) == {"a": [100.0, 100.0]}  # 1 s for 10 images
    with pytest.raises(OfframpError, match="a: timing needs at least one batch"):
        contest({"a": Contender(lambda x: x, [])})


@pytest.mark.parametrize(
    "engine", ["torch", "openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)]
)
def test_a_static_model_runs_on_every_engine(engine: str) -> None:
    if engine != "torch":
        pytest.importorskip(engine)
    torch.manual_seed(0)
    model = timm.create_model(SMALL, depth=1, embed_dim=32).train()
    program = static_program(model, (32, 32), engine, "float32")
    assert model.training
    x = torch.randn(3, 3, 32, 32)
    for images in (x, x[:1]):
        with torch.no_grad():
            torch.testing.assert_close(program(images), model.eval()(images), atol=1e-4, rtol=1e-3)
    with pytest.raises(OfframpError, match="does not compute in 'int3'"):
        static_program(model, (32, 32), engine, "int3")


def test_everybody_meets_on_every_engine() -> None:
    turns: list[int] = []

    def starting(count: int) -> object:
        turns.append(count)
        return lambda: turns.append(-1)

    found = measure_frontier(
        [SMALL, "cct_4_3x2_*"], images=5, batch_size=2, rounds=3, threads=1, starting=starting
    )
    assert [entry.name for entry in found.entries] == [SMALL, "cct_4_3x2_32"]
    assert [entry.parameters for entry in found.entries] == [283_723, 482_123]
    assert all(len(entry.rounds_ms) == 3 and entry.ms > 0 for entry in found.entries)
    assert found.entries[0].image_size == (32, 32)
    assert found.entries[0].macs == pytest.approx(0.0353e9, rel=0.01)
    assert found.entries[0].accuracy is None
    assert found.environment["hardware"]["threads"] == 1
    assert turns == [8, *[-1] * 8]


def test_an_engine_may_name_its_precision() -> None:
    found = measure_frontier([SMALL], engines=["torch", "torch:bf16"], images=1, rounds=1)
    assert found.engines == ["torch", "torch:bf16"]
    assert [entry.precision for entry in found.entries] == ["float32", "bfloat16"]
    with pytest.raises(OfframpError, match="does not compute in 'int3'"):
        measure_frontier([SMALL], engines=["torch:int3"])


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(OfframpError, match="batch size 9, but 8 images"):
        measure_frontier([SMALL], batch_size=9, images=8)
    with pytest.raises(OfframpError, match="unknown engine 'torhc'"):
        measure_frontier([SMALL], engines=["torhc"])
    with pytest.raises(OfframpError, match=r"no model matches 'nothing\*'"):
        measure_frontier(["nothing*"])
    with pytest.raises(OfframpError, match="unknown model 'cct_2_3x2_33'"):
        measure_frontier(["cct_2_3x2_33"])


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with using_threads(None):
        assert torch.get_num_threads() == before


def test_published_figures_fit_the_models() -> None:
    known = set(timm.list_models())
    for row in table().models:
        assert row.model in known, row
        assert row.source in table().sources
        assert 50 < row.top1 < 95
        assert published(f"{row.model}.{row.tag}", (row.image_size,) * 2) is not None
    weights = [(row.model, row.tag) for row in table().models]
    assert len(set(weights)) == len(weights)
    for name in DEFAULT_MODELS:
        config = timm.get_pretrained_cfg(name)
        assert published(name, config.input_size[-2:]) is not None, name


def test_published_figures_by_name_tag_and_size() -> None:
    found = published("levit_192", (224, 224))
    assert found is not None
    assert (found.accuracy, found.weights) == (79.86, "levit_192.fb_dist_in1k")
    assert "timm" in found.source
    base = "swin_base_patch4_window7_224"
    assert published(f"{base}.ms_in22k_ft_in1k", (224, 224)).accuracy == 85.28
    assert published(base, (224, 224)).accuracy == 83.60
    assert published("levit_192", (256, 256)) is None
    assert published("levit_192.mine", (224, 224)) is None
    assert published("resnet50", (224, 224)) is None


def test_the_published_file_is_one_model_a_line() -> None:
    text = files("offramp.zoo").joinpath("published.json").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if '"top1"' in line]
    assert len(lines) == len(json.loads(text)["models"])


def saved(folder: Path, classes: int) -> tuple[str, nn.Module]:
    """A tiny ViT with weights, as a name timm can load, and itself."""
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **arguments).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": classes,
        "model_args": arguments,
        "pretrained_cfg": {"num_classes": classes, "input_size": [3, 16, 16], "classifier": "head"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}", model


def test_named_models_are_evaluated_on_data(tmp_path: Path) -> None:
    data = offramp.open_dataset("digits-grid", limit=64)
    name, model = saved(tmp_path / "ten", 10)
    (found,) = static_candidates([name], data, "test", progress=False)
    right = 0
    preprocessing = offramp.create(model, exits=[]).preprocessing
    for batch in batches(data.split("test"), batch_size=32, preprocessing=preprocessing):
        right += int((model(batch.images).argmax(-1) == batch.labels).sum())
    assert found.accuracy == pytest.approx(100 * right / 64)
    assert (found.task, found.image_size) == ("digits-grid, test split", (16, 16))
    other, _ = saved(tmp_path / "seven", 7)
    with pytest.raises(OfframpError, match="10 classes, but the model has 7"):
        static_candidates([other], data, "test", progress=False)
