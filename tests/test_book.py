"""The book pipeline on small projects: what is refused, what is cached, what a page holds, what a failure leaves."""

import fcntl
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from conftest import FOOTER, Toy, notebook

from fedmorl import identity
from fedmorl.batch import grid, tables
from fedmorl.book import build, chapters, checks, pages
from fedmorl.book.repairs import repair
from fedmorl.cli import _value
from fedmorl.notebook import RunError, checked, command, parameters_of


def built(toy: Toy) -> tuple[list[str], Path]:
    """Build the quick profile; returns what was said, and the folder of the HTML."""
    said: list[str] = []
    return said, build.build(toy.root, "quick", jobs=1, say=said.append)


# --- sources and profiles -------------------------------------------------------------------------------


def test_a_listed_page_without_a_file_is_named(toy: Toy) -> None:
    (toy.root / "book" / "intro.md").unlink()
    with pytest.raises(RunError, match=r"_toc.yml lists book/intro, and there is no book/intro.md or book/intro.ipynb"):
        chapters.documents(toy.root)


@pytest.mark.parametrize(
    "quick,paper,message",
    [
        ({"a": {"sed": 1}}, None, "has no parameter sed; it has seed"),
        ({"b": {"seed": 1}}, None, "names the chapter b, which _toc.yml does not list"),
        ({"a": {"seed": "one"}}, None, r"parameter seed must be int, got 'one' \(str\)"),
        ({"a": {"seed": 1}}, {"a": {}}, "profile quick sets seed of a and profile paper does not"),
        ({"a": {}}, {"a": {"seed": 1}}, "profile paper sets seed of a and profile quick does not"),
        ({"a": [1]}, None, "must map each chapter to its parameters"),
    ],
)
def test_a_wrong_profile_is_refused_before_anything_runs(toy: Toy, quick: dict, paper: dict, message: str) -> None:
    toy.add("a", FOOTER)
    toy.profiles(quick, paper)
    with pytest.raises(RunError, match=message):
        chapters.chapters(toy.root, "quick")


def test_an_unknown_profile_is_refused_with_those_that_exist(toy: Toy) -> None:
    with pytest.raises(RunError, match="there is no profile 'fast' in notebooks/profiles; there is paper, quick"):
        chapters.chapters(toy.root, "fast")


def test_a_chapter_in_no_profile_runs_with_its_defaults(toy: Toy) -> None:
    toy.add("a", FOOTER)
    assert chapters.chapters(toy.root, "quick")[0].values == {}


# --- what makes a chapter stale -------------------------------------------------------------------------


def aged(toy: Toy) -> chapters.Chapter:
    """A chapter `a` with a cached run that is current."""
    toy.add("a", "import csv\nimport numpy\nrows = open('../results/table.csv').read()", FOOTER, quick={"seed": 1})
    (toy.root / "results" / "table.csv").write_text("a,b\n1,2\n")
    chapter = chapters.chapters(toy.root, "quick")[0]
    chapter.cached.parent.mkdir(parents=True)
    chapter.cached.write_text(json.dumps({"metadata": {"fedmorl": {"key": chapter.key}}}))
    assert chapter.stale() == ""
    return chapter


def again(toy: Toy) -> str:
    return chapters.chapters(toy.root, "quick")[0].stale()


def test_parameters_code_pins_and_result_files_make_a_chapter_stale_and_say_so(toy: Toy) -> None:
    chapter = aged(toy)
    toy.profiles({"a": {"seed": 2}})
    assert again(toy) == "parameters seed changed"
    toy.profiles({"a": {"seed": 1}})
    (toy.root / "results" / "table.csv").write_text("a,b\n1,3\n")
    assert again(toy) == "data file results/table.csv changed"
    (toy.root / "results" / "table.csv").write_text("a,b\n1,2\n")
    (toy.root / "constraints.txt").write_text("numpy==2.4.7\n")
    assert again(toy) == "pins numpy changed"
    (toy.root / "constraints.txt").write_text("numpy==2.4.6\n")
    chapter.source.write_text(chapter.source.read_text().replace("import csv", "import csv, io"))
    assert again(toy) == "code cells changed"


def test_prose_does_not_make_a_chapter_stale(toy: Toy) -> None:
    chapter = aged(toy)
    chapter.source.write_text(chapter.source.read_text().replace("# A chapter", "# Another title"))
    assert again(toy) == ""


def test_a_truncated_cache_counts_as_never_run(toy: Toy) -> None:
    chapter = aged(toy)
    chapter.cached.write_text(chapter.cached.read_text()[:-20])
    assert again(toy) == "never run"


def test_a_result_folder_stands_for_its_files_unless_some_are_named(tmp_path: Path) -> None:
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    for path in (folder, results / "sweep"):
        path.mkdir(parents=True)
    for name in ("a.csv", "sweep/b.csv", "sweep/c.csv"):
        (results / name).write_text("x\n")

    def read(*literals: str) -> list[str]:
        found = identity.files_read(literals, folder, tmp_path)
        return [path.relative_to(results).as_posix() for path in found]

    assert read("a.csv", "text", "", ".", "./") == ["a.csv"]
    assert read("../results/sweep") == ["sweep/b.csv", "sweep/c.csv"]
    assert read("../results", "sweep/b.csv") == ["sweep/b.csv"]
    assert read("sweep", "results") == []
    assert read("../notebooks", "/etc/hostname", ".", "") == []


# --- one page -------------------------------------------------------------------------------------------


def staged(source: dict, outputs: list[list[dict]]) -> dict:
    """The staged page of `source`, as if a run had given its code cells these outputs."""
    run = json.loads(json.dumps(source)) | {"metadata": {"papermill": {"parameters": {"seed": 5}}}}
    cells = [cell for cell in run["cells"] if cell["cell_type"] == "code"]
    for cell, made in zip(cells, outputs, strict=True):
        cell.update(outputs=made, execution_count=3)
    injected = {"cell_type": "code", "source": "seed = 5", "metadata": {"tags": ["injected-parameters"]}, "outputs": []}
    run["cells"].insert(2, injected)
    return pages.page(source, Path("/p/notebooks/a.ipynb"), run, Path("/p"), "quick")


def text_output(text: str) -> dict:
    return {"output_type": "execute_result", "data": {"text/plain": text}, "metadata": {}, "execution_count": 3}


def test_parameter_cells_become_one_table_with_the_values_of_the_run() -> None:
    page = staged(notebook("x = 1"), [[], []])
    assert [cell["cell_type"] for cell in page["cells"]] == ["markdown", "markdown", "code"]
    table = page["cells"][1]["source"]
    assert "<code>seed</code></td><td><code>5</code></td><td>of every stream</td>" in table
    assert "fedmorl run notebooks/a.ipynb -p seed 5 -o a.out.ipynb" in table


def test_the_command_on_a_page_gives_the_values_of_its_run() -> None:
    cell = "n: int = 1\nrate: float | None = 0.5\non: bool = True\nwords: list = []\nname: str = 'a'"
    known = parameters_of(notebook(parameters=cell), Path("a.ipynb"))
    values = {"n": 20_000, "rate": None, "on": False, "words": ["a b", "c"], "name": "7"}
    words = shlex.split(command(Path("notebooks/a.ipynb"), values))
    given = {words[i + 1]: _value(words[i + 2], known[words[i + 1]]) for i, word in enumerate(words) if word == "-p"}
    assert checked(given, known, "a.ipynb") == values


def test_live_only_cells_and_widget_views_stay_off_the_page() -> None:
    widget = {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {}}}
    page = staged(notebook("live()", "x", tags={0: ["live-only"]}), [[], [widget], [widget, text_output("1")]])
    assert [cell["source"] for cell in page["cells"][2:]] == ["x"]
    assert page["cells"][2]["outputs"] == [text_output("1") | {"execution_count": None}]
    assert "widgets" not in page["metadata"]


def test_inline_html_and_json_survive_staging() -> None:
    html = '<script type="application/json">{"a": [1.5, null], "b": "</p>"}</script>'
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}
    page = staged(notebook("show()"), [[], [output]])
    assert json.loads(json.dumps(page))["cells"][2]["outputs"][0]["data"]["text/html"] == html


def test_outputs_of_other_code_are_never_grafted() -> None:
    with pytest.raises(RunError, match="has 3 code cells and its run has 2"):
        pages.graft(notebook("x", "y"), notebook("x"), Path("a.ipynb"))


def test_parameters_are_read_with_type_default_and_comment() -> None:
    known = parameters_of(
        notebook(parameters="n: int = 3  # stations\nrate: float | None = None\nwords = ['a']"), Path("a.ipynb")
    )
    assert known["n"].default == 3 and known["n"].comment == "stations" and known["n"].types == {int}
    assert known["rate"].types == {float, type(None)}
    assert known["words"].types == {list}


# --- checks of the HTML ---------------------------------------------------------------------------------

GOOD = '<html><body><article><h1 id="top">T</h1><p class="provenance">line</p></article></body></html>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "a.html").write_text(GOOD)
    (tmp_path / "index.html").write_text(GOOD)
    return tmp_path


def with_body(site: Path, body: str) -> list[str]:
    (site / "index.html").write_text(GOOD.replace("</article>", f"{body}</article>"))
    return checks.check(site, ["index", "book/a"])


def test_a_sound_site_has_no_findings(site: Path) -> None:
    assert with_body(site, '<a href="book/a.html#top">a</a> <a href="https://example.org/">out</a>') == []


@pytest.mark.parametrize(
    "body,finding",
    [
        ('<a href="book/b.html">b</a>', "index.html: link book/b.html leads to no file"),
        ('<a href="book/a.html#nowhere">b</a>', "index.html: link book/a.html#nowhere leads to no anchor"),
        ('<a href="#gone">b</a>', "index.html: link #gone leads to no anchor"),
        ('<img src="book/a.html">', "index.html: image book/a.html has no alt text"),
        ('<img src="book/a.html" alt=" ">', "index.html: image book/a.html has no alt text"),
        ('<script src="https://cdn.example/x.js"></script>', "index.html: loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "index.html: loads //cdn.example/x.css"),
        ("<style>p {background: url(https://x.example/y.png)}</style>", "index.html: a <style> block loads"),
        ("x" * 1_500_001, "index.html: weighs 1.50 MB"),
    ],
)
def test_each_broken_promise_is_a_finding_that_names_its_page(site: Path, body: str, finding: str) -> None:
    found = with_body(site, body)
    assert len(found) == 1 and found[0].startswith(finding)


def test_a_missing_page_and_a_missing_footer_are_findings(site: Path) -> None:
    (site / "index.html").write_text("<html><body><article></article></body></html>")
    found = checks.check(site, ["index", "book/a", "book/gone"])
    assert found[0] == "book/gone.html was not built"
    assert found[1].startswith("index.html: no provenance footer") and len(found) == 2


def test_mathjax_does_not_count_for_a_page_and_other_scripts_do(site: Path) -> None:
    script = site / "_static" / "vendor" / "mathjax" / "x.js"
    script.parent.mkdir(parents=True)
    script.write_text("x" * 1_600_000)
    assert with_body(site, '<script src="_static/vendor/mathjax/x.js"></script>') == []
    script.rename(site / "_static" / "x.js")
    assert "weighs 1.60 MB" in with_body(site, '<script src="_static/x.js"></script>')[0]


def test_checkout_home_and_host_are_found_in_pages_notebooks_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stage, site = tmp_path / "checkout", tmp_path / "checkout" / "stage", tmp_path / "checkout" / "stage" / "html"
    for folder in (stage / "notebooks", site, root / "results"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(socket, "gethostname", lambda: "turing.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    printed = {"output_type": "stream", "name": "stdout", "text": "on turing"}
    (stage / "notebooks" / "a.ipynb").write_text(json.dumps(notebook("x") | {"cells": [{"outputs": [printed]}]}))
    (site / "a.html").write_text(f"<p>read {root}/results/x.csv; Alan Turing and turing machines</p>")
    (root / "results" / "x.csv").write_text("path\n/home/ada/x\n")
    assert [finding.partition(":")[0] for finding in checks.leaks(root, stage, site)] == [
        "html/a.html holds the checkout's path",
        "notebooks/a.ipynb holds the host name",
        "results/x.csv holds the home folder",
    ]


def test_bibliography_entries_are_list_items_wide_tables_take_the_focus_and_the_icon_script_goes(site: Path) -> None:
    entry = '<div role="list"><div role="doc-biblioentry">x</div></div>'
    icons = '<script src="_static/vendor/fontawesome/6/js/all.min.js?digest=1"></script>'
    table = '<div class="pst-scrollable-table-container"><table></table></div>'
    (site / "book" / "a.html").write_text(GOOD.replace("</article>", f"{entry}{icons}{table}</article>"))
    repair(site, "Title", "book/a", "")
    text = (site / "book" / "a.html").read_text()
    assert 'role="listitem"' in text and "doc-biblioentry" not in text and "fontawesome" not in text
    assert 'container" tabindex="0"><table>' in text
    assert '<a href="book/a.html">' in (site / "index.html").read_text()


# --- whole builds ---------------------------------------------------------------------------------------


def test_a_build_runs_then_does_nothing_then_puts_old_outputs_under_new_prose(toy: Toy) -> None:
    """Two renderings and one run of one notebook: about 10 s."""
    source = toy.add("a", "import time\nprint('made at', time.time())", FOOTER, quick={"seed": 3})
    said, html = built(toy)
    page = (html / "notebooks" / "a.html").read_text()
    assert 'class="provenance">code ' in page and "seed 3" in page and "profile quick" in page
    assert 'class="provenance">book/intro.md · commit unknown' in (html / "book" / "intro.html").read_text()
    made_at = page[page.index("made at") :][:30]
    assert (html / "_sources" / "notebooks" / "a.ipynb").read_text() == source.read_text()

    assert built(toy)[0][0].startswith("nothing changed")

    source.write_text(source.read_text().replace("# A chapter", "# Better words"))
    said, html = built(toy)
    assert said[0] == "notebooks/a.ipynb: cached"
    page = (html / "notebooks" / "a.html").read_text()
    assert "Better words" in page and made_at in page


def old_book(toy: Toy) -> Path:
    """A page of an earlier build, to see whether it stays."""
    page = toy.root / "_build" / "html" / "book" / "intro.html"
    page.parent.mkdir(parents=True)
    page.write_text("the old book")
    return page


def test_a_failing_chapter_is_named_with_its_cell_and_the_old_book_stays(toy: Toy) -> None:
    page = old_book(toy)
    toy.add("a", "x = 1\nraise ValueError('no such station')", quick={"seed": 3})
    done = toy.fedmorl("book")
    assert done.returncode == 1
    assert "notebooks/a.ipynb failed in the cell that starts 'x = 1': ValueError: no such station" in done.stderr
    assert "repeat it alone: fedmorl run notebooks/a.ipynb -p seed 3 -o a.out.ipynb" in done.stderr
    assert "Traceback" not in done.stderr
    assert page.read_text() == "the old book"
    failed = toy.root / "_build" / "runs" / "quick" / "a.failed.ipynb"
    assert "no such station" in failed.read_text()
    assert [path.name for path in failed.parent.iterdir()] == ["a.failed.ipynb"]


def test_a_warning_of_the_renderer_fails_the_build_and_the_old_book_stays(toy: Toy) -> None:
    page = old_book(toy)
    (toy.root / "book" / "intro.md").write_text("# Welcome\n\n[nowhere](#no-such-label)\n")
    with pytest.raises(RunError, match=r"(?s)book/intro.md.*no-such-label.*_build/sphinx.log has all"):
        built(toy)
    assert page.read_text() == "the old book"


def test_a_page_that_breaks_a_promise_fails_the_build_and_the_old_book_stays(toy: Toy) -> None:
    page = old_book(toy)
    (toy.root / "book" / "intro.md").write_text('# Welcome\n\n<img src="https://x.example/a.png">\n')
    with pytest.raises(RunError, match=r"loads https://x\.example/a\.png from elsewhere"):
        built(toy)
    assert page.read_text() == "the old book"


def test_an_interrupted_build_ends_its_kernels_and_keeps_the_old_book(toy: Toy) -> None:
    page = old_book(toy)
    toy.add("a", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(100)", quick={"seed": 3})
    pid_file = toy.root / "notebooks" / "pid"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit "ignore it"
    process = subprocess.Popen([sys.executable, "-m", "fedmorl.cli", "book"], cwd=toy.root, stderr=subprocess.PIPE)
    pid = int(waited(lambda: pid_file.is_file() and pid_file.read_text()))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted" in errors and b"Traceback" not in errors
    assert waited(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
    assert page.read_text() == "the old book"
    assert not list((toy.root / "_build").rglob("*.tmp.ipynb"))
    with build._only_build(toy.root / "_build"):
        pass  # the lock is free


def waited(condition, seconds: float = 60.0):
    """The first true value of `condition`, asked ten times a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError("did not happen in time")


def test_a_second_build_is_refused_while_one_runs(toy: Toy) -> None:
    lock = toy.root / "_build" / "book.lock"
    lock.parent.mkdir()
    with open(lock, "w") as held:
        held.write("4321")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        done = toy.fedmorl("book")
    assert done.returncode == 1
    assert "another build of this book is running (process 4321)" in done.stderr


def test_a_lock_file_that_nobody_holds_does_not_stop_a_build(tmp_path: Path) -> None:
    (tmp_path / "book.lock").write_text("1")
    with build._only_build(tmp_path):
        assert (tmp_path / "book.lock").read_text() != "1"


def test_a_build_cut_off_between_the_two_renames_gets_the_old_book_back(tmp_path: Path) -> None:
    (tmp_path / "html.old").mkdir()
    (tmp_path / "html.old" / "index.html").write_text("old")
    build._recover(tmp_path / "html")
    assert (tmp_path / "html" / "index.html").read_text() == "old"


def test_status_tells_what_would_run_and_why(toy: Toy) -> None:
    aged(toy)
    toy.add("b", FOOTER)
    rows = dict(build.status(toy.root, "quick"))
    assert rows["notebooks/a.ipynb"].startswith("current:")
    assert rows["notebooks/b.ipynb"] == "stale: never run"


# --- rows that are not what the code of today gives ---------------------------------------------------------


def test_a_page_that_draws_stale_rows_says_so_below_its_title(toy: Toy) -> None:
    toy.experiment("trial", "from fedmorl.rows import emit\nemit({'seed': seed, 'value': 1})")
    toy.sweep("trial", "seeds: 2")
    table = toy.root / "results" / "trial.csv"
    sweep = grid.read_sweep(toy.root, toy.root / "notebooks" / "sweeps" / "trial.yml")
    record = {"rows": {"columns": ["seed"], "values": [[0]]}, "cost": {"cpu_s": 1.0, "peak_mb": 1, "device": "cpu"}}
    made = {"commit": "abc", "dirty": False, "seconds": 1.0, "machine": "one", "date": "2026-01-01"}
    lines = [line for run in sweep.runs for line in tables.lines_of(run, record | {"provenance": made})]
    tables._write(table, lines)
    toy.add("a", "open('../results/trial.csv').read()", FOOTER)
    toy.add("b", FOOTER)

    def warnings() -> dict:
        return build.stale_rows(toy.root, chapters.chapters(toy.root, "quick"))

    assert warnings() == {}
    source = sweep.source
    source.write_text(source.read_text().replace("'value': 1", "'value': 2"))
    text = (
        "`results/trial.csv`: 2 of 2 rows stale: code changed. Remake them: "
        "`fedmorl sweep notebooks/sweeps/trial.yml`, `fedmorl collect notebooks/sweeps/trial.yml`."
    )
    assert warnings() == {"a": (text,)}
    html = built(toy)[1] / "notebooks" / "a.html"
    assert (
        "2 of 2 rows stale: code changed"
        in BeautifulSoup(html.read_bytes(), "html.parser").select_one(".stale-rows").text
    )
