"""One machine == many: two processes of half a batch train like one of a whole batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from offramp.files import read_tensors
from offramp.training.metrics import read_metrics


def recipe(tmp_path: Path, name: str, batch_size: int, options: dict[str, Any]) -> Path:
    stage = {"epochs": 2, "batch_size": batch_size, "lr": 1e-3}
    path = tmp_path / f"{name}.yaml"
    values = {
        "name": name,
        "model": {
            "backbone": "deit_tiny_patch16_224",
            "image_size": 8,
            "backbone_args": {"patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 2},
        },
        "exits": {"layout": options.pop("exits"), "at": [1, 3]},
        "data": {"name": "digits", "limit": 256},
        "recipe": {key: stage if value is None else value for key, value in options.items()},
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(values))
    return path


def train(path: Path, processes: int) -> Path:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*command, "-m", "offramp.cli.main", "train", path, "--runs", path.parent / "runs"],
        check=True,
        env=environment,
        timeout=300,
    )
    return path.parent / "runs" / path.stem


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = train(recipe(tmp_path, "one", 64, {"exits": "linear", "name": "joint", "joint": None}), 1)
    two = train(recipe(tmp_path, "two", 32, {"exits": "linear", "name": "joint", "joint": None}), 2)
    expected = read_tensors(one / "model.safetensors")
    for name, tensor in read_tensors(two / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-3, rtol=2e-2)
    for first, second in zip(read_metrics(one), read_metrics(two), strict=True):
        assert first["step"] == second["step"]


@pytest.mark.slow
def test_alternating_steps_train_on_two_processes(tmp_path: Path) -> None:
    options = {"exits": "lgvit", "name": "lgvit", "end_to_end": None, "self_distillation": None}
    run = train(recipe(tmp_path, "lgvit", 32, options), 2)
    assert [entry["stage"] for entry in read_metrics(run)] == [
        "end_to_end",
        "end_to_end",
        "self_distillation",
        "self_distillation",
    ]
