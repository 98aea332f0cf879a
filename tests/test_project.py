"""The project's own files agree with each other, and what they tell a reader to type works."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedmorl
from fedmorl import notebook
from fedmorl.book import checks

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = {
    ".md",
    ".py",
    ".ipynb",
    ".yml",
    ".yaml",
    ".toml",
    ".txt",
    ".cff",
    ".bib",
    ".csv",
    ".js",
    ".css",
    ".c",
    ".cc",
    "",
}
PROSE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"book/{p.name}" for p in (ROOT / "book").glob("*.md")),
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), re.DOTALL | re.MULTILINE)


def project_files() -> list[Path]:
    """Files that are, or would be, committed; vendored ones aside."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if "vendor" not in Path(name).parts and (ROOT / name).is_file()]


def notebooks() -> list[Path]:
    return sorted(path for path in project_files() if path.suffix == ".ipynb")


# --- one set of versions --------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    """Dependencies of the core and of every extra."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_constraints_pin_a_version_that_suits_every_dependency():
    pinned = pins()
    missing = sorted(
        {r.name for r in requirements()} - {r.name for r in requirements() if canonicalize_name(r.name) in pinned}
    )
    assert not missing, f"constraints.txt has no pin for {missing}"
    unsuited = [str(r) for r in requirements() if not r.specifier.contains(pinned[canonicalize_name(r.name)], True)]
    assert not unsuited, f"constraints.txt contradicts {unsuited}"


def test_constraints_pin_all_that_the_book_and_the_tests_bring_along():
    unpinned = sorted(name for name in brought_along(["book", "test", "live"]) if name not in pins())
    assert not unpinned, f"constraints.txt has no pin for {unpinned}, which other packages need"


def brought_along(extras: list[str]) -> set[str]:
    """Installed distributions that the extras need, directly or not; what torch brings along is torch's business."""
    todo = [Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    found: dict[str, set[str]] = {"torch": set(), "setuptools": set(), "wheel": set()}  # pip's and torch's own
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        asked = {"", *requirement.extras}
        if asked <= found.get(name, set()) or name in ("torch", "setuptools", "wheel"):
            continue
        found[name] = found.get(name, set()) | asked
        needs = [Requirement(text) for text in metadata.requires(name) or []]
        todo += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in asked)]
    return set(found) - {"torch", "setuptools", "wheel"}


def test_constraints_install_on_any_machine():
    lines = read("constraints.txt").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines if line), (
        "exact versions, no +cpu"
    )
    assert not [name for name in pins() if name.startswith("nvidia") or name == "triton"]
    assert len(pins()) == len([line for line in lines if line]), "a package is pinned twice"


def test_conda_environment_is_a_thin_shell_over_the_same_pins():
    environment = yaml.safe_load(read("environment.yml"))
    conda, pip = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    python = Requirement(next(line for line in conda if line.startswith("python")).replace("=", "==", 1))
    version = str(python.specifier).removeprefix("==")
    assert environment["name"] == PROJECT["name"]
    assert PROJECT["requires-python"] == f">={version},<3.{int(version.split('.')[1]) + 1}"
    assert f"PYTHON ?= python{version}" in read("Makefile")
    assert pip[0] == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", pip[2]).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert f"-c constraints.txt -e '.[{','.join(extras)}]'" in read("Makefile"), "make installs other extras"
    torch = f"torch=={pins()['torch']}"
    assert pip[1] == torch and f"install -q {torch}\n" in read("Makefile") and f"`{torch}`" in read("README.md")


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == fedmorl.__version__ == metadata.version("fedmorl")
    assert re.search(rf"^## {re.escape(fedmorl.__version__)}\b", read("CHANGELOG.md"), re.MULTILINE)
    assert citation["license"] == PROJECT["license"] == "MIT" and read("LICENSE").startswith("MIT License")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


# --- what a reader is told to type ----------------------------------------------------------------------


def test_readme_python_runs_and_prints_what_readme_says(tmp_path):
    codes, prints = code_blocks("README.md", "python"), code_blocks("README.md", "text")
    for code, printed in zip(codes, prints, strict=True):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed


@pytest.mark.parametrize("page", [name for name in PROSE if name.startswith("book/")])
def test_python_on_pages_runs(page, tmp_path):
    for code in code_blocks(page, "python"):
        short = code.replace("10_000_000", "200_000")
        done = subprocess.run([sys.executable, "-c", short], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, f"{page}: {done.stderr}"


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    for page in PROSE:
        for line in "".join(code_blocks(page, "sh")).splitlines():
            yield page, shlex.split(line, comments=True)


def test_shell_commands_on_pages_exist():
    targets = re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE)
    for page, words in shell_lines():
        if words[:1] == ["make"]:
            assert words[1] in targets, f"{page}: make has no target {words[1]}"
        elif words[:1] == ["fedmorl"]:
            check_fedmorl(page, words[1:])
    inline = [(page, target) for page in PROSE for target in re.findall(r"`make ([a-z-]+)`", read(page))]
    assert not [(page, target) for page, target in inline if target not in targets]


def check_fedmorl(page: str, arguments: list[str]) -> None:
    """The command line takes the arguments, and a notebook that they name has the parameters that they name."""
    help_text = subprocess.run(
        [sys.executable, "-m", "fedmorl.cli", arguments[0], "--help"], capture_output=True, text=True
    ).stdout
    known = set(re.findall(r"--[\w-]+", help_text))
    unknown = [word for word in arguments if word.startswith("--") and word not in known]
    assert help_text and not unknown, f"{page}: fedmorl {arguments[0]} does not know {unknown}"
    if arguments[0] == "run":
        path = ROOT / arguments[1]
        known = notebook.parameters_of(notebook.read_source(path), path)
        named = {arguments[k + 1] for k, word in enumerate(arguments) if word == "-p"}
        assert named and named <= set(known), f"{page}: {arguments[1]} has no parameter {named - set(known)}"


def test_readme_simulates_from_the_command_line():
    (line,) = [words for page, words in shell_lines() if page == "README.md" and "--json" in words]
    command = [sys.executable, "-m", "fedmorl.cli", *line[1:], "--slots", "200_000", "--warmup", "10_000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["throughput_ratio"] < 120 / 124


def test_readme_and_ci_name_the_two_commands():
    assert {"make test", "make book"} <= {" ".join(words) for page, words in shell_lines() if page == "README.md"}
    assert read(".ci/run").rstrip().endswith("\nmake test\nmake book")
    assert "set -euo pipefail" in read(".ci/run") and (ROOT / ".ci/run").stat().st_mode & 0o100


@pytest.mark.parametrize("page", PROSE)
def test_files_that_prose_links_to_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
        assert (ROOT / page).parent.joinpath(target).is_file(), f"{page} links to {target}"


def test_hooks_run_what_make_installs():
    config = yaml.safe_load(read(".pre-commit-config.yaml"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"], "other hooks need a network"
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in config["repos"][0]["hooks"]}
    assert tools <= {Requirement(text).name for text in PROJECT["optional-dependencies"]["test"]}


# --- the book's lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint_is_clean(tool):
    """The tools of `make lint`, by the modules of this interpreter."""
    done = subprocess.run([sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_equation_index_is_complete_and_names_functions_that_exist():
    page = read("book/equations.md")
    sources = [read(name) for name in PROSE if name.startswith("book/")]
    sources += ["".join("".join(cell["source"]) for cell in cells(path)) for path in notebooks()]
    labels = {
        label for text in sources for label in re.findall(r"(?:^\$\$ \(|:label: )(eq-[\w-]+)", text, re.MULTILINE)
    }
    listed = set(re.findall(r"\{eq\}`([\w-]+)`", page))
    assert listed <= labels, f"book/equations.md lists {listed - labels}, which no page defines"
    ranges = {"eq-frozen-alone", "eq-frozen-outcomes", "eq-frozen-fixed-point"}  # inside "… to …"
    assert labels <= listed | ranges, f"book/equations.md lacks {labels - listed}"
    for name in re.findall(r"`(fedmorl\.[\w.]+)`", page):
        module, attribute = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), attribute), f"book/equations.md names {name}"


def test_code_cites_only_rules_that_the_page_has():
    rules = set(re.findall(r"^\(rule-(\d+)\)=\n### Rule \1: ", read("book/rules.md"), re.MULTILINE))
    assert rules == {str(k) for k in range(1, 17)}
    code = "".join(path.read_text() for path in (ROOT / "fedmorl").rglob("*.py"))
    assert set(re.findall(r"\b[Rr]ule (\d+)", code)) <= rules


def test_every_work_in_the_bibliography_is_cited():
    keys = set(re.findall(r"^@\w+\{(\w+),", read("book/references.bib"), re.MULTILINE))
    pages = "".join([read(name) for name in PROSE] + [path.read_text() for path in notebooks()])
    cited = {key for keys in re.findall(r"\{cite(?::\w+)?\}`([\w, ]+)`", pages) for key in re.split(r",\s*", keys)}
    assert cited == keys


# --- what is committed ----------------------------------------------------------------------------------


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebook_is_a_source(path):
    """No outputs, one typed parameters cell, and no definition that belongs in the package."""
    notebook.parameters_of(notebook.read_source(path), path)  # refuses none or two, and outputs of a run
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), (
        "strip it: nbstripout --keep-id"
    )
    assert all("id" in cell for cell in cells(path))
    long = [name for cell in code for name, lines in definitions("".join(cell["source"])) if lines > 15]
    assert not long, f"{path.name} defines {long} in a cell; move it to the package"


def definitions(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of each function and class in a cell."""
    import ast

    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_tells_on_the_machine_it_was_written_on():
    tells = [(what, pattern) for what, pattern, _ in checks.machine_tells(ROOT) if what != "the host name"]
    tells.append(("a path beside the checkout", re.compile(r"\.\./" + "shared")))
    found = [
        f"{path.relative_to(ROOT)} holds {what}"
        for path in project_files()
        if path.suffix in TEXT
        for what, pattern in tells
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert not found, found
