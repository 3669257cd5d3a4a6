"""Frontier: static models timed in one run, and a dynamic model placed among them."""

from offramp.frontier.candidates import DEFAULT_MODELS
from offramp.frontier.measuring import measure_frontier
from offramp.frontier.result import Entry, Frontier, Verdict

__all__ = ["DEFAULT_MODELS", "Entry", "Frontier", "Verdict", "measure_frontier"]
