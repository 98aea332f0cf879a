"""The live explorer in a real JupyterLab and a real browser: Run All, move the slider by keyboard, look."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmorl.dca import MLPPolicy
from fedmorl.explore.learned import FILES
from fedmorl.policies import save_policies

pytestmark = pytest.mark.browser

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "channel" / "explorer.ipynb"
MOVES = 9

# The aim is a median below 300 ms; an idle machine with two cores gives about 100 ms. The test shares its cores with
# other tests, so it may take twice the aim before it fails: a picture drawn by matplotlib (330 ms to 660 ms on an idle
# machine) would still be found out.
AIM_MS, ALLOWED_MS = 300, 600

# Time from the key press to the frame after the readout has changed, all by the browser's own clock.
STOPWATCH = """() => {
  const shown = () => document.querySelector('.fm-live table')?.dataset.n;
  let pressed = null, before = null;
  window.moves = [];
  document.addEventListener('keydown', () => { pressed = performance.now(); before = shown(); }, true);
  new MutationObserver(() => {
    if (pressed === null || shown() === before) return;
    const start = pressed;
    pressed = null;
    requestAnimationFrame(() => setTimeout(() => window.moves.push(performance.now() - start)));
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """JupyterLab on a free port, with its own settings, in a project of the notebook and one learned policy.

    It is ended by its own process id.
    """
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed; it is in the extra `live`")
    home, work = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("work")
    shutil.copy(NOTEBOOK, work)
    (work / "_toc.yml").touch()
    lottery = MLPPolicy([(np.zeros((7, 2)), np.array([4.0, 0.0]))])  # sends with probability 0.018
    save_policies(work / FILES["plan"][1], [lottery])
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}))
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "run"}
    environment = os.environ | {f"JUPYTER_{name}": str(home / folder) for name, folder in folders.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
    ]
    with open(home / "server.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options, str(work)]
        server = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status", server, home / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(lab: str, browser) -> Iterator:
    """The notebook, opened, all cells run, the explorer's first result on the screen."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1150})
    opened.set_default_timeout(60_000)
    opened.goto(f"{lab}/lab/tree/{NOTEBOOK.name}?reset")
    opened.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    opened.get_by_role("menuitem", name="Run", exact=True).click()
    opened.get_by_text("Run All Cells", exact=True).click()
    opened.locator(".fm-live table").wait_for()
    opened.get_by_text("of a 95 % interval").wait_for()
    yield opened
    opened.close()


def handle(page, number: int):
    """A slider's handle: 0 the number of stations, 1 CWmin, 2 CWmax."""
    return page.locator(".fm-live .noUi-handle").nth(number)


def test_a_move_by_keyboard_is_drawn_in_time(page, capsys):
    page.evaluate(STOPWATCH)
    shown = int(page.locator(".fm-live table").get_attribute("data-n"))
    handle(page, 0).focus()
    for move in range(1, MOVES + 1):
        page.keyboard.press("ArrowRight")
        page.wait_for_function("count => window.moves.length === count", arg=move)
    milliseconds = page.evaluate("window.moves")
    median = statistics.median(milliseconds)
    with capsys.disabled():
        print(f"\nlive explorer, move to redraw: median {median:.0f} ms of {[round(ms) for ms in milliseconds]}")
    assert int(page.locator(".fm-live table").get_attribute("data-n")) == shown + MOVES
    assert median < ALLOWED_MS, f"median {median:.0f} ms; the aim is {AIM_MS} ms"


def test_the_charts_follow_and_the_work_comes_to_rest(page):
    n = page.locator(".fm-live table").get_attribute("data-n")
    page.get_by_text(f"over the window, N = {n}").wait_for()
    page.get_by_text("of a 95 % interval").wait_for()
    before = page.locator(".fm-live svg .dot").nth(1).get_attribute("cx")
    handle(page, 1).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("x => document.querySelectorAll('.fm-live svg .dot')[1].getAttribute('cx') > +x", arg=before)
    assert page.locator(".fm-live select").first.evaluate("s => s.selectedOptions[0].label").split() == [
        "own",
        "window",
    ]


def test_a_pinned_configuration_is_drawn_beside_the_current_one(page):
    page.get_by_role("button", name="Pin as A").click()
    page.locator(".fm-live select").first.select_option(label="CSMA_ECA (31–1023)")
    page.locator(".fm-live thead", has_text="B CSMA_ECA").wait_for()
    assert page.locator(".fm-live g.pinned rect.dot").count() == 2
    assert page.locator(".fm-live g.now circle.dot").count() == 2


def test_a_learned_policy_is_drawn_with_who_sends_when(page):
    access = page.locator(".fm-live select").first
    offered = [" ".join(label.split()) for label in access.locator("option").all_text_contents()]
    assert FILES["plan"][0] in offered
    access.select_option(label=FILES["plan"][0])
    page.locator(".fm-live thead", has_text=f"B {FILES['plan'][0]}").wait_for()
    assert "Who sends when. B: plan" in page.locator(".fm-live .strip").first.text_content()
    assert page.locator(".fm-live .strip").count() == 2  # the pinned configuration has its own
    assert page.locator(".fm-live .strip svg").first.get_attribute("aria-label").count("packets of") == 1
    sliders = page.locator(".fm-live .noUi-target")
    assert [sliders.nth(k).get_attribute("disabled") for k in range(3)] == [None, "true", "true"]  # N, CWmin, CWmax


def test_the_browser_heard_of_no_failure(page):
    assert page.locator('.jp-OutputArea-output[data-mime-type*="stderr"]').count() == 0
    assert "Error" not in page.locator(".fm-live").first.inner_text()
