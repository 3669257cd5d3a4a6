"""Heads that may answer early: one file per family."""

from offramp.exits import lgvit, linear  # fills the registry
from offramp.exits.exit import EXITS, Exit, Outputs, build_exit, register_exit
from offramp.exits.layout import (
    LAYOUTS,
    ExitSpec,
    check_positions,
    equal_cost_positions,
    expand_layout,
    register_layout,
)

__all__ = [
    "EXITS",
    "LAYOUTS",
    "Exit",
    "ExitSpec",
    "Outputs",
    "build_exit",
    "check_positions",
    "equal_cost_positions",
    "expand_layout",
    "lgvit",
    "linear",
    "register_exit",
    "register_layout",
]
