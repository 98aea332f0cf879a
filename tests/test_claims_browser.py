"""The claims page in headless Chromium: filters by typing, choosing and keyboard, on a phone, and without scripts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from test_browser import Visit, axe_violations, serving
from test_explorer_browser import DEPTH, PAGE, ROOT

from fedmorl.embed import claims_ledger
from fedmorl.evaluation import COLUMNS

pytestmark = pytest.mark.browser

VERDICTS = ["open", "reproduced", "partly", "not reproduced", "not testable here"]
PLACES = {"fedmorl": ["Abstract", "Fig. 1a"], "logo": ["Abstract", "Table 2", "Table 10"]}


def rows() -> list[dict[str, str]]:
    """Ten claims a place, two of each verdict; every third is an ordering, the others are numbers."""
    made = []
    for paper, places in PLACES.items():
        for p, place in enumerate(places):
            for k in range(10):
                settled, tested = VERDICTS[k % 5] != "open", VERDICTS[k % 5] != "not testable here"
                cells = {
                    "id": f"{paper}-{p}-{k}", "paper": paper, "where": place, "kind": "number" if k % 3 else "ordering",
                    "quantity": f"Return of method M{k} on map {'Aurora' if k < 4 else 'Borealis'}", "unit": "return",
                    "paper_value": f"{k}.50 ± 0.25", "verdict": VERDICTS[k % 5],
                }  # fmt: skip
                if settled:
                    cells |= {"scale": "one of three maps", "command": "fedmorl sweep notebooks/sweeps/a-long-name.yml"}
                if settled and tested:
                    cells |= {"our_value": f"{k}.4", "ci_low": f"{k}.1", "ci_high": f"{k}.9", "n_seeds": "5"}
                made.append(dict.fromkeys(COLUMNS, "") | cells)
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """_static as in the book, one page at a chapter's depth and one outside any book."""
    root = tmp_path_factory.mktemp("claims")
    shutil.copytree(ROOT / "book" / "_static", root / "_static", ignore=shutil.ignore_patterns("vendor"))
    block = claims_ledger(pd.DataFrame(rows(), columns=list(COLUMNS), dtype=str))
    sheet = '<link rel="stylesheet" href="../../_static/claims.css">'  # the book has it in every page's head
    body = f'{sheet}<div class="cell_output"><div class="text_html">{block.html}</div></div>'
    (root / DEPTH).mkdir(parents=True)
    (root / DEPTH / "claims.html").write_text(PAGE.format(attribute='data-content_root="../../"', body=body))
    (root / DEPTH / "outside.html").write_text(PAGE.format(attribute="", body=body))
    return root


@pytest.fixture(scope="module")
def origin(site: Path) -> Iterator[str]:
    with serving(site) as address:
        yield address


@pytest.fixture
def visit(browser, origin: str) -> Iterator:
    opened: list[Visit] = []

    def open_page(**options: object):
        opened.append(Visit(browser, origin, f"{DEPTH}/claims", **options))
        opened[-1].page.wait_for_selector("[data-fm-ready]")
        return opened[-1].page

    yield open_page
    for one in opened:
        assert one.problems == []
        one.close()


def shown(page) -> set[str]:
    """Ids of the claims that a reader sees."""
    return set(
        page.eval_on_selector_all("tbody tr", "rs => rs.filter(r => r.checkVisibility()).map(r => r.id.slice(6))")
    )


def wanted(**cells: str) -> set[str]:
    return {row["id"] for row in rows() if all(row[name] == value for name, value in cells.items())}


def said(page) -> str:
    return page.locator(".fm-filters output[aria-live=polite]").text_content()


def choose(page, **values: str) -> None:
    for name, value in values.items():
        page.locator(f"select[name={name}]").select_option(value)


def test_all_is_folded_at_first_and_counted(visit):
    page = visit()
    assert shown(page) == set() and said(page) == "50 claims"
    assert page.locator("summary").first.text_content().startswith("Abstract 10 claims2 open, 2 reproduced")
    page.locator("summary").nth(1).click()
    assert shown(page) == wanted(paper="fedmorl", where="Fig. 1a")


def test_typing_shows_the_rows_that_have_every_word(visit):
    page = visit()
    page.locator("input[name=words]").press_sequentially("aurora  M3")
    assert shown(page) == {f"{paper}-{p}-3" for paper in PLACES for p in range(len(PLACES[paper]))}
    assert said(page) == "5 of 50 claims"
    assert page.locator("summary .fm-shown").first.text_content() == "1 of 10 claims"
    page.locator("input[name=words]").fill("logo table 10 aurora")
    assert shown(page) == {f"logo-2-{k}" for k in range(4)} and said(page) == "4 of 50 claims"
    assert [h.text_content() for h in page.locator("h3:visible").all()] == ["LOGO"]
    page.locator("input[name=words]").fill("no such words")
    assert shown(page) == set() and said(page) == "0 of 50 claims"


def test_each_select_narrows_what_the_others_left(visit):
    page = visit()
    choose(page, verdict="not reproduced")
    assert shown(page) == wanted(verdict="not reproduced") and said(page) == "10 of 50 claims"
    choose(page, kind="ordering")
    assert shown(page) == wanted(verdict="not reproduced", kind="ordering")
    choose(page, paper="logo")
    assert shown(page) == wanted(verdict="not reproduced", kind="ordering", paper="logo")
    choose(page, where="Table 10")
    both = wanted(verdict="not reproduced", kind="ordering", paper="logo", where="Table 10")
    assert shown(page) == both and len(both) == 1


def test_places_follow_the_paper_and_a_place_it_does_not_have_gives_way(visit):
    page = visit()
    places = "select[name=where] option"
    assert page.locator(places).all_text_contents() == ["all", "Abstract", "Fig. 1a", "Table 2", "Table 10"]
    choose(page, paper="logo")
    assert page.locator(places).all_text_contents() == ["all", "Abstract", "Table 2", "Table 10"]
    choose(page, where="Table 2")
    choose(page, paper="fedmorl")
    assert page.locator("select[name=where]").input_value() == "" and shown(page) == wanted(paper="fedmorl")


def test_the_keyboard_alone_filters_unfolds_and_clears(visit):
    page = visit()
    page.locator("input[name=words]").focus()
    page.keyboard.type("borealis")
    page.keyboard.press("Enter")  # must not leave the page
    assert page.evaluate("location.search") == "" and said(page) == "30 of 50 claims"
    page.keyboard.press("Tab")
    page.keyboard.type("LO")
    assert page.locator("select[name=paper]").input_value() == "logo" and said(page) == "18 of 50 claims"
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Clear"
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.fm-filters output').textContent === '50 claims'")
    assert shown(page) == set()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert shown(page) == wanted(paper="fedmorl", where="Abstract")


def test_clearing_a_filter_leaves_open_what_the_reader_had_opened(visit):
    page = visit()
    page.locator("summary").nth(2).click()
    choose(page, verdict="partly")
    choose(page, verdict="")
    assert shown(page) == wanted(paper="logo", where="Abstract")


def test_a_link_to_a_claim_unfolds_its_place_even_through_a_filter(visit):
    page = visit()
    choose(page, paper="fedmorl")
    page.evaluate("location.hash = 'claim-logo-2-7'")
    page.wait_for_function("document.getElementById('claim-logo-2-7').checkVisibility()")
    assert page.locator("#claim-logo-2-7").evaluate("e => e.getBoundingClientRect().top") < 900
    assert said(page) == "50 claims"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 620, 390])
def test_no_serious_accessibility_finding_and_nothing_wider_than_the_screen(visit, theme, width):
    page = visit(width=width, scheme=theme)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    assert axe_violations(page) == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert len(shown(page)) == 50
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    inside = "[...document.querySelectorAll('.cell_output')].map(e => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(inside) == [0]
    cells = "[...document.querySelectorAll('tbody :is(th, td)')].filter(c => c.scrollWidth > c.clientWidth).length"
    assert page.evaluate(cells) == 0
    assert axe_violations(page) == []


def test_on_a_phone_a_row_is_a_card_that_says_which_value_is_whose(visit):
    page = visit(width=390)
    page.locator("summary").first.click()
    row = page.locator("#claim-fedmorl-0-1")
    labels = row.locator("td").evaluate_all("cells => cells.map(c => getComputedStyle(c, '::before').content)")
    assert labels == ['"Paper"', '"Ours"', '"Verdict"']
    claim = row.locator("th").bounding_box()
    assert claim["width"] > 300  # the whole width, not a column
    tops = [cell.bounding_box()["y"] for cell in row.locator("td").all()]
    assert claim["y"] < tops[0] < tops[1] < tops[2]


@pytest.mark.parametrize("name, scripts", [("claims", False), ("outside", True)])
def test_without_scripts_or_outside_the_book_the_claims_are_there_to_unfold(browser, origin, name, scripts):
    context = browser.new_context(viewport={"width": 390, "height": 800}, java_script_enabled=scripts)
    page = context.new_page()
    page.goto(f"{origin}/{DEPTH}/{name}.html", wait_until="load")
    assert page.locator("tbody tr").count() == 50 and not page.locator(".fm-filters").is_visible()
    assert not page.locator("#claim-logo-2-7").is_visible()
    page.locator("summary").nth(4).click()
    assert page.locator("#claim-logo-2-7").is_visible()
    assert "7.4 [7.1, 7.9], 5 seeds" in page.locator("#claim-logo-2-7").text_content()
    assert page.locator("html").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    context.close()


def test_the_filters_work_from_the_file_system(browser, site):
    page = browser.new_page()
    page.goto((site / DEPTH / "claims.html").as_uri(), wait_until="load")
    page.wait_for_selector("[data-fm-ready]")
    choose(page, kind="ordering")
    assert shown(page) == wanted(kind="ordering")
    page.close()
