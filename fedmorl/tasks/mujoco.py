"""Bodies of MuJoCo that several agents move, one or more joints each, as MaMuJoCo divides them: arrays in, arrays out.

MuJoCo is not batched: B episodes are stepped one after the other. The bodies are gymnasium's v5 on the MuJoCo that is
installed, and their returns stand beside no returns on v2.

Letters: B episodes, N agents, A joints an agent moves, S state, O observation. `mujoco` and `gymnasium_robotics` are
imported where a body is made: the extra `mamujoco` has them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib import metadata
from io import StringIO
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from fedmorl.evaluation.team import TeamStep

SCENARIOS = {  # -> the body's name in gymnasium, and MaMuJoCo's name of the partition: agents x joints of each
    "hopper-3x1": ("Hopper", "3x1"),
    "ant-2x4": ("Ant", "2x4"),
    "halfcheetah-6x1": ("HalfCheetah", "6x1"),
}
FULL = "full"
FORMS = (FULL, 0, 1)  # of the observation
TIME_LIMIT = 1000
PACKAGES = ("mujoco", "gymnasium-robotics", "stable-baselines3")


def check_scenario(scenario: str) -> str:
    """The name itself; ValueError, one sentence, if there is no such scenario."""
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}; got {scenario!r}")
    return scenario


def check_form(agent_obsk: str | int) -> str | int:
    """The form of the observation itself; ValueError, one sentence, if there is no such form."""
    if isinstance(agent_obsk, bool) or agent_obsk not in FORMS:
        raise ValueError(f'agent_obsk must be "full", 0 or 1; got {agent_obsk!r}')
    return agent_obsk


def package_version(name: str) -> str:
    """The version of an installed package of the extra, or one sentence that says how to get it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"MuJoCo's bodies need the packages {', '.join(PACKAGES)}; install the extra: "
            "pip install -c constraints.txt -e '.[mamujoco]'"
        ) from None


def body_version() -> str:
    """Of the bodies and their physics."""
    return f"v5, mujoco {package_version('mujoco')}"


def make_body(body: str, time_limit: int = -1) -> gymnasium.Env:
    """Gymnasium's own environment, moved by all joints at once; without a `time_limit` it goes on until it falls."""
    package_version("mujoco")
    with _deprecations_unsaid():
        return gymnasium.make(f"{body}-v5", max_episode_steps=time_limit, disable_env_checker=True)


@contextmanager
def _deprecations_unsaid() -> Iterator[None]:
    """What MuJoCo says of the XML of gymnasium's bodies; it would also write it to a file in the working folder."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class Parts(NamedTuple):
    """Who moves and who sees what, of one scenario and form of the observation."""

    state_size: int  # S
    joints: np.ndarray  # (N, A) the place of each agent's joints in the body's action
    seen: np.ndarray  # (N, K) the place in the state of each number that an agent sees; S where there is none
    names: np.ndarray  # (N, N) one-hot, or (N, 0): seen behind these

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers each agent sees."""
        return tuple(int(w) for w in (self.seen < self.state_size).sum(1) + self.names.shape[1])

    def observe(self, states: np.ndarray) -> np.ndarray:
        """States (B, S) -> what each agent sees, (B, N, O), zero where it sees less than another."""
        and_nothing = np.pad(states, ((0, 0), (0, 1)))
        names = np.broadcast_to(self.names, (len(states), *self.names.shape)).astype(states.dtype)
        return np.concatenate([and_nothing[:, self.seen], names], -1)

    def states(self, observations: np.ndarray) -> np.ndarray:
        """The inverse of `observe`: together the agents see the whole state, in each form."""
        _, first = np.unique(self.seen, return_index=True)
        seen = observations[:, :, : self.seen.shape[1]].reshape(len(observations), -1)
        return seen[:, first[: self.state_size]]


@cache
def parts_of(scenario: str, agent_obsk: str | int) -> Parts:
    """The tables of MaMuJoCo, read off by handing it places in place of values."""
    package_version("gymnasium-robotics")
    with redirect_stderr(StringIO()):  # it tells news of its other environments at each import
        from gymnasium_robotics import mamujoco_v1

    body, partition = SCENARIOS[scenario]
    with _deprecations_unsaid():
        divided = mamujoco_v1.parallel_env(body, partition, agent_obsk=0 if agent_obsk == FULL else agent_obsk)
    size = len(divided.state())
    joints = divided.map_global_action_to_local_actions(np.arange(divided.single_agent_env.action_space.shape[0]))
    n = len(joints)
    if agent_obsk == FULL:
        seen, names = [np.arange(size)] * n, np.eye(n)
    else:
        seen, names = list(divided.map_global_state_to_local_observations(np.arange(size)).values()), np.zeros((n, 0))
    widest = max(len(one) for one in seen)
    divided.close()
    return Parts(
        state_size=size,
        joints=np.stack(list(joints.values())),  # the agents of these scenarios move as many joints as each other
        seen=np.stack([np.pad(one, (0, widest - len(one)), constant_values=size) for one in seen]),
        names=names,
    )


class MultiAgentMuJoCo:
    """B episodes of one body, stepped one after the other.

    Parameters
    ----------
    scenario : "hopper-3x1", "ant-2x4" (two agents of four joints each) or "halfcheetah-6x1".
    agent_obsk : what an agent sees. "full" is the whole state and its own one-hot name, as the public data of OMIGA
        have it; 0 is MaMuJoCo's own joints and torso; 1 is that and the positions of the joints next to its own.
    batch : B; another number of seeds in `reset` changes it.
    time_limit : steps until an episode is truncated.

    The state (S) is what gymnasium's own environment observes, and rewards and falls are its own; all agents earn the
    same. Actions are numbers from -1 to 1, and others are refused. An episode that has terminated stands still and
    earns nothing more; it terminates when a hopper or an ant falls, never with a half-cheetah.

    Departs from source: MaMuJoCo with no limit to sight has one agent that moves all; "full" keeps the partition.

    Source: Peng et al. (2021), FACMAC, section on MAMuJoCo; Farama's gymnasium-robotics, MaMuJoCo v1.
    """

    discrete = False
    n_actions = 0  # none to choose among: actions are numbers

    def __init__(
        self,
        scenario: str = "halfcheetah-6x1",
        agent_obsk: str | int = FULL,
        batch: int = 1,
        time_limit: int = TIME_LIMIT,
    ) -> None:
        for name, value in (("batch", batch), ("time_limit", time_limit)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
        self.scenario, self.agent_obsk = check_scenario(scenario), check_form(agent_obsk)
        self.batch, self.time_limit = batch, time_limit
        self.body, partition = SCENARIOS[scenario]
        self.env_id, self.env_version = f"{self.body}-{partition}", body_version()
        self.reward_def = f"team: gymnasium's own of {self.body}-v5"
        self.parts = parts_of(scenario, agent_obsk)
        self.n_agents, self.action_size = self.parts.joints.shape
        self.state_size, self.widths = self.parts.state_size, self.parts.widths
        self.observation_size = max(self.widths)
        self._bodies = [make_body(self.body) for _ in range(batch)]
        self._states = np.zeros((0, self.state_size), np.float32)
        self._t = time_limit

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `MultiAgentMuJoCo` needs to make this task again."""
        return {"scenario": self.scenario, "agent_obsk": self.agent_obsk, "time_limit": self.time_limit}

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin B episodes, one a seed, which fixes where they begin. (B, N, O)"""
        if len(seeds) < 1 or any(isinstance(s, bool) or int(s) != s or s < 0 for s in seeds):
            raise ValueError(f"seeds must be integers >= 0, one an episode; got {list(seeds)}")
        self._bodies += [make_body(self.body) for _ in range(len(seeds) - len(self._bodies))]
        begun = [body.reset(seed=int(seed))[0] for body, seed in zip(self._bodies, seeds, strict=False)]
        self.batch, self._t, self._fallen = len(seeds), 0, np.zeros(len(seeds), bool)
        self._states = np.stack(begun).astype(np.float32)
        return self.parts.observe(self._states)

    def step(self, actions: np.ndarray) -> TeamStep:
        """Joint actions (B, N, A) from -1 to 1 -> what follows."""
        actions = self._checked(actions)
        moved = np.empty((self.batch, actions[0].size), np.float32)
        moved[:, self.parts.joints] = actions
        rewards = np.zeros(self.batch)
        self._states = self._states.copy()
        for b in np.flatnonzero(~self._fallen):
            self._states[b], rewards[b], self._fallen[b], _, _ = self._bodies[b].step(moved[b])
        self._t += 1
        return TeamStep(
            observations=self.parts.observe(self._states),
            rewards=rewards,
            terminated=self._fallen.copy(),
            truncated=~self._fallen & (self._t >= self.time_limit),
            extras={},
        )

    def states(self) -> np.ndarray:
        """(B, S) float32."""
        return self._states

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if self._t >= self.time_limit:
            raise RuntimeError("the episodes are over (or have not begun): call reset(seeds) before step()")
        actions = np.asarray(actions)
        wanted = (self.batch, self.n_agents, self.action_size)
        if actions.shape != wanted or actions.dtype.kind not in "iuf":
            raise ValueError(
                f"actions must be numbers of shape {wanted} (episodes, agents, joints of each); "
                f"got {actions.dtype} of shape {actions.shape}"
            )
        if not (abs(actions) <= 1).all():  # NaN is refused too
            worst = actions.ravel()[np.argmax(~(abs(actions) <= 1).ravel())]
            raise ValueError(f"actions must be from -1 to 1; got {worst:g}: clip them on purpose or not at all")
        return actions.astype(np.float32)
