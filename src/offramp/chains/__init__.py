"""Backbones as chains of steps: one file per family."""

from offramp.chains import vit  # fills the registry
from offramp.chains.chain import FAMILIES, Chain, Family, chain
from offramp.chains.state import Schema, State, Tokens, TokenSpec

__all__ = ["FAMILIES", "Chain", "Family", "Schema", "State", "TokenSpec", "Tokens", "chain", "vit"]
