"""When to stop: one file per family, pure functions on what the exits said."""

from offramp.policies.base import (
    POLICIES,
    ExitOutputs,
    Memory,
    Policy,
    ScalarPolicy,
    policy_from_config,
    register_policy,
)
from offramp.policies.best_of import BestOf
from offramp.policies.boosted import Boosted
from offramp.policies.budgeted import Budgeted
from offramp.policies.ensemble import Arithmetic, Ensemble, Geometric
from offramp.policies.jei_dnn import Gated
from offramp.policies.learned import Learned
from offramp.policies.path import PathPolicy
from offramp.policies.patience import Patience
from offramp.policies.pcee import PCEE
from offramp.policies.settled import Settled
from offramp.policies.stopping import Stopping
from offramp.policies.threshold import (
    Confidence,
    Entropy,
    Margin,
    NormalisedEntropy,
    SoftmaxPolicy,
    ThresholdPolicy,
)
from offramp.policies.thresholded import Thresholded
from offramp.policies.voting import Voting

__all__ = [
    "PCEE",
    "POLICIES",
    "Arithmetic",
    "BestOf",
    "Boosted",
    "Budgeted",
    "Confidence",
    "Ensemble",
    "Entropy",
    "ExitOutputs",
    "Gated",
    "Geometric",
    "Learned",
    "Margin",
    "Memory",
    "NormalisedEntropy",
    "PathPolicy",
    "Patience",
    "Policy",
    "ScalarPolicy",
    "Settled",
    "SoftmaxPolicy",
    "Stopping",
    "ThresholdPolicy",
    "Thresholded",
    "Voting",
    "policy_from_config",
    "register_policy",
]
