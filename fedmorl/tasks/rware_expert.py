"""A scripted team for the warehouse that acts on what each robot has seen itself.

Data of an omniscient planner would be confounded for a learner that sees 3 x 3 cells: the planner acts on facts that
the learner's history does not hold. Here the history holds them, and remembering what was seen pays.
"""

from dataclasses import dataclass, replace

import numpy as np

from fedmorl.tasks.rware import CELL_SIZE, OWN_CELL, SELF_SIZE, TASKS, n_robots
from fedmorl.tasks.rware_floor import UNREACHABLE, Floor, floor_of
from fedmorl.tasks.rware_traffic import Robot, right_of_way

DELIVER, STORE, FETCH, PATROL = range(4)
NEVER_SEEN = -1000  # [steps] the time at which all shelves count as seen before the first look
WAIT, DODGE_FOR = 8, 3  # [steps] without progress, then at random
CARRIES_REQUESTED_PRIORITY = 1000


@dataclass(kw_only=True)
class Memory:
    """What one robot remembers; C cells."""

    seen_at: np.ndarray  # (C,) step
    requested: np.ndarray  # (C,) bool, when last seen
    filled: np.ndarray  # (C,) bool: a shelf stood there when last seen; at first all stand in their places
    goal: int = -1
    purpose: int = -1
    nearest: int = 0  # fewest steps to the goal so far
    since: int = 0  # steps since the purpose was taken up
    stalled: int = 0  # steps without progress
    waited: int = 0  # those of them in which nobody asked it to give way, and that no random steps have followed
    asked: bool = False  # to give way, in the last step
    dodging: int = 0  # random steps still to do
    breaks: bool = False  # gives up waiting at this step

    def copy(self) -> "Memory":
        """One that can be written into."""
        return replace(self, seen_at=self.seen_at.copy(), requested=self.requested.copy(), filled=self.filled.copy())


@dataclass(frozen=True)
class TeamMemory:
    """The memories of one team, and the step that comes next."""

    t: int
    robots: tuple[Memory, ...]


@dataclass(frozen=True, kw_only=True)
class LocalExpert:
    """Fetch requested shelves that were seen, bring them to the delivery cells, put them on a free place.

    Parameters
    ----------
    task : "tiny-2ag" and so on; the expert knows the map of it, which never changes.
    patrol_radius : how far to look for requested shelves when none is known [steps]; None: anywhere.
    noise : probability with which each action is replaced by a uniform one.

    A robot fetches the nearest shelf that it knows to be requested and on which it sees no other robot; if it knows
    none, it goes and looks at the place that it has not seen for longest. Loaded, it goes to a delivery cell, and from
    there to the nearest place that it knows to be free. It knows its own 71 numbers, what it has seen of each place and
    when, its index and the map, in which it keeps to aisles and lanes (`fedmorl.tasks.rware_floor`).

    It uses one thing more, which the observations do not hold: robots at most two cells apart tell each other priority,
    load and next cell (`fedmorl.tasks.rware_traffic`). The priority is 1000 with a requested shelf on board, plus the
    steps spent on the present purpose; of equals the lower index goes first. A robot that does not come nearer to its
    goal than ever before, for 8 steps in which nobody asked it to give way, moves at random for three.

    Departs from source: MADS4's data come from a learned policy of AlberDICE's authors. Aisles, lanes and rounds slow
    this one to their returns (12.77 with two robots, tiny): driving under the shelves to the nearest place not seen
    lately, it earned 16.6.
    """

    task: str = "tiny-2ag"
    patrol_radius: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}; got {self.task!r}")
        if self.patrol_radius is not None and self.patrol_radius < 1:
            raise ValueError(f"patrol_radius must be >= 1 step, or None for no limit; got {self.patrol_radius}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be a probability; got {self.noise}")

    @property
    def floor(self) -> Floor:
        """The map, with its shortest ways."""
        return floor_of(self.task.split("-")[0])

    def start(self, batch: int, rng: np.random.Generator) -> list[TeamMemory]:
        """Nothing seen yet, in `batch` warehouses."""
        floor, n = self.floor, n_robots(self.task)
        blank = Memory(
            seen_at=np.full(len(floor.storage), NEVER_SEEN),
            requested=np.zeros_like(floor.storage),
            filled=floor.storage.copy(),
        )
        return [TeamMemory(0, tuple(blank.copy() for _ in range(n))) for _ in range(batch)]

    def act(
        self, observations: np.ndarray, memory: list[TeamMemory], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[TeamMemory]]:
        """(B, N, 71) -> (B, N) actions, and what is remembered from now on."""
        answers = [self._act(seen, team, rng) for seen, team in zip(observations, memory, strict=True)]
        actions = np.array([actions for actions, _ in answers])
        if self.noise:
            replaced = rng.random(actions.shape) < self.noise
            actions = np.where(replaced, rng.integers(5, size=actions.shape), actions)
        return actions, [team for _, team in answers]

    def rewarded(self, memory: list[TeamMemory], rewards: np.ndarray) -> list[TeamMemory]:
        """Rewards change nothing: what was delivered shows in the observation."""
        return memory

    def counts(self, memory: list[TeamMemory]) -> dict[str, np.ndarray]:
        """(B, N) each, of the last step: `deadlock_breaks`, 1 where a robot gave up waiting, and `stalled_steps`."""
        return {
            "deadlock_breaks": np.array([[robot.breaks for robot in team.robots] for team in memory]),
            "stalled_steps": np.array([[robot.stalled for robot in team.robots] for team in memory]),
        }

    def _act(self, seen: np.ndarray, team: TeamMemory, rng: np.random.Generator) -> tuple[list[int], TeamMemory]:
        floor, memories = self.floor, tuple(memory.copy() for memory in team.robots)
        loads = {int(o[1]) * floor.width + int(o[0]): o[2] > 0.5 for o in seen}
        robots = [self._robot(i, seen[i], memory, team.t, loads) for i, memory in enumerate(memories)]
        actions, asked = right_of_way(floor, robots, rng)
        for i, memory in enumerate(memories):
            memory.asked = i in asked
        return actions, TeamMemory(team.t + 1, memories)

    def _robot(self, i: int, own: np.ndarray, memory: Memory, t: int, loads: dict[int, bool]) -> Robot:
        """Look, remember, choose a goal; the `loads` of robots that are in view are known."""
        floor = self.floor
        cell, direction, loaded = int(own[1]) * floor.width + int(own[0]), int(own[3:7].argmax()), own[2] > 0.5
        cells = own[SELF_SIZE:].reshape(9, CELL_SIZE) > 0.5
        look(floor, memory, t, cell, cells, loaded)
        carries_requested = bool(loaded and cells[OWN_CELL, 6])
        steps = floor.steps[:, cell, direction]  # (C,) to each cell
        purpose, goal = self._goal(memory, steps, loaded, carries_requested)
        if goal is None:
            goal = self._patrol(i, memory, t, steps)
        left = int(steps[goal])
        follow(memory, purpose, goal, left)
        walls = [c for c, shelf in zip(floor.view[cell], cells[:, 5], strict=True) if shelf and not loads.get(c, False)]
        return Robot(
            cell=cell,
            direction=direction,
            steps_to_goal=floor.steps[goal],
            priority=CARRIES_REQUESTED_PRIORITY * carries_requested + memory.since,
            waited=memory.waited,
            toggles=left == 0 and purpose in (STORE, FETCH),
            dodges=memory.dodging > 0,
            closed=frozenset(walls) if loaded else frozenset(),
        )

    def _goal(self, memory: Memory, steps: np.ndarray, loaded: bool, carries_requested: bool) -> tuple[int, int | None]:
        """What for and where to, as far as the robot knows a place."""
        if carries_requested:
            return DELIVER, min(self.floor.deliveries, key=lambda cell: steps[cell])
        places = np.flatnonzero(self.floor.storage & ~memory.filled if loaded else memory.requested)
        if not len(places):
            return PATROL, None
        return STORE if loaded else FETCH, int(places[steps[places].argmin()])

    def _patrol(self, i: int, memory: Memory, t: int, steps: np.ndarray) -> int:
        """The old goal until it is seen, then the place not seen for longest, within the radius if there is one.

        Equals are taken in a round over all places, which each robot begins at another point.
        """
        if memory.purpose == PATROL and memory.seen_at[memory.goal] < t:
            return memory.goal
        places = np.flatnonzero(self.floor.storage)
        places = np.roll(places, -(i * len(places) // n_robots(self.task)))
        places = places[memory.seen_at[places] < t]
        near = places[steps[places] <= (self.patrol_radius or UNREACHABLE)]
        places = near if len(near) else places
        return int(places[memory.seen_at[places].argmin()])


def look(floor: Floor, memory: Memory, t: int, cell: int, cells: np.ndarray, loaded: bool) -> None:
    """Remember the 9 `cells`; a shelf with a robot on it counts as that robot's, one's own place as free if loaded."""
    view = floor.view[cell]
    inside = view >= 0
    others = cells[:, 0].copy()
    others[OWN_CELL] = loaded
    filled, requested = cells[:, 5].copy(), cells[:, 6] & ~others
    filled[OWN_CELL] &= not loaded
    places = view[inside]
    memory.seen_at[places] = t
    memory.filled[places] = filled[inside]
    memory.requested[places] = requested[inside]


def follow(memory: Memory, purpose: int, goal: int, left: int) -> None:
    """Count steps without progress, and begin or go on to dodge when there are too many."""
    same = purpose == memory.purpose
    memory.since = memory.since + 1 if same else 0
    nearer = left < memory.nearest if goal == memory.goal else not same
    memory.stalled = 0 if nearer else memory.stalled + 1
    memory.nearest = left if nearer or goal != memory.goal else memory.nearest
    memory.purpose, memory.goal = purpose, goal
    memory.waited = 0 if nearer else memory.waited + (not memory.asked and not memory.dodging)
    memory.dodging = max(memory.dodging - 1, 0)
    memory.breaks = memory.waited >= WAIT
    if memory.breaks:
        memory.dodging, memory.waited = DODGE_FOR, 0
