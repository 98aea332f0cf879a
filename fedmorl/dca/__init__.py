"""The shared channel: distributed channel access (DCA), simulated and in closed form."""

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

__all__ = [
    "AC_BE",
    "AC_VI",
    "AC_VO",
    "CSMA_CA",
    "CSMA_ECA",
    "PRESETS",
    "ConstantRate",
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
