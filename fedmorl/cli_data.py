"""The commands under `fedmorl data`: what a log holds, whether it is whole, and new ones, collected or converted."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmorl.notebook import RunError

if TYPE_CHECKING:
    from fedmorl.data import OfflineDataset
    from fedmorl.data.joint_transitions import JointTransitions
    from fedmorl.data.trajectories import Trajectories

    Log = OfflineDataset | Trajectories | JointTransitions

SUMMARY = (
    "describe an offline log (card), check that it is whole (verify), collect one (collect-rware, collect-mujoco), or "
    "make one of another project's files (convert)"
)
EXAMPLES = """\
A log is the HDF5 file that OfflineDataset.save, Trajectories.save or JointTransitions.save writes. card and verify
read all of it and check every field and the content hash; a broken one gets one sentence and exit status 1.

  fedmorl data card _build/data/csma_ca_10.h5
  fedmorl data verify _build/data/csma_ca_10.h5
  fedmorl data collect-rware tiny-2ag --episodes 100 --grade expert --seed 0 -o tiny-2ag.h5
  fedmorl data collect-mujoco hopper-3x1 --grade medium -o hopper-medium.h5
  fedmorl data convert cfcql 2s3z_expert.h5 2s3z.h5 --time-limit 120 --env-id 2s3z --env-version smac-1
"""
COLLECT = "collect episodes of the scripted team in the warehouse"
COLLECT_EXAMPLES = """\
Returns are in AlberDICE's unit: what the first robot delivered, with shaping. What the whole team delivered is in the
file too. The same seed gives the same content hash on any number of processes.

  fedmorl data collect-rware tiny-2ag -o tiny-2ag.h5                               100 episodes, half a minute
  fedmorl data collect-rware tiny-4ag --episodes 300 --grade mixed -o mixed.h5     experts, middling and poor ones
  fedmorl data card tiny-2ag.h5
"""
MUJOCO = "train a body of MuJoCo once, and collect what its team does"
MUJOCO_EXAMPLES = """\
SCENARIO         a body                agents   joints of each   numbers of the state
hopper-3x1       one leg, may fall        3           1                  11
ant-2x4          four legs, may fall      2           4                 105
halfcheetah-6x1  two legs, never falls    6           1                  17

The first call trains: PPO of stable-baselines3 moves all joints at once, keeps 25 policies on the way and all that it
did, in the folder RUN. That takes minutes for the hopper and the half-cheetah, longer for the ant; calls that follow
with the same RUN collect from it at once. A training that is interrupted begins anew.

GRADE            who plays
expert           the policy that earned most, in ten episodes of an evaluation
medium           of those on the way there, the one that earned closest to half as much
mixed            half of the transitions from each; OMIGA's data call this medium-expert
medium-replay    nobody: episodes of the training, up to the medium policy, are played again as they were

FORM             what an agent sees
full             the whole state and its own one-hot name, as OMIGA's public data have it
0                its own joints and the torso
1                that, and the positions of the joints next to its own

Every agent earns what the body earns. Rewards and physics are of gymnasium's v5 bodies on the MuJoCo that is installed:
returns stand beside none of v2, whose published ranges the card tells for comparison. Needs the extra mamujoco.

  fedmorl data collect-mujoco hopper-3x1 -o expert.h5                              trains, then 100,000 transitions
  fedmorl data collect-mujoco hopper-3x1 --grade medium-replay -o replay.h5        of the same training
  fedmorl data collect-mujoco hopper-3x1 --grade mixed --noise 0.2 --observations 1 -o mixed.h5
  fedmorl data card mixed.h5
"""
# format -> what PATH is, and the options that it needs beside the task's; and those that it takes
FORMATS = {
    "omiga": ("the .hdf5 file of a MaMuJoCo task", {"convention"}, {"time_limit"}),
    "omar": ("a folder seed_K_data with obs_0.npy, acs_0.npy, ...", {"time_limit"}, set[str]()),
    "cfcql": ("the .h5 file of a StarCraft map", {"time_limit"}, set[str]()),
    "alberdice": ("a folder with state.npy, actions.npy, ..., meta.json", {"time_limit"}, set[str]()),
    "madt": ("a folder of StarCraft episodes, one file each", {"time_limit"}, set[str]()),
}
CONVERT = "make a log of public offline data of another project"
CONVERT_EXAMPLES = """\
FORMAT     PATH                                                     needs
{formats}
omiga and omar become joint transitions (JointTransitions), the others trajectories (Trajectories); card describes
both. Nothing is downloaded, and nothing in a file is run. What the files do not tell, you do:

  --env-id, --env-version   Name the task. A learner refuses data of another task or version.
  --time-limit              An episode that the limit cut is no end of the task: a learner goes on to count what
                            would have come. Most files mark both ends alike, so only the limit tells them apart.
                            omiga takes it too; without it every d = 1 is an end, as its authors read the file.
  --convention              What omiga's d = 1 marks. "omiga": the row behind the last transition, as its authors
                            read it; that row's own reward is lost. "standard": the last transition itself.
  --reward-def              The unit of the reward: data in different units are never mixed or compared.

  fedmorl data convert omiga Hopper-v2-3x1-expert.hdf5 hopper.h5 --convention omiga \\
      --env-id Hopper-3x1 --env-version v2
  fedmorl data convert omar data/HalfCheetah-v2/expert/seed_0_data cheetah.h5 --time-limit 1000 \\
      --env-id HalfCheetah-2x3 --env-version v2
  fedmorl data convert alberdice bridge/optimal bridge.h5 --time-limit 50 --env-id bridge --env-version 1
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
    _add_mujoco(commands)
    _add_convert(commands)


def _add_mujoco(commands: Any) -> None:
    mujoco = commands.add_parser(
        "collect-mujoco",
        help=MUJOCO,
        description=MUJOCO[0].upper() + MUJOCO[1:] + ".",
        epilog=MUJOCO_EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mujoco.add_argument("scenario", metavar="SCENARIO", help="hopper-3x1, ant-2x4 or halfcheetah-6x1")
    mujoco.add_argument(
        "--transitions", type=int, default=100_000, metavar="N", help="whole episodes until so many (default: 100000)"
    )
    mujoco.add_argument("--grade", default="expert", help="see below (default: expert)")
    mujoco.add_argument("--observations", default="full", metavar="FORM", help="full, 0 or 1 (default: full)")
    mujoco.add_argument(
        "--noise", type=float, default=0.0, metavar="SD", help="more noise on each action, before it is clipped"
    )
    mujoco.add_argument("--seed", type=int, default=0, metavar="S", help="0 to 999; same seed, same data (default: 0)")
    mujoco.add_argument(
        "--run", type=Path, help="folder of the training (default: _build/mujoco/SCENARIO-S, or -S-T with --steps)"
    )
    mujoco.add_argument("--steps", type=int, metavar="T", help="of the training (default: the body's own)")
    mujoco.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.h5", help="where the log goes")


def _add_convert(commands: Any) -> None:
    lines = [
        f"{name:<10} {what:<56} {' '.join('--' + one.replace('_', '-') for one in sorted(needed))}"
        for name, (what, needed, _) in FORMATS.items()
    ]
    convert = commands.add_parser(
        "convert",
        help=CONVERT,
        description=CONVERT[0].upper() + CONVERT[1:] + ".",
        epilog=CONVERT_EXAMPLES.replace("{formats}\n", "".join(f"{line}\n" for line in lines) + "\n"),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("format", metavar="FORMAT", choices=FORMATS, help=", ".join(FORMATS))
    convert.add_argument("path", type=Path, metavar="PATH", help="the file or folder of that format")
    convert.add_argument("output", type=Path, metavar="OUT", help="where the log goes, .h5")
    convert.add_argument("--env-id", required=True, metavar="ID", help="the task, such as Hopper-3x1")
    convert.add_argument("--env-version", required=True, metavar="V", help="the version of the task, such as v2")
    convert.add_argument("--time-limit", type=int, metavar="T", help="steps after which an episode was cut")
    convert.add_argument("--convention", metavar="C", help="omiga or standard, for the format omiga")
    convert.add_argument("--reward-def", default="team", metavar="UNIT", help="unit of the reward (default: team)")
    convert.add_argument("--behaviour", metavar="NAME", help="who acted (default: the name of PATH)")


def command(options: argparse.Namespace) -> int:
    """`fedmorl data`."""
    commands = {"collect-rware": _collect, "collect-mujoco": _collect_mujoco, "convert": _convert}
    return commands.get(options.what, _describe)(options)


def _describe(options: argparse.Namespace) -> int:
    from fedmorl.data import DatasetError

    try:
        log = _load(options.path)
    except DatasetError as error:
        raise RunError(str(error)) from None
    if options.what == "verify":
        print(f"{options.path}: whole, {_n_transitions(log)} transitions, content {log.content_hash[:12]}")
    else:
        print(_card(log, options.path))
    return 0


def _load(path: Path) -> "Log":
    """A log of any schema."""
    from fedmorl.data import OfflineDataset, joint_transitions, trajectories
    from fedmorl.data.trajectory_files import schema_of

    with open(path, "rb"):  # the file system's own words for a file that is missing or may not be read
        pass
    schema = schema_of(path)
    if schema == joint_transitions.SCHEMA:
        return joint_transitions.JointTransitions.load(path)
    return trajectories.Trajectories.load(path) if schema == trajectories.SCHEMA else OfflineDataset.load(path)


def _card(log: "Log", path: Path) -> str:
    from fedmorl.data import OfflineDataset, card, joint_card, trajectory_card
    from fedmorl.data.joint_transitions import JointTransitions

    if isinstance(log, JointTransitions):
        return joint_card.card(log, path.name)
    return card.card(log) if isinstance(log, OfflineDataset) else trajectory_card.card(log)


def _n_transitions(log: "Log") -> int:
    from fedmorl.data.joint_transitions import JointTransitions

    return len(log) if isinstance(log, JointTransitions) else log.n_transitions


def _convert(options: argparse.Namespace) -> int:
    from fedmorl.data import DatasetError
    from fedmorl.data.formats_continuous import from_omar, from_omiga
    from fedmorl.data.formats_madt import from_madt
    from fedmorl.data.formats_pymarl import from_alberdice, from_cfcql

    _, needed, taken = FORMATS[options.format]
    given: dict[str, Any] = {}
    for name in ("time_limit", "convention"):
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None and name in needed:
            raise RunError(f"{options.format} needs {option}, which its files do not tell; see fedmorl data convert -h")
        if value is not None and name not in needed | taken:
            raise RunError(f"{options.format} takes no {option}")
        given |= {} if value is None else {name: value}
    if options.output.exists():
        raise RunError(f"{options.output} exists; name another file, or remove it")
    convert: dict[str, Any] = {
        "omiga": from_omiga, "omar": from_omar, "cfcql": from_cfcql, "alberdice": from_alberdice, "madt": from_madt
    }  # fmt: skip
    try:
        log = convert[options.format](
            options.path, env_id=options.env_id, env_version=options.env_version, reward_def=options.reward_def,
            behaviour=options.behaviour, **given,
        )  # fmt: skip
    except DatasetError as error:
        raise RunError(str(error)) from None
    log.save(options.output)
    print(f"{options.output}: {_n_transitions(log)} transitions, content {log.content_hash[:12]}")
    return 0


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


def _collect_mujoco(options: argparse.Namespace) -> int:
    from fedmorl.data.joint_card import episode_returns
    from fedmorl.tasks.mujoco_data import check_arguments, collect_mujoco
    from fedmorl.tasks.mujoco_training import load_or_train

    if options.output.exists():
        raise RunError(f"{options.output} exists; name another file, or remove it")
    given: dict[str, Any] = {name: getattr(options, name) for name in ("grade", "seed", "noise")}
    forms: dict[str, str | int] = {"full": "full", "0": 0, "1": 1}
    if options.observations not in forms:
        raise RunError(f"--observations must be one of {', '.join(forms)}; got {options.observations!r}")
    given["agent_obsk"] = forms[options.observations]
    try:
        check_arguments(options.scenario, options.transitions, **given)
        run = load_or_train(options.scenario, options.run, seed=options.seed, steps=options.steps)
        log = collect_mujoco(options.scenario, run, options.transitions, **given)
    except (ValueError, ModuleNotFoundError) as error:
        raise RunError(str(error)) from None
    log.save(options.output)
    returns = episode_returns(log)
    print(
        f"{options.output}: {len(log)} transitions in {len(returns)} episodes, mean return {returns.mean():.0f} "
        f"(sd {returns.std():.0f}); content {log.content_hash[:12]}"
    )
    return 0
