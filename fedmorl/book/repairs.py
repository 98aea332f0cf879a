"""What the tools get wrong in the finished HTML, mended in place."""

import html
import re
from pathlib import Path

# 1.5 MB that draws the icons a second time: the style sheet and its web fonts draw them already
_ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*vendor/fontawesome/[^"]*\.js[^"]*"></script>')
_ICON_FONT_AHEAD = re.compile(r'\s*<link rel="preload"[^>]*/fa-(?:brands|regular)-[^>]*>')
_ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:{1,2}before,?)+)\{content:"[^"]*"\}')
_TABLE_BOX = '<div class="pst-scrollable-table-container"'
_BEFORE_THE_END = re.compile(r'<footer class="prev-next-footer')


def repair(folder: Path, title: str, root_page: str, footer: str) -> None:
    """Mend every page in `folder`; `footer` is the provenance line of pages that have no source.

    * sphinxcontrib-bibtex fills an element of role `list` with the deprecated role `doc-biblioentry`, which
      assistive technology reads as a list without items; they become list items.
    * The icon script goes, see above; so do fonts of icons that are fetched ahead and never shown, and the
      style rules of the two thousand icons that no page names.
    * A wide table scrolls in a box of its own on a small screen; the box becomes reachable by keyboard.
    * The search page, which Sphinx makes by itself, gets the provenance line that every page ends with.
    * `index.html` becomes a whole page that leads to the first one, with a title, a language and a link.
    """
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue
        before = path.read_text(encoding="utf-8")
        text = _ICON_FONT_AHEAD.sub("", _ICON_SCRIPT.sub("", before))
        text = text.replace('role="doc-biblioentry"', 'role="listitem"')
        text = text.replace(_TABLE_BOX, f'{_TABLE_BOX} tabindex="0"')
        if path.name == "search.html":
            text = _BEFORE_THE_END.sub(lambda found: footer + found.group(), text, count=1)
        if text != before:
            path.write_text(text, encoding="utf-8")
    _drop_unused_icons(folder)
    if root_page != "index":
        (folder / "index.html").write_text(_entrance(title, root_page, footer), encoding="utf-8")


def _drop_unused_icons(folder: Path) -> None:
    """Keep of Font Awesome's style sheet the rules of icons whose names occur in a page or script."""
    sources = [path for pattern in ("*.html", "*.js") for path in folder.rglob(pattern) if "vendor" not in path.parts]
    named = {name for path in sources for name in re.findall(r"\bfa-[\w-]+", path.read_text(encoding="utf-8"))}
    for sheet in folder.glob("_static/vendor/fontawesome/*/css/all.min.css"):
        text = sheet.read_text(encoding="utf-8")
        kept = _ICON_RULE.sub(lambda rule: rule.group() if _icons(rule.group(1)) & named else "", text)
        sheet.write_text(kept, encoding="utf-8")


def _icons(selector: str) -> set[str]:
    return set(re.findall(r"fa-[\w-]+(?=:)", selector))


def _entrance(title: str, root_page: str, footer: str) -> str:
    name, target = html.escape(title), html.escape(f"{root_page}.html")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={target}">
<title>{name}</title>
</head>
<body>
<main>
<h1>{name}</h1>
<p><a href="{target}">Open the book</a></p>
{footer}
</main>
</body>
</html>
"""
