"""The machine and the versions a measurement belongs to; never names of hosts, people, paths."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    "offramp",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "accelerate",
    "safetensors",
    "openvino",
    "nncf",
    "onnxruntime",
)


def describe_hardware() -> dict[str, Any]:
    """CPU, cores, threads, memory and GPUs, as JSON-able values."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python, Offramp and the libraries a result depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_environment() -> dict[str, Any]:
    """Hardware and versions together: what a committed result carries."""
    return {"hardware": describe_hardware(), "versions": describe_versions()}


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Marketing name of the CPU, or the architecture where nothing tells."""
    if cpuinfo.is_file():
        match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip():
            return answer.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on (a container often gets fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Physical memory in GiB, or None where the system does not tell."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 2**30, 1)
