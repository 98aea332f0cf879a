"""One block of HTML: inline JSON, a still picture, and the way to its script."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Sphinx writes the way back to the book's root on <html data-content_root>, right at any depth and under file://.
# Outside the book (JupyterLab, GitHub) it is absent: nothing is fetched and the still picture stays.
_LOADER = """(function(d){var r=d.documentElement.dataset.content_root,k="KIND";if(r===undefined||
d.querySelector('script[data-fm="'+k+'"]'))return;var s=d.createElement("script"),c=d.createElement("link");
s.src=r+"_static/"+k+".js";s.dataset.fm=k;c.rel="stylesheet";c.href=r+"_static/explore.css";
c.onload=c.onerror=function(){d.head.appendChild(s)};d.head.appendChild(c)})(document)"""


@dataclass(frozen=True, repr=False)
class Block:
    """A piece of HTML that a notebook shows as the value of a cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{len(self.html.encode()) / 1000:.0f} kB of HTML, shown where the output is rendered>"


def to_json(data: Any) -> str:
    """Compact JSON; NaN is refused, since a browser could not read it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def make_block(kind: str, data: Mapping[str, Any], still: str) -> Block:
    """The HTML of one widget; `kind` names its script in `_static` and its style class."""
    text = to_json(data).replace("<", "\\u003c")  # a "</script>" in the data must not end the element
    name = f"fm-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Block(
        f'<div class="fm-embed fm-{kind}" id="{name}" data-fm="{kind}">'
        f'<script type="application/json">{text}</script>'
        f'<div class="fm-still">{still}</div>'
        f"<script>{_LOADER.replace('KIND', kind)}</script></div>"
    )
