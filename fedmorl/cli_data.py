"""The commands under `fedmorl data`: what a log holds, whether it is whole, and new ones of the warehouse."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Union

from fedmorl.notebook import RunError

if TYPE_CHECKING:
    from fedmorl.data import OfflineDataset
    from fedmorl.data.trajectories import Trajectories

SUMMARY = "describe an offline log (card), check that it is whole (verify), or collect one (collect-rware)"
EXAMPLES = """\
A log is the HDF5 file that OfflineDataset.save or Trajectories.save writes. card and verify read all of it and check
every field and the content hash; a broken one gets one sentence and exit status 1.

  fedmorl data card _build/data/csma_ca_10.h5
  fedmorl data verify _build/data/csma_ca_10.h5
  fedmorl data collect-rware tiny-2ag --episodes 100 --grade expert --seed 0 -o tiny-2ag.h5
"""
COLLECT = "collect episodes of the scripted team in the warehouse"
COLLECT_EXAMPLES = """\
Returns are in AlberDICE's unit: what the first robot delivered, with shaping. What the whole team delivered is in the
file too. The same seed gives the same content hash on any number of processes.

  fedmorl data collect-rware tiny-2ag -o tiny-2ag.h5                               100 episodes, half a minute
  fedmorl data collect-rware tiny-4ag --episodes 300 --grade mixed -o mixed.h5     experts, middling and poor ones
  fedmorl data card tiny-2ag.h5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fedmorl data`."""
    commands = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    for name, summary in (("card", "describe a log"), ("verify", "check a log and say one line")):
        one = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        one.add_argument("path", type=Path, metavar="PATH", help="a log, .h5")
    collect = commands.add_parser(
        "collect-rware",
        help=COLLECT,
        description=COLLECT[0].upper() + COLLECT[1:] + ".",
        epilog=COLLECT_EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    collect.add_argument("task", metavar="TASK", help="tiny or small, and 2, 4 or 6 robots: tiny-2ag, small-4ag, ...")
    collect.add_argument("--episodes", type=int, default=100, metavar="E", help="how many (default: 100)")
    collect.add_argument("--grade", default="expert", help="expert, medium, poor or mixed (default: expert)")
    collect.add_argument("--seed", type=int, default=0, metavar="S", help="0 to 999; same seed, same data (default: 0)")
    collect.add_argument("--steps", type=int, default=500, metavar="T", help="steps of each episode (default: 500)")
    collect.add_argument("--workers", type=int, metavar="W", help="processes (default: the cores at hand)")
    collect.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.h5", help="where the log goes")


def command(options: argparse.Namespace) -> int:
    """`fedmorl data`."""
    return _collect(options) if options.what == "collect-rware" else _describe(options)


def _describe(options: argparse.Namespace) -> int:
    from fedmorl.data import DatasetError

    try:
        log = _load(options.path)
    except DatasetError as error:
        raise RunError(str(error)) from None
    if options.what == "verify":
        print(f"{options.path}: whole, {log.n_transitions} transitions, content {log.content_hash[:12]}")
    else:
        print(_card(log))
    return 0


def _load(path: Path) -> Union["OfflineDataset", "Trajectories"]:
    """A log of either schema."""
    from fedmorl.data import OfflineDataset
    from fedmorl.data.trajectories import SCHEMA, Trajectories
    from fedmorl.data.trajectory_files import schema_of

    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    return Trajectories.load(path) if schema_of(path) == SCHEMA else OfflineDataset.load(path)


def _card(log: Union["OfflineDataset", "Trajectories"]) -> str:
    from fedmorl.data import OfflineDataset, card, trajectory_card

    return card.card(log) if isinstance(log, OfflineDataset) else trajectory_card.card(log)


def _collect(options: argparse.Namespace) -> int:
    from fedmorl.tasks.rware_data import collect_rware

    if options.output.exists():
        raise RunError(f"{options.output} exists; name another file, or remove it")
    try:
        log = collect_rware(
            options.task, options.episodes, grade=options.grade, seed=options.seed, episode_limit=options.steps,
            workers=options.workers,
        )  # fmt: skip
    except (ValueError, ModuleNotFoundError) as error:
        raise RunError(str(error)) from None
    log.save(options.output)
    print(
        f"{options.output}: {len(log)} episodes, mean return {log.returns.mean():.2f} ({log.reward_def}), "
        f"{log.extras['team_deliveries'].sum() / len(log):.1f} deliveries of the team; content {log.content_hash[:12]}"
    )
    return 0
