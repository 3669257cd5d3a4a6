"""Drift watch: does live data still look like what an operating point's promise was made on?"""

from offramp.monitor.log import append_live, read_live
from offramp.monitor.reference import Reference
from offramp.monitor.verdict import Verdict
from offramp.monitor.watch import Watch

__all__ = ["Reference", "Verdict", "Watch", "append_live", "read_live"]
