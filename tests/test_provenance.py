"""The code hash follows what a notebook reaches, and the provenance line says what is known and no more."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedmorl import provenance
from fedmorl.closure import SourceError, closure
from fedmorl.provenance import RUN_VARIABLE, code_hash, commit_text, footer_items, wall_text

MODULES = {
    "__init__.py": '"""The package."""\n__version__ = "1"\n',
    "channel/__init__.py": "from fedmorl.channel.kernels import run\nfrom fedmorl.channel.other import unused\n",
    "channel/kernels.py": """\"\"\"Kernels.\"\"\"
from .state import start

def run():
    \"\"\"Run.\"\"\"
    return start() + 1  # one more
""",
    "channel/state.py": "def start():\n    from fedmorl import late\n    return late.number\n",
    "channel/other.py": "unused = 1\n",
    "late.py": "import numpy as np\nnumber = 3\n",
    "lazy.py": "import importlib\n\ndef load():\n    return importlib.import_module('fedmorl.plugin')\n",
    "plugin.py": "value = 5\n",
    "lazily/__init__.py": """from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from fedmorl.lazily.heavy import Heavy
from fedmorl.lazily.light import light

def __getattr__(name):
    from fedmorl.lazily import heavy
    return getattr(heavy, name)
""",
    "lazily/heavy.py": "class Heavy: pass\n",
    "lazily/light.py": "light = 1\n",
    "provenance.py": "from fedmorl import plugin\n",
    "typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fedmorl.plugin import value\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "fedmorl"
    for name, source in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def write(folder: Path, *cells: str) -> Path:
    path = folder / "chapter.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [cell]} for cell in cells]}))
    return path


def reached(package: Path, *cells: str) -> set[str]:
    found = closure(write(package.parent, *cells), package)
    return {name.removeprefix("fedmorl.") for name in found.modules}


@pytest.mark.parametrize(
    "cell,modules",
    [
        ("from fedmorl.channel import run", {"channel.kernels", "channel.state", "late"}),
        ("from fedmorl.channel import kernels", {"channel.kernels", "channel.state", "late"}),
        ("from fedmorl.channel.other import unused", {"channel.other"}),
        ("import fedmorl.channel", {"channel", "channel.kernels", "channel.other", "channel.state", "late"}),
        ("from fedmorl.channel import *", {"channel", "channel.kernels", "channel.other", "channel.state", "late"}),
        ("def f():\n    import fedmorl.plugin as p", {"plugin"}),
        ("from fedmorl.lazy import load", {"lazy", "plugin"}),
        ("from fedmorl.typed import x", {"typed"}),
        ("from fedmorl.lazily import light", {"lazily.light"}),
        ("from fedmorl.lazily import Heavy", {"lazily.heavy"}),
        ("import numpy", set()),
        ("from fedmorl.provenance import footer", set()),
    ],
)
def test_closure_holds_exactly_the_modules_that_imports_lead_to(package: Path, cell: str, modules: set) -> None:
    assert reached(package, cell) == modules


@pytest.mark.parametrize(
    "module,old,new,changes",
    [
        ("channel/kernels.py", "+ 1", "+ 2", True),
        ("channel/state.py", "late.number", "late.number * 2", True),
        ("late.py", "number = 3", "number = 4", True),
        ("channel/other.py", "unused = 1", "unused = 2", False),
        ("plugin.py", "value = 5", "value = 6", False),
        ("channel/kernels.py", '"""Run."""', '"""Run it, and say so."""', False),
        ("channel/kernels.py", "# one more", "# as the paper has it", False),
        ("channel/kernels.py", '"""Kernels."""', '"""Other words."""', False),
        ("__init__.py", '"1"', '"2"', False),
    ],
)
def test_code_hash_follows_reached_code_and_neither_prose_nor_the_rest(
    package: Path, module: str, old: str, new: str, changes: bool
) -> None:
    notebook = write(package.parent, "from fedmorl.channel import run", "run()")
    before = code_hash(notebook, package)
    source = (package / module).read_text()
    assert old in source
    (package / module).write_text(source.replace(old, new))
    assert (code_hash(notebook, package) != before) is changes


def test_code_hash_follows_a_reexport_that_points_elsewhere(package: Path) -> None:
    notebook = write(package.parent, "from fedmorl.channel import run")
    before = code_hash(notebook, package)
    (package / "channel/__init__.py").write_text("from fedmorl.channel.other import unused as run\n")
    assert code_hash(notebook, package) != before


def test_an_init_that_does_more_than_reexport_counts_for_every_import_below_it(package: Path) -> None:
    (package / "channel/__init__.py").write_text("from fedmorl.channel.kernels import run\nrun()\n")
    assert "channel" in reached(package, "from fedmorl.channel.other import unused")


def test_code_hash_ignores_comments_in_cells_but_not_code_or_a_displayed_string(package: Path) -> None:
    hashes = [
        code_hash(write(package.parent, cell), package) for cell in ("x = 1", "x = 1  # one", "x = 2", "'x'", "'y'")
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_magics_are_read_and_broken_cells_are_named(package: Path) -> None:
    assert reached(package, "%matplotlib inline\nfrom fedmorl import plugin") == {"plugin"}
    with pytest.raises(SourceError, match="the cell that starts 'x = = 1' is not Python"):
        closure(write(package.parent, "x = = 1"), package)


def test_a_closed_form_stands_when_the_kernels_change(tmp_path: Path) -> None:
    assert "fedmorl.dca.kernels" not in closure(write(tmp_path, "from fedmorl.dca import analytic")).modules
    assert "fedmorl.dca.kernels" in closure(write(tmp_path, "from fedmorl.dca import simulate")).modules


# --- the line -----------------------------------------------------------------------------------------------


def test_line_carries_what_the_runner_said_and_what_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"code": "1cbe126e0411", "commit": "ab12cd3", "dirty": False, "started": 0.0, "profile": "quick"}
    monkeypatch.setenv(RUN_VARIABLE, json.dumps(told))
    monkeypatch.setattr(provenance.time, "time", lambda: 24.0)
    items = footer_items(seed=7, data="9f3e")
    assert items[:4] == ["code 1cbe126e0411", "commit ab12cd3 (clean)", "seed 7", "data 9f3e"]
    assert items[-3:-1] == ["24 s", "profile quick"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", items[-1])


def test_line_admits_that_the_code_hash_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert footer_items(seed=0)[0] == "code hash not known in this session"


def test_line_in_jupyterlab_hashes_the_notebook_as_last_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notebook = write(tmp_path, "seed = 1")
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    assert footer_items()[0] == f"code {code_hash(notebook)} as last saved"


def test_torch_is_named_only_where_the_code_uses_it(package: Path) -> None:
    plain = closure(write(package.parent, "import numpy"), package)
    deep = closure(write(package.parent, "import torch"), package)
    assert "torch" not in provenance.record(plain, package.parent)["versions"]
    assert "torch" in provenance.record(deep, package.parent)["versions"]


def test_record_holds_no_path_and_no_host_name(package: Path) -> None:
    text = json.dumps(provenance.record(closure(write(package.parent, "x = 1"), package), package.parent))
    assert str(package.parent) not in text
    assert str(Path.home()) + "/" not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_commit_is_clean_then_dirty_and_unknown_outside_a_checkout(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == ("unknown", None)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    name, dirty = provenance.commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{7,}", name) and dirty is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.csv").write_text("a")
    assert provenance.commit(tmp_path) == (name, True)
    assert provenance.commit(tmp_path, ignoring="results") == (name, False)
    (tmp_path / "new.py").write_text("x = 1")
    assert provenance.commit(tmp_path, ignoring="results") == (name, True)
    assert commit_text(name, True) == f"commit {name} (dirty)"


def test_wall_time_is_told_in_the_unit_that_fits() -> None:
    assert [wall_text(s) for s in (23.6, 1500.0, 11_520.0)] == ["24 s", "25 min", "3.2 h"]


def test_importing_provenance_loads_neither_numpy_nor_torch() -> None:
    code = "import sys, fedmorl.provenance; print([m for m in ('numpy', 'torch', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]"
