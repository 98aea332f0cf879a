"""The book: run the chapters that are stale, stage all pages, render, check, and swap the result in.

    _toc.yml, notebooks/, book/, results/  ──►  _build/runs/PROFILE/   outputs, cached by content
                                           ──►  _build/stage/          pages as Jupyter Book gets them
                                           ──►  _build/html/           the finished book

The old book in `_build/html` stays until the new one has passed every check, so an interrupted or failed
build changes nothing that a reader sees, and the next one starts clean.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from fedmorl import provenance
from fedmorl.book.chapters import Chapter, chapters, documents, run_all, source_of
from fedmorl.closure import PACKAGE_DIR, short_hash
from fedmorl.notebook import RunError, read_notebook, read_source, write_notebook
from fedmorl.strict_yaml import read_yaml

Say = Callable[[str], None]

# What decides how a page looks, besides the sources.
PIPELINE = ("build", "pages", "checks", "repairs")
RENDERERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme")


def build(root: Path, profile: str = "quick", jobs: int | None = None, say: Say = print) -> Path:
    """Bring `_build/html` up to date and return it.

    Raises RunError, one sentence a finding, if a source is refused, a chapter or the rendering fails, or a
    page does not pass the checks; the book of the last good build is then still in place.
    """
    started = time.time()
    html = root / "_build" / "html"
    with _only_build(root / "_build"):
        _recover(html)
        found = chapters(root, profile)
        warnings = stale_rows(root, found)
        digest = _digest(root, found, profile, warnings)
        if _published(root) == digest:
            say(f"nothing changed: {_shown(html, root)}/index.html is current ({time.time() - started:.1f} s)")
            return html
        _run_stale(found, jobs or provenance.cores(), say)
        stage = _stage(root, found, profile, warnings)
        say("rendering the pages")
        made = _render(root, stage)
        _check(root, stage, made, found)
        _publish(root, made, digest)
    say(f"the book is {_shown(html, root)}/index.html ({time.time() - started:.0f} s)")
    return html


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


# --- one build at a time -----------------------------------------------------------------------------


@contextlib.contextmanager
def _only_build(folder: Path) -> Iterator[None]:
    """Hold `_build/book.lock`; the system lets go of it when a build ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "book.lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunError(
                f"another build of this book is running (process {lock.read().strip() or 'unknown'}); "
                "wait until it is done, or end it"
            ) from None
        _write_pid(lock)
        yield


def _write_pid(lock: TextIO) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()


# --- is there anything to do? --------------------------------------------------------------------------


def _digest(root: Path, found: list[Chapter], profile: str, warnings: dict[str, tuple[str, ...]]) -> str:
    """One hash of all that decides what the book looks like, dates aside."""
    inputs = [
        profile,
        warnings,
        provenance.commit(root),
        provenance.versions(RENDERERS),
        [[chapter.name, chapter.key, short_hash(chapter.source.read_bytes())] for chapter in found],
        [[path.name, short_hash(path.read_bytes())] for path in (root / "_config.yml", root / "_toc.yml")],
        [[_shown(path, root), short_hash(path.read_bytes())] for path in _copied(root)],
        [short_hash((PACKAGE_DIR / "book" / f"{name}.py").read_bytes()) for name in PIPELINE],
    ]
    return short_hash(json.dumps(inputs, sort_keys=True))


def _copied(root: Path) -> list[Path]:
    """Files that go into the stage as they are, or with a footer: `book/` and the result tables."""
    files = [path for folder in ("book", "results") for path in (root / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if not any(part.startswith(".") for part in path.parts[len(root.parts) :]))


def _published(root: Path) -> str | None:
    """Digest of the book in `_build/html`, or None if there is no whole one."""
    try:
        made = json.loads((root / "_build" / "book.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    html = root / "_build" / "html"
    return made["digest"] if all((html / page).is_file() for page in made["pages"]) else None


# --- running the chapters ------------------------------------------------------------------------------


def _run_stale(found: list[Chapter], jobs: int, say: Say) -> None:
    """Run the chapters whose outputs are not current, with a bar on a terminal and plain lines elsewhere."""
    reasons = [(chapter, chapter.stale()) for chapter in found]
    for chapter, why in reasons:
        say(f"{chapter.path.as_posix()}: {'run, ' + why if why else 'cached'}")
    stale = [chapter for chapter, why in reasons if why]
    if not stale:
        return
    from tqdm import tqdm

    cells = sum(_code_cells(chapter) for chapter in stale)
    with tqdm(total=cells, unit="cell", disable=not sys.stderr.isatty(), leave=False) as bar:

        def done(chapter: Chapter) -> None:
            with bar.external_write_mode():
                say(f"{chapter.path.as_posix()}: done in {chapter.metadata['provenance']['seconds']} s")

        run_all(stale, min(jobs, len(stale)), lambda: bar.update(1), done)


def _code_cells(chapter: Chapter) -> int:
    return sum(cell["cell_type"] == "code" for cell in read_source(chapter.source)["cells"])


def stale_rows(root: Path, found: list[Chapter]) -> dict[str, tuple[str, ...]]:
    """For each chapter that draws rows of a sweep's table which is not current: what is wrong, and what mends it."""
    from fedmorl.batch import tables

    wanting: dict[str, str] = {}
    for sweep, state in tables.states(root):
        if state.rows and not state.is_current:
            name = _shown(sweep.table, root)
            call = f"{_shown(sweep.path, root)}{f' --profile {sweep.profile}' if sweep.profile else ''}"
            wanting[name] = f"`{name}`: {state.text()}. Remake them: `fedmorl sweep {call}`, `fedmorl collect {call}`."
    read = {
        chapter.name: [text for name, text in wanting.items() if name in chapter.key["data file"]] for chapter in found
    }
    return {name: tuple(texts) for name, texts in read.items() if texts}


# --- staging and rendering -----------------------------------------------------------------------------


def _stage(root: Path, found: list[Chapter], profile: str, warnings: dict[str, tuple[str, ...]]) -> Path:
    """Write every page and asset into an empty `_build/stage`."""
    from fedmorl.book import pages

    stage = root / "_build" / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    for path in [root / "_config.yml", root / "_toc.yml", *_copied(root)]:
        target = stage / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    made_by = provenance.commit(root)
    for name in documents(root):
        page = stage / f"{name}.md"
        if page.is_file():
            page.write_text(pages.prose(page.read_text(encoding="utf-8"), Path(f"{name}.md"), made_by), "utf-8")
    for chapter in found:
        source, run = read_source(chapter.source), read_notebook(chapter.cached)
        target = stage / chapter.path
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = pages.page(source, chapter.source, run, root, profile, warnings.get(chapter.name, ()))
        write_notebook(staged, target)
    return stage


def _render(root: Path, stage: Path) -> Path:
    """Let Jupyter Book build the stage, any warning being an error; returns the folder of the HTML."""
    command = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"
    options = ["build", "-n", "-W", "--keep-going", "--all", str(stage)]
    done = subprocess.run(
        [sys.executable, "-c", command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    log = root / "_build" / "sphinx.log"
    log.write_text(done.stdout, encoding="utf-8")
    if done.returncode != 0:
        complaint = _complaint(done.stdout.replace(f"{stage}/", ""))
        raise RunError(f"{complaint}\nthe pages do not render without a warning; {_shown(log, root)} has all")
    return stage / "_build" / "html"


def _complaint(log: str) -> str:
    """The warnings of a Sphinx log, or else its last lines, without tracebacks and boxes."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    plain = re.sub(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*", "", plain)
    lines = [line for line in plain.splitlines() if line.strip("= ") and "RuntimeError:" not in line]
    warnings = [line for line in lines if re.search(r"WARNING|ERROR|SEVERE", line)]
    return "\n".join(list(dict.fromkeys(warnings))[:20] or lines[-6:])


def _check(root: Path, stage: Path, made: Path, found: list[Chapter]) -> None:
    """Mend what the renderer gets wrong, then refuse a book that misses a page or a promise."""
    from fedmorl.book import checks, repairs

    pages = documents(root)
    title = str(read_yaml(root / "_config.yml").get("title", "Book"))
    items = [
        "made by the book",
        provenance.commit_text(*provenance.commit(root)),
        f"built {provenance.today()}",
    ]
    repairs.repair(made, title, pages[0], provenance.footer_html(items))
    _offer_sources(root, made)
    findings = checks.check(made, pages) + checks.leaks(root, stage, made)
    if findings:
        raise RunError("\n".join([*findings, f"{len(findings)} finding(s) in the pages; the old book stays"]))


def _offer_sources(root: Path, made: Path) -> None:
    """Let each page's download be its source, which runs, instead of the staged page, which does not."""
    for name in documents(root):
        source = source_of(root, name)
        offered = made / "_sources" / f"{name}{source.suffix}" if source else None
        if source and offered and offered.is_file():
            shutil.copyfile(source, offered)


# --- putting the book in place -------------------------------------------------------------------------


def _publish(root: Path, made: Path, digest: str) -> None:
    """Swap the new HTML in by two renames; `_recover` mends an interruption between them."""
    html, old = root / "_build" / "html", root / "_build" / "html.old"
    pages = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.html"))
    (root / "_build" / "book.json").unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        os.rename(html, old)
    os.rename(made, html)
    temporary = root / "_build" / ".book.json.tmp"
    temporary.write_text(json.dumps({"digest": digest, "pages": pages}), encoding="utf-8")
    os.replace(temporary, root / "_build" / "book.json")
    shutil.rmtree(old, ignore_errors=True)


def _recover(html: Path) -> None:
    """Put the old book back if a build was cut off between the two renames."""
    old = html.with_name("html.old")
    if old.is_dir() and not html.exists():
        os.rename(old, html)


# --- what a build would do -----------------------------------------------------------------------------


def status(root: Path, profile: str) -> list[tuple[str, str]]:
    """(notebook, why it would run again, or how its outputs were made) for each chapter."""
    rows = []
    for chapter in chapters(root, profile):
        why = chapter.stale()
        made = chapter.metadata.get("provenance", {})
        current = f"current: code {made.get('code')}, {made.get('seconds')} s, {made.get('date')}"
        rows.append((chapter.path.as_posix(), f"stale: {why}" if why else current))
    return rows
