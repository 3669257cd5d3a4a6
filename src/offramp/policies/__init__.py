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
from offramp.policies.patience import Patience
from offramp.policies.threshold import Confidence, Entropy, Margin, ThresholdPolicy

__all__ = [
    "POLICIES",
    "Confidence",
    "Entropy",
    "ExitOutputs",
    "Margin",
    "Memory",
    "Patience",
    "Policy",
    "ScalarPolicy",
    "ThresholdPolicy",
    "policy_from_config",
    "register_policy",
]
