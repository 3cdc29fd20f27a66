"""A whole network as one op call: how it is recorded, and the module that runs it."""

from fastdw.plan.network import PlannedNetwork
from fastdw.plan.record import NotPlannable, Recording

__all__ = ["NotPlannable", "PlannedNetwork", "Recording"]
