"""HTML blocks for the rendered book: the timeline player and the kernel-free explorer.

`timeline` and `explorer` end a notebook cell. Their `Block` holds the data as inline JSON (so it works from
`file://`), a still picture, and a few lines that fetch style and script from the book's own `_static` folder.
"""

from fedmorl.embed.block import Block
from fedmorl.embed.explorer import METRICS, channel_bounds, explorer, explorer_grid
from fedmorl.embed.replay import timeline_steps
from fedmorl.embed.timeline import timeline

__all__ = ["METRICS", "Block", "channel_bounds", "explorer", "explorer_grid", "timeline", "timeline_steps"]
