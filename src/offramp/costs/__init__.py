"""Costs: MACs, latency, and the machine they were measured on; the unit is always in the name."""

from offramp.costs.environment import describe_environment, describe_hardware, describe_versions
from offramp.costs.macs import count_macs, model_costs
from offramp.costs.table import CostTable

__all__ = [
    "CostTable",
    "count_macs",
    "describe_environment",
    "describe_hardware",
    "describe_versions",
    "model_costs",
]
