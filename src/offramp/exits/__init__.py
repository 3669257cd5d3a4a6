"""Heads that may answer early: one file per family."""

from offramp.exits import (  # fills the registry
    certainty,
    gated,
    lgvit,
    linear,
    member,
    mevit,
    mevit_cnn,
    mevit_mixing,
    sdn,
    sl_vit,
    ztw,
)
from offramp.exits.exit import (
    EXITS,
    WRAPPERS,
    Exit,
    Outputs,
    build_exit,
    register_exit,
    register_wrapper,
)
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
    "WRAPPERS",
    "Exit",
    "ExitSpec",
    "Outputs",
    "build_exit",
    "certainty",
    "check_positions",
    "equal_cost_positions",
    "expand_layout",
    "gated",
    "lgvit",
    "linear",
    "member",
    "mevit",
    "mevit_cnn",
    "mevit_mixing",
    "register_exit",
    "register_layout",
    "register_wrapper",
    "sdn",
    "sl_vit",
    "ztw",
]
