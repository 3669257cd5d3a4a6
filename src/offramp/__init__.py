"""Dynamic inference for transformers: exits that save time, thresholds that keep a promise.

The public verbs are functions of the package; they and the rooms behind them are imported when
first used, so ``import offramp`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from offramp.version import __version__

if TYPE_CHECKING:
    from offramp.calibration import OperatingPoint, Records, calibrate, evaluate
    from offramp.cascades import cascade
    from offramp.chains import Chain
    from offramp.chains.chain import chain
    from offramp.creation import create
    from offramp.data import open_dataset
    from offramp.errors import OfframpError
    from offramp.exits import ExitSpec, register_exit
    from offramp.fitting import fit
    from offramp.model import MultiExitModel, load
    from offramp.policies import register_policy
    from offramp.recording import collect
    from offramp.runtime import Runner
    from offramp.runtime import compile_runner as compile
    from offramp.runtime.bundle import export_bundle, load_bundle
    from offramp.shared import SharedBackbone

_HOMES = {
    "Chain": "chains",
    "ExitSpec": "exits",
    "MultiExitModel": "model",
    "OfframpError": "errors",
    "OperatingPoint": "calibration",
    "Records": "calibration",
    "Runner": "runtime",
    "SharedBackbone": "shared",
    "calibrate": "calibration",
    "cascade": "cascades",
    "chain": "chains",
    "collect": "recording",
    "compile": "runtime:compile_runner",
    "create": "creation",
    "evaluate": "calibration",
    "export_bundle": "runtime.bundle",
    "fit": "fitting",
    "load": "model",
    "load_bundle": "runtime.bundle",
    "open_dataset": "data",
    "register_exit": "exits",
    "register_policy": "policies",
}

__all__ = [
    "Chain",
    "ExitSpec",
    "MultiExitModel",
    "OfframpError",
    "OperatingPoint",
    "Records",
    "Runner",
    "SharedBackbone",
    "__version__",
    "calibrate",
    "cascade",
    "chain",
    "collect",
    "compile",
    "create",
    "evaluate",
    "export_bundle",
    "fit",
    "load",
    "load_bundle",
    "open_dataset",
    "register_exit",
    "register_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    room, _, original = _HOMES[name].partition(":")
    value = getattr(import_module(f"offramp.{room}"), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
