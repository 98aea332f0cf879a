"""What the finished HTML must hold, page by page; each finding is one sentence that begins with the page.

The checks read files only. What needs a browser (maths rendered, requests, console, contrast) is in
`tests/test_browser.py`.
"""

import json
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

MAX_PAGE_BYTES = 1_500_000  # one page with all that it loads, MathJax aside
MAX_BOOK_BYTES = 30_000_000
MATHJAX = "vendor/mathjax/"

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "embed": "src", "video": "src"}
_LOADED_LINKS = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "prefetch", "manifest"}
_CSS_URL = re.compile(r"(?:url\(|@import)\s*['\"]?(https?:)?//", re.IGNORECASE)


class Site:
    """The pages of one HTML folder, each parsed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {
            path.relative_to(folder).as_posix(): BeautifulSoup(path.read_bytes(), "html.parser")
            for path in sorted(folder.rglob("*.html"))
            if "_static" not in path.relative_to(folder).parts
        }
        self.anchors = {name: _anchors(soup) for name, soup in self.pages.items()}


def check(folder: Path, documents: list[str]) -> list[str]:
    """All findings for the HTML in `folder`, whose table of contents lists `documents` (no suffix)."""
    missing = [f"{name}.html was not built" for name in documents if not (folder / f"{name}.html").is_file()]
    site = Site(folder)
    findings = list(missing)
    for name, soup in site.pages.items():
        findings += [f"{name}: {text}" for text in _page_findings(site, name, soup)]
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MAX_BOOK_BYTES:
        findings.append(f"the book weighs {total / 1e6:.1f} MB; the limit is {MAX_BOOK_BYTES / 1e6:.0f} MB")
    return findings


def _page_findings(site: Site, name: str, soup: BeautifulSoup) -> Iterator[str]:
    yield from _external(soup)
    yield from _images(soup)
    yield from _links(site, name, soup)
    if not soup.select(".provenance"):
        yield "no provenance footer; end the notebook with `footer(seed=seed)` from fedmorl.provenance"
    weight = page_bytes(site.folder, name, soup)
    if weight > MAX_PAGE_BYTES:
        limit = MAX_PAGE_BYTES / 1e6
        yield f"weighs {weight / 1e6:.2f} MB with what it loads, MathJax aside; the limit is {limit:g} MB"


def loaded(soup: BeautifulSoup) -> Iterator[str]:
    """Addresses that a browser fetches by itself when it opens the page."""
    for tag, attribute in _LOADS.items():
        yield from (str(node[attribute]) for node in soup.find_all(tag) if node.get(attribute))
    for node in soup.find_all("link", href=True):
        if _LOADED_LINKS & set(node.get("rel") or []):
            yield str(node["href"])


def _external(soup: BeautifulSoup) -> Iterator[str]:
    for address in loaded(soup):
        if urlsplit(address).netloc:
            yield f"loads {address} from elsewhere; the book must work without a network"
    for node in soup.find_all("style"):
        if _CSS_URL.search(node.get_text()):
            yield "a <style> block loads something from elsewhere; the book must work without a network"


def _images(soup: BeautifulSoup) -> Iterator[str]:
    for image in (soup.find("article") or soup).find_all("img"):
        if not str(image.get("alt") or "").strip():
            source = str(image.get("src", ""))[:60]
            yield f"image {source} has no alt text; set metadata mystnb.image.alt on its cell"


def _links(site: Site, name: str, soup: BeautifulSoup) -> Iterator[str]:
    """Links and sources inside the book that lead nowhere."""
    addresses = {str(node["href"]) for node in soup.find_all("a", href=True)} | set(loaded(soup))
    for address in sorted(addresses):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = _target(name, unquote(parts.path))
        if not (site.folder / target).is_file():
            yield f"link {address} leads to no file"
        elif parts.fragment and target in site.anchors and unquote(parts.fragment) not in site.anchors[target]:
            yield f"link {address} leads to no anchor"


def _target(page: str, path: str) -> str:
    """Path inside the book of a relative link on `page`."""
    if not path:
        return page
    parts: list[str] = []
    for part in (Path(page).parent / path).as_posix().split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _anchors(soup: BeautifulSoup) -> set[str]:
    return {str(node["id"]) for node in soup.find_all(id=True)} | {
        str(node["name"]) for node in soup.find_all("a", attrs={"name": True})
    }


def page_bytes(folder: Path, name: str, soup: BeautifulSoup) -> int:
    """Bytes of a page and of what it loads from the book, MathJax aside."""
    parts = (urlsplit(address) for address in loaded(soup))  # data: addresses weigh within the page
    paths = {_target(name, unquote(part.path)) for part in parts if not part.scheme} | {name}
    files = [folder / path for path in paths if MATHJAX not in path]
    return sum(file.stat().st_size for file in files if file.is_file())


# --- what tells on the machine --------------------------------------------------------------------------


def leaks(root: Path, stage: Path, site: Path) -> list[str]:
    """Pages, staged notebooks and result rows that hold the checkout's path, the home folder or the host."""
    tells = machine_tells(root)
    findings = []
    for path in _published(root, stage, site):
        text = path.read_text(encoding="utf-8", errors="replace")
        written = _written_by_a_run(path, text)
        for what, pattern, everywhere in tells:
            searched = text if everywhere else written
            found = pattern.search(searched)
            if found:
                name = path.relative_to(next(base for base in (stage, root) if path.is_relative_to(base)))
                findings.append(f"{name.as_posix()} holds {what}: …{_around(searched, found)}…")
    return findings


def machine_tells(root: Path) -> list[tuple[str, re.Pattern[str], bool]]:
    """(what, pattern, whether to look in whole pages) of each string that would tell on this machine.

    A host that is named by a plain word may share it with the prose, so it is looked for only in what runs
    wrote; names under four letters, and `localhost`, tell nothing.
    """
    host = socket.gethostname().split(".")[0]
    tells = [
        ("the checkout's path", str(root.resolve()), True),
        ("the home folder", str(Path.home()), True),
    ]
    found = [(what, _whole(text), where) for what, text, where in tells if len(text) > 1]
    if len(host) >= 4 and host != "localhost":
        found.append(("the host name", _whole(host), not host.isalpha()))
    return found


def _whole(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-]){re.escape(text)}(?![\w-])")


def _published(root: Path, stage: Path, site: Path) -> Iterable[Path]:
    yield from sorted(site.rglob("*.html"))
    yield from sorted((stage / "notebooks").rglob("*.ipynb"))
    yield from sorted((root / "results").rglob("*.csv"))


def _written_by_a_run(path: Path, text: str) -> str:
    """The part of a file that code wrote: rows, and the outputs of a notebook."""
    if path.suffix != ".ipynb":
        return text if path.suffix == ".csv" else ""
    cells = json.loads(text)["cells"]
    return "\n".join(json.dumps(cell.get("outputs", []), ensure_ascii=False) for cell in cells)


def _around(text: str, found: re.Match[str]) -> str:
    return " ".join(text[max(0, found.start() - 30) : found.end() + 20].split())
