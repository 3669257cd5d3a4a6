"""Comparison: trained runs and policies on one data set, at equal cost and at equal accuracy."""

from offramp.comparison.curve import Curve, trace_curve
from offramp.comparison.result import Comparison, Method, Spread
from offramp.comparison.table import compare

__all__ = ["Comparison", "Curve", "Method", "Spread", "compare", "trace_curve"]
