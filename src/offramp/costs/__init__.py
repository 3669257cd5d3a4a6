"""Costs: MACs, latency, and the machine they were measured on; the unit is always in the name."""
