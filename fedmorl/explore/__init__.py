"""The CW/N explorer: one point by simulation and theory, a grid of points, and the live view for JupyterLab.

`compute` and `grid` are plain functions. `Explorer` needs ipywidgets and a running notebook.
"""

from typing import TYPE_CHECKING, Any

from fedmorl.explore.configuration import Configuration, label_of_load
from fedmorl.explore.grids import grid
from fedmorl.explore.learned import offered
from fedmorl.explore.points import METRICS, Estimate, Result, compute
from fedmorl.explore.predictions import best_fixed_window
from fedmorl.explore.sendings import captures, who_sends

if TYPE_CHECKING:
    from fedmorl.explore.view import Explorer

__all__ = [
    "METRICS",
    "Configuration",
    "Estimate",
    "Explorer",
    "Result",
    "best_fixed_window",
    "captures",
    "compute",
    "grid",
    "label_of_load",
    "offered",
    "who_sends",
]


def __getattr__(name: str) -> Any:
    """The live view loads ipywidgets, which a computation does not need: only on request."""
    if name == "Explorer":
        from fedmorl.explore.view import Explorer

        return Explorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
