"""From sources to staged pages: what Jupyter Book is given to render.

A staged notebook is today's prose with the outputs of a run grafted on. Its two parameter cells become one
table, cells for a live kernel are left out, and nothing in it depends on when or where it was staged.
"""

import html
from copy import deepcopy
from pathlib import Path
from typing import Any

from fedmorl import provenance
from fedmorl.notebook import Notebook, Parameter, RunError, command, parameters_of

LIVE_ONLY = "live-only"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def page(
    source: Notebook, path: Path, run: Notebook, root: Path, profile: str, warnings: tuple[str, ...] = ()
) -> Notebook:
    """The notebook to render: prose of `source`, outputs of `run`, without what only a run needs.

    `warnings` are shown below the title: what a reader must know of the rows that the page draws.
    """
    values = run["metadata"].get("papermill", {}).get("parameters", {})
    known = parameters_of(source, path)
    table = parameters_table(known, values, profile, path.relative_to(root))
    staged = deepcopy(source)
    graft(staged, run, path)
    staged["cells"] = [
        _markdown(cell, table) if "parameters" in _tags(cell) else _tidy(cell)
        for cell in staged["cells"]
        if LIVE_ONLY not in _tags(cell)
    ]
    staged["cells"][1:1] = [_markdown({"id": f"stale-{k}"}, badge(text)) for k, text in enumerate(warnings)]
    staged["metadata"] = deepcopy(_METADATA)
    return staged


def badge(text: str) -> str:
    """A box that says that the rows behind a page are not what the code of today would give."""
    return f"```{{admonition}} Stale rows\n:class: warning stale-rows\n{text}\n```"


def graft(staged: Notebook, run: Notebook, path: Path) -> None:
    """Copy the outputs of `run` onto the code cells of `staged`, in order; the code must be the same."""
    ran = [cell for cell in run["cells"] if cell["cell_type"] == "code"]
    ran = [cell for cell in ran if "injected-parameters" not in _tags(cell)]
    cells = [cell for cell in staged["cells"] if cell["cell_type"] == "code"]
    if len(ran) != len(cells):
        raise RunError(f"{path} has {len(cells)} code cells and its run has {len(ran)}; remove _build and rebuild")
    for cell, done in zip(cells, ran, strict=True):
        cell["outputs"] = deepcopy(done["outputs"])


def _tidy(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without widget views, counters and time stamps."""
    cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
    if cell["cell_type"] == "code":
        cell["execution_count"] = None
        cell["outputs"] = [_counted_out(output) for output in cell["outputs"] if not _is_widget(output)]
        if any(_is_footer(output) for output in cell["outputs"]):
            cell["metadata"]["tags"] = [*_tags(cell), "remove-input"]  # the page ends with the line alone
    return cell


def _is_widget(output: dict[str, Any]) -> bool:
    return _WIDGET in output.get("data", {})


def _is_footer(output: dict[str, Any]) -> bool:
    return provenance.FOOTER_START in "".join(output.get("data", {}).get("text/html", ""))


def _counted_out(output: dict[str, Any]) -> dict[str, Any]:
    if "execution_count" in output:
        output["execution_count"] = None
    return output


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _markdown(cell: dict[str, Any], text: str) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if key == "id"} | {
        "cell_type": "markdown",
        "metadata": {},
        "source": text,
    }


def parameters_table(known: dict[str, Parameter], values: dict[str, Any], profile: str, path: Path) -> str:
    """A folded table of what this page was run with, and the command that runs it again."""
    rows = [
        f"<tr><td><code>{name}</code></td><td><code>{_literal(values.get(name, parameter.default))}</code></td>"
        f"<td>{html.escape(parameter.comment)}</td></tr>"
        for name, parameter in known.items()
    ]
    given = {name: values[name] for name in known if name in values}
    return "\n".join(
        [
            '<details class="run-parameters">',
            f"<summary>Parameters of this run (profile {html.escape(profile)})</summary>",
            '<table class="table"><thead><tr><th scope="col">parameter</th><th scope="col">value</th>'
            '<th scope="col">meaning</th></tr></thead><tbody>',
            *rows,
            "</tbody></table>",
            f"<p>Run it again: <code>{html.escape(command(path, given))}</code></p>",
            "</details>",
        ]
    )


def _literal(value: Any) -> str:
    """The value as Python writes it, long integers in groups of three."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000
    return f"{value:_}" if whole else html.escape(repr(value))


def prose(text: str, path: Path, commit: tuple[str, bool | None]) -> str:
    """A Markdown page with its provenance line at the end."""
    items = [path.as_posix(), provenance.commit_text(*commit), f"built {provenance.today()}"]
    return f"{text.rstrip()}\n\n{provenance.footer_html(items)}\n"
