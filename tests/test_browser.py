"""Every page of the real book in headless Chromium: no network, no errors, maths rendered, accessible."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[1]
AXE = ROOT / "tests" / "vendor" / "axe.min.js"

# axe rules of serious or critical impact that may fail, each with its reason; at most one
ALLOWED: dict[str, str] = {}

LEFT_TEX = re.compile(r"\\\(|\\\[|\$\$|\\(?:frac|begin|left|sum|mathrm|text|tau|lambda)\b")


def pages() -> list[str]:
    """Pages of the table of contents, and the search page that Sphinx adds."""
    found = re.findall(r"^\s*-?\s*(?:root|file):\s*(\S+)", (ROOT / "_toc.yml").read_text(), re.MULTILINE)
    return ["search", *found]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`folder` behind a local server; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def origin(book_html: Path) -> Iterator[str]:
    """The finished book behind a local server; yields its address."""
    with serving(book_html) as address:
        yield address


class Visit:
    """One opened page, and what went wrong while it loaded."""

    def __init__(self, browser, origin: str, name: str, width: int = 1280, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.route("**/*", partial(self._route, origin))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("response", self._response)
        self.page.goto(f"{origin}/{name}.html", wait_until="load")
        self.page.wait_for_function("!document.querySelector('.math') || (window.MathJax && MathJax.startup)")
        self.page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 1) : 1")

    def _route(self, origin: str, route) -> None:
        address = route.request.url
        if address.startswith((origin, "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"request to {address}")
            route.abort()

    def _console(self, message) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _response(self, response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status} for {response.url}")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser, origin: str) -> Iterator:
    opened: list[Visit] = []

    def open_page(name: str, **options: object) -> Visit:
        opened.append(Visit(browser, origin, name, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


def axe_violations(page) -> list[str]:
    """Serious and critical findings of axe (WCAG 2 A and AA) that are not allowed above."""
    page.evaluate("window.module = undefined")
    page.add_script_tag(path=str(AXE))
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}}
    found = page.evaluate("rules => axe.run(document, rules)", rules)["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical") and rule["id"] not in ALLOWED
        for node in rule["nodes"]
    ]


def left_tex(page) -> list[str]:
    """TeX that a reader would see: in the text, but in neither code nor a rendered formula."""
    text = page.evaluate(
        """() => {
          const body = document.body.cloneNode(true);
          body.querySelectorAll('pre, code, script, style, noscript, mjx-container').forEach(n => n.remove());
          return body.textContent; }"""
    )
    return LEFT_TEX.findall(text)


def test_the_entrance_leads_to_the_first_page(browser, origin: str) -> None:
    """It refreshes at once, so it is no page to look at; visited like the others it would leave in mid-test."""
    page = browser.new_page()
    page.goto(f"{origin}/index.html")
    page.wait_for_url("**/book/intro.html")
    assert "FedMORL" in page.title()
    page.close()


@pytest.mark.parametrize("name", pages())
def test_page_is_offline_free_of_errors_rendered_and_accessible(visit, name: str) -> None:
    """One visit for the four, since opening a page is what takes the time."""
    opened = visit(name)
    assert opened.problems == []
    assert left_tex(opened.page) == []
    if opened.page.locator(".math").count():
        assert opened.page.locator("mjx-container").count() > 0
    assert axe_violations(opened.page) == []


@pytest.mark.parametrize("name", pages())
def test_page_fits_a_phone_and_holds_its_contrast_in_the_dark(visit, name: str) -> None:
    page = visit(name, width=390, scheme="dark").page
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert axe_violations(page) == []


def test_page_works_from_the_file_system(browser, book_html: Path) -> None:
    root = yaml.safe_load((ROOT / "_toc.yml").read_text())["root"]
    page = browser.new_page()
    page.goto((book_html / f"{root}.html").as_uri(), wait_until="load")
    assert page.locator("article h1").count() == 1
    page.close()


def test_a_visit_sees_every_kind_of_fault(browser, tmp_path: Path) -> None:
    """The checks above are only as good as this: each fault on a page made to hold them all is reported."""
    faults = """<html><head><title>x</title></head><body><p>\\(\\frac{1}{2}\\)</p><input type="text">
      <img src="https://elsewhere.example/a.png"><img src="gone.png">
      <script>console.error("said"); throw new Error("thrown")</script></body></html>"""
    (tmp_path / "bad.html").write_text(faults)
    with serving(tmp_path) as address:
        opened = Visit(browser, address, "bad")
        problems = "\n".join(opened.problems)
        assert "request to https://elsewhere.example/a.png" in problems and "404 for" in problems
        assert "console: said" in problems and "page error: thrown" in problems
        assert left_tex(opened.page) == ["\\(", "\\frac"]
        assert {found.split()[0] for found in axe_violations(opened.page)} >= {"label", "image-alt", "html-has-lang"}
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_figures_keep_their_shape_on_narrow_pages(browser, origin: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{origin}/notebooks/channel/trade_off.html")
    shapes = page.evaluate(
        "[...document.querySelectorAll('article .cell_output img')].filter(i => i.clientWidth > 0)"
        ".map(i => (i.clientWidth / i.clientHeight) / (i.naturalWidth / i.naturalHeight))"
    )
    page.close()
    assert len(shapes) >= 3 and all(abs(shape - 1) < 0.02 for shape in shapes), shapes
