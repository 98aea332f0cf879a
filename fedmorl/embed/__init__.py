"""HTML blocks for the rendered book: the timeline player, the kernel-free explorer and the claims ledger.

`timeline`, `explorer` and `claims_ledger` end a notebook cell. Their `Block` holds the data as inline JSON (so it works
from `file://`), a still picture or a table, and a few lines that fetch style and script from the book's own `_static`
folder.
"""

from fedmorl.embed.block import Block
from fedmorl.embed.claims import claims_ledger
from fedmorl.embed.explorer import METRICS, channel_bounds, explorer, explorer_grid
from fedmorl.embed.replay import timeline_steps
from fedmorl.embed.timeline import timeline

__all__ = [
    "METRICS",
    "Block",
    "channel_bounds",
    "claims_ledger",
    "explorer",
    "explorer_grid",
    "timeline",
    "timeline_steps",
]
