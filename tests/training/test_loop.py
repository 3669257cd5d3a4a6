"""The loop: resuming repeats an uninterrupted run, schedules and averages do what they say."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from offramp.errors import OfframpError
from offramp.files import read_tensors
from offramp.runs import train_run
from offramp.training.checkpoint import CHECKPOINT, read_position
from offramp.training.metrics import read_metrics
from offramp.training.run_config import RunConfig, validated
from offramp.training.stage_run import OutOfTimeError


def config(**changes: Any) -> RunConfig:
    stage = {"epochs": 2, "batch_size": 64, "lr": 1e-3, "sched": "cosine", "warmup_epochs": 0.5}
    values = {
        "name": "tiny",
        "model": {
            "backbone": "deit_tiny_patch16_224",
            "image_size": 8,
            "backbone_args": {
                "patch_size": 2,
                "embed_dim": 32,
                "depth": 4,
                "num_heads": 2,
                "drop_path_rate": 0.2,
                "proj_drop_rate": 0.1,
            },
        },
        "exits": {"layout": "lgvit", "at": [1, 3]},
        "data": {"name": "digits", "limit": 320},
        "recipe": {
            "name": "lgvit",
            "finetune": {**stage, "epochs": 1},
            "end_to_end": {**stage, "augment": {"pad_crop": 1, "mixup": 0.4}, "ema_decay": 0.9},
            "self_distillation": stage,
        },
        "device": "cpu",
    }
    return validated(RunConfig, {**values, **changes}, "")


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    metrics = [{k: v for k, v in m.items() if k != "seconds"} for m in read_metrics(run)]
    return read_tensors(run / "model.safetensors"), metrics


def assert_same(first: Path, second: Path) -> None:
    weights, metrics = outcome(first)
    again, entries = outcome(second)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert metrics == entries


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_run(config(), run, progress=False)
    return run


def test_a_finished_run_is_complete(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    expected = {"config.json", "model.safetensors", "recipe.yaml", "metrics.jsonl", "README.md"}
    assert expected <= names
    assert CHECKPOINT not in names
    assert [m["stage"] for m in read_metrics(uninterrupted)] == [
        "finetune",
        "end_to_end",
        "end_to_end",
        "self_distillation",
        "self_distillation",
    ]


def test_same_seed_same_run(uninterrupted: Path, tmp_path: Path) -> None:
    train_run(config(), tmp_path / "again", progress=False)
    assert_same(uninterrupted, tmp_path / "again")
    train_run(config(seed=1), tmp_path / "other", progress=False)
    other = read_tensors(tmp_path / "other" / "model.safetensors")
    weights = read_tensors(uninterrupted / "model.safetensors")
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


def test_stopping_after_every_step_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    """``minutes=0`` stops after one step each time; 24 resumptions end like no interruption."""
    run, stops = tmp_path / "pieces", 0
    while True:
        try:
            train_run(config(), run, resume=True, minutes=0, progress=False)
            break
        except OutOfTimeError:
            stops += 1
    assert stops > 15
    assert_same(uninterrupted, run)


@pytest.mark.parametrize("stage", [1, 2])
def test_kill_9_and_resume_ends_like_no_interruption(
    stage: int, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config(checkpoint_minutes=1e-6).dump()))
    run = tmp_path / "killed"
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from offramp.runs import train_run\n"
        "from offramp.training.run_config import load_run_config\n"
        "train_run(load_run_config(sys.argv[1]), sys.argv[2], resume=True, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(recipe), str(run)])
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            position = None
            with contextlib.suppress(OfframpError):  # the file is replaced while it is opened
                position = read_position(run)
            if position is not None and position.stage >= stage and position.step >= 2:
                break
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    position = read_position(run)
    assert position is not None
    assert position.stage == stage
    assert not (run / "config.json").exists()
    # the other process wrote its recipe with another checkpoint interval: same recipe section
    train_run(config(), run, resume=True, progress=False)
    assert_same(uninterrupted, run)


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutOfTimeError):
        train_run(config(), run, minutes=0, progress=False)
    with pytest.raises(OfframpError, match="go on with --resume"):
        train_run(config(), run, progress=False)
    other = config(recipe={"name": "joint", "joint": {"epochs": 1}})
    with pytest.raises(OfframpError, match="written by another recipe"):
        train_run(other, run, resume=True, progress=False)


def test_a_finished_run_is_not_overwritten(uninterrupted: Path) -> None:
    before = (uninterrupted / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OfframpError, match="already holds a finished run"):
        train_run(config(), uninterrupted, progress=False)
    train_run(config(), uninterrupted, resume=True, progress=False)
    assert (uninterrupted / "model.safetensors").stat().st_mtime_ns == before


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutOfTimeError):
        train_run(config(), run, minutes=0, progress=False)
    path = run / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OfframpError, match=r"checkpoint\.safetensors: not a complete"):
        train_run(config(), run, resume=True, progress=False)


def test_schedules_warm_up_and_decay() -> None:
    from offramp.training.recipe import StageSettings
    from offramp.training.schedule import learning_rates

    for sched, half in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        settings = StageSettings(epochs=10, lr=0.1, sched=sched, warmup_epochs=1)
        schedule = learning_rates(optimizer, settings, 100)
        rates = {}
        for update in (0, 50, 100, 500, 999):
            schedule.step_update(update)
            rates[update] = optimizer.param_groups[0]["lr"]
        assert rates[0] < rates[50] < 0.1
        assert rates[500] == pytest.approx(0.1 * half, rel=0.12)
        assert rates[999] == pytest.approx(0.1 if sched == "constant" else 0.0, abs=2e-3)


def test_rates_fall_at_milestones() -> None:
    from offramp.training.recipe import StageSettings
    from offramp.training.schedule import learning_rates

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    settings = StageSettings(epochs=10, lr=0.1, sched="step", milestones=[0.5, 0.75])
    schedule = learning_rates(optimizer, settings, 100)
    for update, rate in ((0, 0.1), (499, 0.1), (500, 0.01), (749, 0.01), (750, 1e-3), (999, 1e-3)):
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    for wrong in ([0.8, 0.2], [0.0], [1.0]):
        with pytest.raises(ValueError, match="shares of the stage in rising order"):
            StageSettings(milestones=wrong)


def test_batch_larger_than_the_split_is_refused(tmp_path: Path) -> None:
    recipe = {"name": "finetune", "finetune": {"epochs": 1, "batch_size": 999}}
    with pytest.raises(OfframpError, match=r"batch_size = 999 .* has 320 samples"):
        train_run(config(recipe=recipe), tmp_path / "run", progress=False)


def test_bf16_trains_too(tmp_path: Path) -> None:
    recipe = {"name": "joint", "joint": {"epochs": 1, "batch_size": 64, "lr": 1e-3}}
    train_run(config(recipe=recipe, precision="bf16"), tmp_path / "run", progress=False)
    weights, metrics = outcome(tmp_path / "run")
    assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())
    assert 0 < metrics[0]["loss"] < 3
