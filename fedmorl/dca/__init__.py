"""The shared channel: distributed channel access (DCA), simulated and in closed form."""

from typing import TYPE_CHECKING, Any

from fedmorl.dca.metrics import Metrics, Trace
from fedmorl.dca.policy import MLPPolicy, Policy
from fedmorl.dca.scenario import (
    AC_BE,
    AC_VI,
    AC_VO,
    CSMA_CA,
    CSMA_ECA,
    PRESETS,
    ConstantRate,
    Poisson,
    Saturated,
    Scenario,
    Station,
)
from fedmorl.dca.simulate import Replications, Simulation, replicate, simulate

if TYPE_CHECKING:
    from fedmorl.dca.env import BatchedEnv, DCAParallelEnv

__all__ = [
    "AC_BE",
    "AC_VI",
    "AC_VO",
    "CSMA_CA",
    "CSMA_ECA",
    "PRESETS",
    "BatchedEnv",
    "ConstantRate",
    "DCAParallelEnv",
    "MLPPolicy",
    "Metrics",
    "Poisson",
    "Policy",
    "Replications",
    "Saturated",
    "Scenario",
    "Simulation",
    "Station",
    "Trace",
    "replicate",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """The environments load PettingZoo, which a simulation does not need: only on request."""
    if name in ("BatchedEnv", "DCAParallelEnv"):
        from fedmorl.dca import env

        return getattr(env, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
