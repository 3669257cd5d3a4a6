"""From records to operating points: temperatures, threshold search, promises and their proof."""

from offramp.calibration.budget import budgeted_thresholds
from offramp.calibration.choice import block_costs, calibrate
from offramp.calibration.collection import record, records_meta
from offramp.calibration.dynamic import DynamicSearch
from offramp.calibration.evaluation import Evaluation, evaluate, paired_interval
from offramp.calibration.front import FrontPoint, StaticPoint, static_points
from offramp.calibration.oracle import oracle, oracle_front
from offramp.calibration.point import OperatingPoint
from offramp.calibration.promise import Promise
from offramp.calibration.records import Records
from offramp.calibration.records_meta import RecordsMeta
from offramp.calibration.reliability import Reliability, reliability
from offramp.calibration.replay import Decisions, replay
from offramp.calibration.temperature import fit_temperatures
from offramp.calibration.wish import Wish

__all__ = [
    "Decisions",
    "DynamicSearch",
    "Evaluation",
    "FrontPoint",
    "OperatingPoint",
    "Promise",
    "Records",
    "RecordsMeta",
    "Reliability",
    "StaticPoint",
    "Wish",
    "block_costs",
    "budgeted_thresholds",
    "calibrate",
    "evaluate",
    "fit_temperatures",
    "oracle",
    "oracle_front",
    "paired_interval",
    "record",
    "records_meta",
    "reliability",
    "replay",
    "static_points",
]
