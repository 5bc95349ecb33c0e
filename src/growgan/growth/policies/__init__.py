"""Policies: which growths to try, and which children to keep. One file each."""

from growgan.growth.policies.base import POLICIES, GrowthPolicy, Selection, make_policy
from growgan.growth.policies.dynamic import Dynamic
from growgan.growth.policies.fixed import Fixed
from growgan.growth.policies.plateau import Plateau
from growgan.growth.policies.progressive import Progressive
from growgan.growth.policies.random import RandomGrowth

__all__ = [
    "POLICIES",
    "Dynamic",
    "Fixed",
    "GrowthPolicy",
    "Plateau",
    "Progressive",
    "RandomGrowth",
    "Selection",
    "make_policy",
]
