"""The `fedmorl` command: a thin skin, each command over one function of the package.

Imports are inside the commands, so that `fedmorl --help` answers at once. A command returns the exit status;
a problem that a person can put right is one sentence on stderr and status 1.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from fedmorl import __version__, cli_data, cli_federate, cli_simulate, cli_sweep

EXAMPLES = """\
examples:
  fedmorl simulate --access ac_be --stations 10            ten saturated stations, 1e7 slots, a table
  fedmorl simulate --access csma_eca --stations 8 --json   the same as JSON, for a script
  fedmorl book                                             run what is stale, render and check the book
  fedmorl status                                           chapters, tables and claims: what is stale, and why
  fedmorl run notebooks/channel/channel_access.ipynb -p seed 1 -o out.ipynb
  fedmorl sweep baselines_saturated                        one notebook, many parameters; resumes
  fedmorl collect baselines_saturated                      its rows into one table
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and turn what went wrong into one sentence."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: kernels are ended, locks let go
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print(f"fedmorl {options.name}: interrupted; run it again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except (RuntimeError, ValueError, OSError) as error:
        if not _is_for_a_person(error):
            raise
        print(f"fedmorl {options.name}: {_sentence(error)}", file=sys.stderr)
        return 1


def _is_for_a_person(error: Exception) -> bool:
    """Our own refusals, and what the file system says; anything else is a defect and keeps its traceback."""
    from fedmorl.closure import SourceError
    from fedmorl.notebook import RunError

    return isinstance(error, RunError | SourceError | OSError | cli_simulate.Refused)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot write or read {error.filename or 'a file'}: {error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedmorl",
        description="Simulate the shared channel, run notebooks once or in thousands, build the book.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="name")
    simulate = _add(commands, "simulate", cli_simulate.command, cli_simulate.SUMMARY, cli_simulate.EXAMPLES)
    cli_simulate.add_options(simulate)
    _add_run(commands)
    sweep = _add(commands, "sweep", cli_sweep.sweep_command, cli_sweep.SWEEP, cli_sweep.SWEEP_EXAMPLES)
    cli_sweep.add_sweep_options(sweep)
    collect = _add(commands, "collect", cli_sweep.collect_command, cli_sweep.COLLECT, cli_sweep.COLLECT_EXAMPLES)
    cli_sweep.add_collect_options(collect)
    cli_data.add_options(_add(commands, "data", cli_data.command, cli_data.SUMMARY, cli_data.EXAMPLES))
    federate = _add(commands, "federate", cli_federate.command, cli_federate.SUMMARY, cli_federate.EXAMPLES)
    cli_federate.add_options(federate)
    _add_book(commands)
    _add_status(commands)
    return parser


def _add(commands: Any, name: str, command: Any, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


# --- run, book, status ---------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    parser = _add(
        commands,
        "run",
        _run,
        "run one notebook with other parameters, into a new file",
        "A value is read as YAML, in the type of the parameter's default: 3, 0.5, true, text, [2, 4], 1e7.\n"
        "Refused: an unknown parameter, the output of an earlier run, and an output that exists.\n\n"
        "  fedmorl run notebooks/channel/channel_access.ipynb -p n_slots 1e7 -p seed 3 -o out.ipynb",
    )
    parser.add_argument("notebook", type=Path, help="a source notebook with one cell tagged `parameters`")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="parameters",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.ipynb", help="where the run goes")
    parser.add_argument("--force", action="store_true", help="replace an existing output")


def _run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fedmorl import execute
    from fedmorl.notebook import RunError, parameters_of, read_source

    if options.output.suffix != ".ipynb":
        raise RunError(f"the output must end in .ipynb, got {options.output}")
    if options.output.resolve() == options.notebook.resolve():
        raise RunError(f"{options.output} is the source itself; a run writes a new file")
    if options.output.exists() and not options.force:
        raise RunError(f"{options.output} exists; name another output, or pass --force to replace it")
    source = read_source(options.notebook)
    known = parameters_of(source, options.notebook)
    given = {name: _value(text, known.get(name)) for name, text in options.parameters}
    cells = sum(cell["cell_type"] == "code" for cell in source["cells"])
    with tqdm(total=cells, unit="cell", disable=not sys.stderr.isatty(), leave=False) as bar:
        made = execute.run_interruptible(options.notebook, options.output, given, on_cell=lambda: bar.update(1))
    print(f"{options.output}: code {made['code']}, {made['seconds']} s")
    return 0


def _value(text: str, parameter: Any) -> Any:
    """The value on the command line; text stays text where the default is text."""
    import yaml

    if parameter is not None and parameter.types == {str}:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="quick", help="parameters: notebooks/profiles/PROFILE.yml (default: %(default)s)"
    )


def _add_book(commands: Any) -> None:
    parser = _add(commands, "book", _book, "run what is stale, render the book into _build/html, and check it")
    _add_profile(parser)
    parser.add_argument("--jobs", type=int, metavar="K", help="chapters at a time (default: the cores at hand)")


def _book(options: argparse.Namespace) -> int:
    from fedmorl.book import build
    from fedmorl.notebook import RunError

    if options.jobs is not None and options.jobs < 1:
        raise RunError(f"--jobs must be at least 1, got {options.jobs}")
    build.build(cli_sweep.root_of(Path.cwd()), options.profile, options.jobs, say=lambda text: print(text, flush=True))
    return 0


def _add_status(commands: Any) -> None:
    _add_profile(
        _add(commands, "status", _status, "tell which chapters and tables are stale, missing or failed, and why")
    )


def _status(options: argparse.Namespace) -> int:
    from fedmorl.batch import tables
    from fedmorl.book import build

    root = cli_sweep.root_of(Path.cwd())
    for notebook, text in build.status(root, options.profile):
        print(f"{notebook}: {text}")
    for sweep, state in tables.states(root):
        print(f"{sweep.table.relative_to(root)}: {state.text()}")
    if (root / "results" / "claims.csv").is_file():
        print(f"results/claims.csv: {_claims(root / 'results' / 'claims.csv')}")
    return 0


def _claims(path: Path) -> str:
    """How many claims there are of each verdict."""
    from fedmorl.evaluation import count, read_claims
    from fedmorl.notebook import RunError

    try:
        counts = count(read_claims(path)).sum()
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    return f"{counts.sum()} claims: {', '.join(f'{n} {verdict}' for verdict, n in counts.items() if n)}"


if __name__ == "__main__":
    sys.exit(main())
