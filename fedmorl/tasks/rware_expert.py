"""A scripted team for the warehouse that acts on what each robot has seen itself.

Data of an omniscient planner would be confounded for a learner that sees 3 x 3 cells: the planner acts on facts that
the learner's history does not hold. Here the history holds them, and remembering what was seen pays.
"""

from dataclasses import dataclass, replace

import numpy as np

from fedmorl.tasks.rware import CELL_SIZE, OWN_CELL, SELF_SIZE, TASKS, n_robots
from fedmorl.tasks.rware_floor import Floor, floor_of
from fedmorl.tasks.rware_traffic import Robot, right_of_way

DELIVER, STORE, FETCH, PATROL = range(4)
NEVER_SEEN = -1000  # [steps] the time at which all shelves count as seen before the first look
STALLED_AFTER, DODGE_FOR = 8, 3  # [steps]
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
    patience: int = STALLED_AFTER
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

    A robot goes to the nearest known requested shelf on which no robot is seen, else to the shelf with the largest
    (steps since seen - steps to go); loaded, to the delivery cell or to the nearest free place known. It knows its own
    71 numbers, what it has seen of each place and when, and the map.

    It uses one thing more that the observations do not hold: robots at most two cells apart tell each other priority,
    load and next cell (`fedmorl.tasks.rware_traffic`). Priority is 1000 with a requested shelf on board, plus the steps
    spent on the present purpose; the lower index wins a tie. A robot without progress for 8 steps moves at random for
    three; progress means nearer to the goal than ever since it was set.
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
        robots = [self._robot(o, memory, team.t, loads) for o, memory in zip(seen, memories, strict=True)]
        return right_of_way(floor, robots, rng), TeamMemory(team.t + 1, memories)

    def _robot(self, own: np.ndarray, memory: Memory, t: int, loads: dict[int, bool]) -> Robot:
        """Look, remember, choose a goal; the `loads` of robots that are in view are known."""
        floor = self.floor
        cell, direction, loaded = int(own[1]) * floor.width + int(own[0]), int(own[3:7].argmax()), own[2] > 0.5
        cells = own[SELF_SIZE:].reshape(9, CELL_SIZE) > 0.5
        look(floor, memory, t, cell, cells, loaded)
        steps = floor.loaded if loaded else floor.empty
        carries_requested = bool(loaded and cells[OWN_CELL, 6])
        purpose, goal = self._goal(memory, t, cell, direction, loaded, carries_requested)
        left = int(steps[goal, cell, direction])
        follow(memory, purpose, goal, left)
        walls = [c for c, shelf in zip(floor.view[cell], cells[:, 5], strict=True) if shelf and not loads.get(c, False)]
        return Robot(
            cell=cell,
            direction=direction,
            steps_to_goal=steps[goal],
            priority=CARRIES_REQUESTED_PRIORITY * carries_requested + memory.since,
            stalled=memory.stalled,
            toggles=left == 0 and purpose in (STORE, FETCH),
            dodges=memory.dodging > 0,
            closed=frozenset(walls) if loaded else frozenset(),
        )

    def _goal(
        self, memory: Memory, t: int, cell: int, direction: int, loaded: bool, carries_requested: bool
    ) -> tuple[int, int]:
        floor = self.floor
        steps = (floor.loaded if loaded else floor.empty)[:, cell, direction]  # (C,) to each cell
        if carries_requested:
            return DELIVER, min(floor.deliveries, key=lambda c: steps[c])
        wanted = floor.storage & ~memory.filled if loaded else memory.requested
        if wanted.any():
            places = np.flatnonzero(wanted)
            return STORE if loaded else FETCH, int(places[steps[places].argmin()])
        if memory.purpose == PATROL and memory.seen_at[memory.goal] < t:
            return PATROL, memory.goal
        return PATROL, self._patrol(memory, t, steps)

    def _patrol(self, memory: Memory, t: int, steps: np.ndarray) -> int:
        """The place with the largest (steps since seen - steps to go), within the radius if there is one."""
        unseen = self.floor.storage & (memory.seen_at < t)
        near = unseen & (steps <= (self.patrol_radius or len(steps)))
        places = np.flatnonzero(near if near.any() else unseen)
        return int(places[(t - memory.seen_at[places] - steps[places]).argmax()])


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
    memory.since = memory.since + 1 if purpose == memory.purpose else 0
    if purpose != memory.purpose:
        memory.stalled = 0
    elif goal == memory.goal and left >= memory.nearest:
        memory.stalled += 1
    elif goal == memory.goal:
        memory.stalled = 0
    memory.nearest = min(left, memory.nearest) if goal == memory.goal else left
    memory.purpose, memory.goal = purpose, goal
    memory.dodging = max(memory.dodging - 1, 0)
    memory.patience = STALLED_AFTER if memory.stalled == 0 else memory.patience - 1
    memory.breaks = memory.patience <= 0
    if memory.breaks:
        memory.dodging, memory.patience = DODGE_FOR, STALLED_AFTER + DODGE_FOR
