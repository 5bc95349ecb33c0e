"""Growth policies, one per file: which growths to try, and which candidates to keep."""

from growgan.search.policies.base import (
    POLICIES,
    ConfigurablePolicy,
    GrowthPolicy,
    Selection,
    make_policy,
)
from growgan.search.policies.dynamic import DynamicPolicy
from growgan.search.policies.fixed import FixedPolicy
from growgan.search.policies.plateau import PlateauPolicy
from growgan.search.policies.progressive import ProgressivePolicy
from growgan.search.policies.random import RandomPolicy

__all__ = [
    "POLICIES",
    "ConfigurablePolicy",
    "DynamicPolicy",
    "FixedPolicy",
    "GrowthPolicy",
    "PlateauPolicy",
    "ProgressivePolicy",
    "RandomPolicy",
    "Selection",
    "make_policy",
]
