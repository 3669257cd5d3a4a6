"""Fewer tokens in a chain's steps: one file per method."""

from offramp.chains.reduced import ReducedChain, Reducer, TokenMap
from offramp.reducers import diffrate, dynamicvit, evit, evo_vit, tome  # fills the registry
from offramp.reducers.reducer import (
    REDUCERS,
    ReducerSpec,
    build_reducer,
    reduced,
    register_reducer,
)
from offramp.reducers.token_map import kept_tokens

__all__ = [
    "REDUCERS",
    "ReducedChain",
    "Reducer",
    "ReducerSpec",
    "TokenMap",
    "build_reducer",
    "diffrate",
    "dynamicvit",
    "evit",
    "evo_vit",
    "kept_tokens",
    "reduced",
    "register_reducer",
    "tome",
]
