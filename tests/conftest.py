"""Small book projects in a temporary folder, and the real book, built once for all test processes."""

import fcntl
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {  # notebook -> (module, the extra that has it)
    "mads4_smax.ipynb": ("jaxmarl", "smax"),
    "networld_external.ipynb": ("mobile_env", "mobile"),
    "mujoco_data.ipynb": ("stable_baselines3", "mamujoco"),
    "logo_mujoco_prediction.ipynb": ("stable_baselines3", "mamujoco"),
    "logo_mujoco_policy.ipynb": ("stable_baselines3", "mamujoco"),
}

CONFIG = """\
title: Toy
author: nobody
copyright: "2026"
only_build_toc_files: true
execute: {execute_notebooks: "off"}
sphinx:
  config:
    extensions: [myst_nb, jupyter_book, sphinx_external_toc, sphinx_book_theme, sphinx_comments]
    html_context: {default_mode: light}
    html_use_index: false
    mathjax_path: vendor/mathjax/none.js
"""

FOOTER = "from fedmorl.provenance import footer\nfooter(seed=seed)"


def notebook(
    *cells: str,
    parameters: str = "seed: int = 0  # of every stream",
    tags: dict[int, list[str]] | None = None,
) -> dict:
    """A source notebook: a title, the parameters cell, and code cells; `# %% text` cells are Markdown."""
    made = [_cell("markdown", "# A chapter", 0), _cell("code", parameters, 1, ["parameters"])]
    for number, text in enumerate(cells, start=2):
        kind = "markdown" if text.startswith("# %% ") else "code"
        made.append(_cell(kind, text.removeprefix("# %% "), number, (tags or {}).get(number - 2, [])))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, source: str, number: int, tags: list[str] | None = None) -> dict:
    cell = {
        "cell_type": kind,
        "id": f"cell-{number}",
        "metadata": {"tags": tags} if tags else {},
        "source": source,
    }
    return cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})


@dataclass
class Toy:
    """A book project of one prose page and the notebooks a test adds."""

    root: Path

    @classmethod
    def new(cls, root: Path) -> "Toy":
        made = cls(root)
        for folder in ("book", "notebooks/profiles", "results"):
            (root / folder).mkdir(parents=True)
        (root / "_config.yml").write_text(CONFIG)
        (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
        (root / "book" / "intro.md").write_text("# Welcome\n\nProse.\n")
        (root / "constraints.txt").write_text("numpy==2.4.6\n")
        made.profiles({})
        return made

    def add(self, name: str, *cells: str, quick: dict | None = None, **options: object) -> Path:
        """Write notebooks/NAME.ipynb, list it in the table of contents and, with `quick`, in both profiles."""
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(*cells, **options)))
        toc = self.root / "_toc.yml"
        head = "" if "chapters:" in toc.read_text() else "chapters:\n"
        toc.write_text(f"{toc.read_text()}{head}- file: notebooks/{name}\n")
        if quick is not None:
            self.profiles({name: quick})
        return path

    def experiment(self, name: str, *cells: str, **options: object) -> Path:
        """Write notebooks/experiments/NAME.ipynb."""
        path = self.root / "notebooks" / "experiments" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(*cells, **options)))
        return path

    def sweep(self, name: str, text: str) -> Path:
        """Write notebooks/sweeps/NAME.yml."""
        path = self.root / "notebooks" / "sweeps" / f"{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def profiles(self, quick: dict, paper: dict | None = None) -> None:
        folder = self.root / "notebooks" / "profiles"
        (folder / "quick.yml").write_text(json.dumps(quick))  # JSON is YAML
        (folder / "paper.yml").write_text(json.dumps(quick if paper is None else paper))

    def fedmorl(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the command line in the project."""
        command = [sys.executable, "-m", "fedmorl.cli", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=120)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy.new(tmp_path / "project")


@pytest.fixture(scope="session")
def book_html() -> Path:
    """The real book, quick profile; one test process builds it, the others wait and find nothing changed."""
    build = ROOT / "_build"
    build.mkdir(exist_ok=True)
    with open(build / "test-session.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "fedmorl.cli", "book", "--profile", "quick"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"fedmorl book failed:\n{done.stdout}{done.stderr}"
    return build / "html"


@pytest.fixture(scope="session")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    return path


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator:
    """One headless Chromium a test process: playwright does not start twice in one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield running
        running.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip notebooks that need an extra which is not installed.

    Here and not beside them: with a conftest in it, `notebooks` would come before the package on the path.
    """
    for item in items:
        module, extra = NEEDS.get(item.path.name, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            item.add_marker(pytest.mark.skip(reason=f"needs the extra: pip install -c constraints.txt -e '.[{extra}]'"))
