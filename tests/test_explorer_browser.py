"""The timeline player and the rendered explorer in headless Chromium, from a local server and from files."""

import json
import math
import shutil
import statistics
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest

from fedmorl.dca import AC_BE, AC_VO, CSMA_ECA, Scenario, Station, simulate
from fedmorl.embed import explorer, explorer_grid, timeline, timeline_steps

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[1]
AXE = ROOT / "tests" / "vendor" / "axe.min.js"
DEPTH = "notebooks/channel"  # a chapter's depth in the book: _static is two folders up
COUNTS = [2, 4, 6, 8, 10, 12, 14]
THREE = Scenario.uniform(Station(cw_min=7, cw_max=63), n_stations=3)
SIX = Scenario(stations=[AC_VO, AC_BE, CSMA_ECA, AC_VO, AC_BE, AC_VO], countdown="bianchi")

# The theme's colours, and what it does to the outputs of cells, so that contrast is judged as in the book.
PAGE = """<!doctype html><html lang="en" {attribute}><head><meta charset="utf-8"><title>Blocks</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><style>
html {{ --pst-color-text-base: #222832; --pst-color-text-muted: #48566b; --pst-color-background: #fff;
  --pst-color-surface: #f3f4f5; --pst-color-border: #d1d5da; }}
html[data-theme=dark] {{ --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af; color-scheme: dark;
  --pst-color-background: #14181e; --pst-color-surface: #29313d; --pst-color-border: #48566b; }}
body {{ margin: 0 12px; font-family: sans-serif; background: var(--pst-color-background);
  color: var(--pst-color-text-base); }}
.cell_output {{ overflow-x: auto; }}
html[data-theme=dark] .bd-content div.cell_output .text_html:not(:has(table.dataframe)) {{ padding: 0.5rem;
  background: var(--pst-color-text-base); color: #222832; }}</style></head>
<body class="bd-content"><main><h1>Blocks</h1>{body}</main></body></html>"""


def _trace(scenario: Scenario) -> pd.DataFrame:
    return simulate(scenario, n_slots=20_000, seed=3, warmup_slots=0, trace=True).trace.to_frame()


def _grid() -> dict:
    """Values that tell their own place: configuration, count-down, load, N and metric each add a digit."""
    configs = [("vo", "AC_VO", 7, 15), ("be", "AC_BE", 31, 1023), ("eca", "CSMA/ECA", 31, 1023), ("w", "", 7, 63)]
    configs.append(("plan", "plan (learned at N = 10)", math.nan, math.nan))
    rows = [
        (*config, countdown, load, n, metric, 10 * m + i + j / 10 + k / 100 + n / 1e4, 0.0002 + n / 1e5)
        for i, config in enumerate(configs)
        for j, countdown in enumerate(("frozen", "bianchi"))
        for k, load in enumerate(("saturated", "Poisson"))
        for n in COUNTS
        for m, metric in enumerate(("throughput_ratio", "collision_rate", "mean_access_delay_ms"))
        if not (config[0] == "be" and n == 8)  # a point that nobody computed
        if (config[0], countdown, load) != ("w", "bianchi", "Poisson")  # nor this whole curve
        if (config[0], countdown) != ("plan", "bianchi")  # a policy does not count down
    ]
    names = "config label cw_min cw_max countdown load n_stations metric mean half_width".split()
    bound = {"id": "optimum", "label": "p-persistent optimum", "metric": "throughput_ratio", "values": [0.9] * 7}
    return explorer_grid(pd.DataFrame(rows, columns=names), bounds=[bound], provenance="Made up.")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny site: _static as in the book, one page at a chapter's depth and one outside any book."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "book" / "_static", root / "_static", ignore=shutil.ignore_patterns("vendor"))
    figure = matplotlib.figure.Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2])
    blocks = [
        timeline(_trace(THREE), THREE, max_steps=60),
        timeline(_trace(SIX), SIX, max_steps=60, title="Six stations"),
        explorer(_grid(), figure=figure, alt="A still picture.", compare=["vo", "be"], n_stations=10),
    ]
    body = "".join(f'<div class="cell_output"><div class="text_html">{block.html}</div></div>' for block in blocks)
    (root / DEPTH).mkdir(parents=True)
    (root / DEPTH / "blocks.html").write_text(PAGE.format(attribute='data-content_root="../../"', body=body))
    (root / DEPTH / "outside.html").write_text(PAGE.format(attribute="", body=body))
    return root


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def visit(browser, server: str, site: Path) -> Iterator:
    """Open a page of the site; whatever it asks of others or complains about is in `page.problems`."""
    contexts = []

    def open_page(name: str = "blocks", scheme: str = "http", **options: object):
        origin = site.as_uri() if scheme == "file" else server
        contexts.append(browser.new_context(**({"viewport": {"width": 1000, "height": 900}} | options)))
        page = contexts[-1].new_page()
        page.problems = []
        page.route("**/*", partial(_route, page, origin))
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"{origin}/{DEPTH}/{name}.html", wait_until="load")
        if name == "blocks" and options.get("java_script_enabled", True):
            page.wait_for_function("document.querySelectorAll('[data-fm-ready]').length === 3")
        return page

    yield open_page
    for context in contexts:
        context.close()


def _route(page, origin: str, route) -> None:
    address = route.request.url
    if address.startswith((origin + "/", "data:")):
        route.continue_()
    else:
        page.problems.append(f"request to {address}")
        route.abort()


def _state(page) -> dict:
    return page.evaluate("({ ...document.querySelector('.fm-timeline').dataset })")


def _said(page) -> str:
    return page.locator(".fm-say").first.text_content()


# --------------------------------------------------------------------------------------------- both blocks


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_the_blocks_work_ask_nothing_of_others_and_log_nothing(visit, scheme):
    page = visit(scheme=scheme)
    assert page.locator(".fm-still").count() == 0
    page.locator(".fm-stage").first.press("ArrowRight")
    assert _state(page)["step"] == "1"
    page.locator("input[name=n]").press("ArrowRight")
    assert _readout(page, "A", "collision_rate") == _expected(_grid(), 0, 0, 0, 12, 1)
    assert page.problems == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 390])
def test_no_serious_accessibility_finding_and_nothing_wider_than_the_screen(visit, theme, width):
    page = visit(viewport={"width": width, "height": 800})
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    page.locator(".fm-add").click()
    page.locator(".fm-add").click()  # four configurations
    for _ in range(12):
        page.locator(".fm-stage").first.press("ArrowRight")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa']})")["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_on_a_phone_the_table_of_two_fits_and_that_of_four_is_reached_by_keyboard(visit):
    page = visit(viewport={"width": 390, "height": 800})
    beyond = "(() => { const e = document.querySelector('.fm-scroll'); return e.scrollWidth - e.clientWidth })()"
    assert page.evaluate(beyond) == 0
    assert page.locator(".fm-scroll").get_attribute("tabindex") is None
    page.locator(".fm-add").click()
    page.locator(".fm-add").click()
    assert page.evaluate(beyond) > 0
    assert page.locator(".fm-scroll").get_attribute("tabindex") == "0"
    outside = "[...document.querySelectorAll('.cell_output')].map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(outside) == [0, 0, 0]


@pytest.mark.parametrize("name, scripts", [("blocks", False), ("outside", True)])
def test_without_scripts_or_outside_the_book_the_still_pictures_stay(visit, name, scripts):
    page = visit(name, java_script_enabled=scripts)
    assert page.get_by_role("img", name="A still picture.").is_visible()
    assert page.get_by_role("img", name="A trace of the channel, 3 stations.").is_visible()
    assert page.locator("[data-fm-ready]").count() == 0
    assert page.problems == []


# ---------------------------------------------------------------------------------------------- the player


def test_every_step_shows_the_replayed_trace(visit):
    steps = timeline_steps(_trace(THREE), 3, max_steps=60)
    assert {step["kind"] for step in steps} == {"idle", "success", "collision", "difs"}
    page = visit()
    stage = page.locator(".fm-stage").first
    for k, step in enumerate(steps):
        state = _state(page)
        assert (int(state["step"]), int(state["slot"]), state["kind"]) == (k, step["slot"], step["kind"])
        assert json.loads(state["counters"]) == step["counters"]
        assert json.loads(state["cw"]) == step["cw"]
        assert _said(page) == step["text"]
        stage.press("ArrowRight")
    assert int(_state(page)["step"]) == len(steps) - 1  # the last step stays the last


def test_a_collision_shows_its_senders_by_word_and_hatching_and_the_doubled_window(visit):
    steps = timeline_steps(_trace(THREE), 3, max_steps=60)
    k = next(k for k, step in enumerate(steps) if step["kind"] == "collision")
    page = visit()
    page.locator(".fm-timeline input[type=range]").first.fill(str(k))
    column = page.locator(".fm-timeline").first.locator("g", has=page.locator("> .fm-now")).last
    assert column.locator("text", has_text="✕ collision").count() == len(steps[k]["senders"]) >= 2
    assert column.locator("rect[fill^='url']").count() == len(steps[k]["senders"])
    words = page.locator(".fm-timeline").first.locator("text.fm-new").all_text_contents()
    window, after = steps[k]["cw"], steps[k]["after"]["cw"]
    assert [f"CW {window[i]} → {after[i]}" for i in steps[k]["senders"]] == [w for w in words if "→" in w]


def test_the_player_works_by_keyboard_alone(visit):
    page = visit()
    page.locator(".fm-stage").first.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert _state(page)["step"] == "1"
    page.keyboard.press("End")
    assert _state(page)["step"] == "59"
    page.keyboard.press("Home")
    assert _state(page)["step"] == "0"
    assert page.locator(".fm-say").first.get_attribute("aria-live") == "polite"
    page.keyboard.press(" ")
    page.wait_for_function("+document.querySelector('.fm-timeline').dataset.step >= 2")
    assert page.locator(".fm-say").first.get_attribute("aria-live") == "off"  # it would talk without end
    page.keyboard.press(" ")
    stopped = _state(page)
    assert "playing" not in stopped
    page.wait_for_timeout(600)  # longer than a step at this speed, 400 ms
    assert _state(page)["step"] == stopped["step"]
    page.keyboard.press("Tab")  # on to Back, Play, Step, Speed, slider
    assert page.evaluate("document.activeElement.className") == "fm-back"
    page.locator(".fm-timeline input[type=range]").first.press("ArrowRight")
    assert int(_state(page)["step"]) == int(stopped["step"]) + 1


def test_buttons_and_speed_work_and_the_player_stops_at_the_end(visit):
    page = visit()
    page.locator(".fm-next").first.click()
    page.locator(".fm-next").first.click()
    page.locator(".fm-back").first.click()
    assert _state(page)["step"] == "1"
    page.locator(".fm-timeline input[type=range]").first.fill("55")
    page.locator(".fm-timeline select").first.select_option(label="fastest")
    page.locator(".fm-play").first.click()
    page.wait_for_function("document.querySelector('.fm-timeline').dataset.step === '59'")
    page.wait_for_function("document.querySelector('.fm-timeline').dataset.playing === undefined")
    assert page.locator(".fm-play").first.text_content() == "▶ Play"
    assert page.locator(".fm-next").first.is_disabled()


@pytest.mark.parametrize("motion, moves", [("reduce", False), ("no-preference", True)])
def test_nothing_slides_for_readers_who_asked_for_less_motion(visit, motion, moves):
    page = visit(reduced_motion=motion)
    page.evaluate(
        "() => { window.slides = 0; const own = Element.prototype.animate;"
        "Element.prototype.animate = function (...a) { window.slides += 1; return own.apply(this, a) } }"
    )
    page.locator(".fm-timeline input[type=range]").first.fill("40")
    page.locator(".fm-play").first.click()
    page.wait_for_function("+document.querySelector('.fm-timeline').dataset.step >= 43")
    assert (page.evaluate("window.slides") > 0) == moves


# -------------------------------------------------------------------------------------------- the explorer


def _readout(page, letter: str, metric: str) -> tuple[float, float] | None:
    cell = page.locator(f"td[data-series={letter}][data-metric={metric}]")
    mean = cell.get_attribute("data-mean")
    return None if mean is None else (float(mean), float(cell.get_attribute("data-half-width")))


def _expected(grid: dict, config: int, countdown: int, load: int, n: int, metric: int) -> tuple[float, float] | None:
    point = grid["values"][metric][config][countdown][load][COUNTS.index(n)]
    return point and tuple(point)


def test_the_readout_is_the_grid_at_every_choice(visit):
    grid, page = _grid(), visit()
    page.locator("input[name=n]").press("Home")
    for n in COUNTS:
        for m, metric in enumerate(("throughput_ratio", "collision_rate", "mean_access_delay_ms")):
            assert _readout(page, "A", metric) == _expected(grid, 0, 0, 0, n, m)
            assert _readout(page, "B", metric) == _expected(grid, 1, 0, 0, n, m)
        page.locator("input[name=n]").press("ArrowRight")
    page.locator("select[name=config-A]").select_option(label="CSMA/ECA")
    page.locator("select[name=countdown-A]").select_option(label="Bianchi")
    page.locator("select[name=load-A]").select_option(label="Poisson")
    page.locator("select[name=load-B]").select_option(label="Poisson")
    assert _readout(page, "A", "collision_rate") == _expected(grid, 2, 1, 1, 14, 1)
    assert _readout(page, "B", "collision_rate") == _expected(grid, 1, 0, 1, 14, 1)
    cell = page.locator("td[data-series=A][data-metric=throughput_ratio]")
    facts = [cell.get_attribute(f"data-{name}") for name in ("config", "countdown", "load", "n")]
    assert facts == ["eca", "bianchi", "Poisson", "14"]
    assert page.locator("td[data-series=optimum][data-metric=throughput_ratio]").get_attribute("data-mean") == "0.9"


def test_a_missing_point_is_a_dash_and_a_gap_in_the_curve(visit):
    page = visit()
    page.locator("input[name=n]").press("ArrowLeft")  # 8
    assert _readout(page, "B", "throughput_ratio") is None
    assert page.locator("td[data-series=B][data-metric=throughput_ratio]").text_content() == "–"
    assert "AC_BE: not computed" in page.locator("output[aria-live=polite]").text_content()
    curves = [page.locator(f".fm-plot .fm-side-{letter} polyline").count() for letter in "AB"]
    assert curves == [1, 2]


def test_windows_are_found_by_cw_min_and_cw_max_and_never_one_that_is_not_there(visit):
    page = visit()
    page.locator("select[name=cw_max-A]").select_option("63")
    assert page.locator("td[data-series=A]").first.get_attribute("data-config") == "w"
    assert page.locator("select[name=config-A]").evaluate("e => e.selectedOptions[0].text") == "own window"
    assert page.locator("select[name=cw_max-A] option:not([disabled])").all_text_contents() == ["15", "63"]
    page.locator("select[name=cw_min-A]").select_option("31")
    assert page.locator("td[data-series=A]").first.get_attribute("data-config") == "be"  # 31-63 is not in the grid
    assert page.locator("select[name=cw_max-A]").input_value() == "1023"
    page.locator("select[name=config-A]").select_option(label="own window")
    assert page.locator("td[data-series=A]").first.get_attribute("data-config") == "w"


def test_a_load_that_nobody_computed_is_not_offered_and_gives_way(visit):
    page = visit()
    page.locator("select[name=load-A]").select_option(label="Poisson")
    page.locator("select[name=countdown-A]").select_option(label="Bianchi")
    assert page.locator("td[data-series=A]").first.get_attribute("data-load") == "Poisson"
    page.locator("select[name=config-A]").select_option(label="own window")
    assert page.locator("td[data-series=A]").first.get_attribute("data-load") == "saturated"
    assert page.locator("select[name=load-A] option:not([disabled])").all_text_contents() == ["saturated"]
    page.locator("select[name=countdown-A]").select_option(label="frozen (802.11)")
    assert page.locator("select[name=load-A] option:not([disabled])").count() == 2


def test_a_learned_policy_is_listed_and_its_windows_and_count_down_rest(visit):
    grid, page = _grid(), visit()
    page.locator("select[name=countdown-A]").select_option(label="Bianchi")
    page.locator("select[name=config-A]").select_option(label="plan (learned at N = 10)")
    resting = [page.locator(f"select[name={name}-A]") for name in ("cw_min", "cw_max", "countdown")]
    assert all(select.is_disabled() and select.input_value() == "" for select in resting)
    assert _readout(page, "A", "collision_rate") == _expected(grid, 4, 0, 0, 10, 1)
    assert page.locator(".fm-legend").text_content().startswith("A · plan (learned at N = 10), saturatedB")
    page.locator("select[name=load-A]").select_option(label="Poisson")
    assert _readout(page, "A", "collision_rate") == _expected(grid, 4, 0, 1, 10, 1)
    page.locator("select[name=config-A]").select_option(label="own window")
    assert page.locator("td[data-series=A]").first.get_attribute("data-config") == "w"
    assert [select.input_value() for select in resting] == ["7", "63", "0"]
    assert not any(select.is_disabled() for select in resting)


def test_configurations_are_added_and_removed_by_keyboard(visit):
    page = visit()
    page.locator(".fm-add").press("Enter")
    assert page.evaluate("document.activeElement.name") == "config-C"
    page.locator(".fm-add").press("Enter")
    assert page.locator("thead th[scope=col]").count() == 1 + 4 + 1  # the metric's name, A to D, the optimum
    assert not page.locator(".fm-add").is_visible()
    page.get_by_role("button", name="Remove C").press("Enter")
    assert page.locator("fieldset").count() == 3
    assert page.locator(".fm-plot .fm-curve").count() >= 3


def test_the_chart_follows_the_metric_and_a_click_goes_to_the_nearest_n(visit):
    page = visit()
    page.locator("select[name=metric]").select_option(label="Mean access delay [ms]")
    assert page.locator(".fm-plot title").text_content() == "Mean access delay against the number of stations"
    assert page.locator(".fm-plot [data-bound]").count() == 0  # the bound is one of throughput
    width = page.locator(".fm-plot").bounding_box()["width"]
    page.locator(".fm-plot").click(position={"x": width - 30, "y": 60})
    assert page.locator(".fm-explorer").get_attribute("data-n") == "14"
    assert page.locator("input[name=n]").input_value() == "6"


def test_a_key_press_redraws_the_explorer_in_under_100_ms(visit):
    page = visit()
    for _ in range(2):
        page.locator(".fm-add").click()  # the dearest case: four configurations
    page.evaluate(
        """() => {
          window.spent = [];
          const range = document.querySelector('input[name=n]');
          let pressed = 0;
          range.addEventListener('keydown', () => { pressed = performance.now(); }, true);
          new MutationObserver(() => requestAnimationFrame(() => {
            if (pressed) window.spent.push(performance.now() - pressed);
            pressed = 0;
          })).observe(document.querySelector('.fm-plot'), { childList: true, subtree: true });
        }"""
    )
    for key in ["ArrowLeft"] * 4 + ["ArrowRight"] * 5:
        before = page.evaluate("window.spent.length")
        page.locator("input[name=n]").press(key)
        page.wait_for_function("before => window.spent.length > before", arg=before)
    spent = page.evaluate("window.spent")
    assert len(spent) == 9
    assert statistics.median(spent) < 100  # the median: a busy machine may hold up a single frame
