"""Cascades of trained models: put together, searched for, and written as runs."""

from offramp.cascades.build import cascade
from offramp.cascades.pool import Pool, joined
from offramp.cascades.search import Plan, as_document, best_plan, search

__all__ = ["Plan", "Pool", "as_document", "best_plan", "cascade", "joined", "search"]
