"""Who moves first: robots that meet give way by priority inheritance with backtracking.

A robot that wants a cell takes it, and one that stands there inherits its priority and must leave: ahead if it can, or
turning first, which makes the other wait. If it cannot leave at all, the other takes its next best cell. All of it is
settled between robots at most two cells apart, so nobody needs to know where the others are.

Source: PIBT (Okumura, Machida, Defago & Tamura, Artificial Intelligence 310, 2022), its idea.
Departs from source: robots turn, so leaving may take some steps; nobody moves in a ring; waiting costs one step more
for every step without progress, so that a way round is taken when waiting does not pay.
"""

from dataclasses import dataclass, field

import numpy as np

from fedmorl.tasks.rware_floor import AFTER_LEFT, OUTSIDE, TURNS, UNREACHABLE, Floor

STAY, FORWARD, LEFT, RIGHT, TOGGLE = range(5)
MOVES, LATER, NEVER = range(3)  # the cell is left in this step, in a later one, or cannot be left
IN_THE_WAY = 6  # [steps] by which stepping aside may be longer than going on in front of the other


@dataclass(kw_only=True)
class Robot:
    """What a robot tells those at most two cells away."""

    cell: int
    direction: int
    steps_to_goal: np.ndarray  # (C, 4), from each pose
    priority: int
    waited: int = 0  # steps without progress, those not counted in which it gave way
    toggles: bool = False  # wants to pick up or put down, here and now
    dodges: bool = False  # moves at random to break a deadlock
    closed: frozenset[int] = field(default_factory=frozenset)  # cells beside it that a standing shelf closes to it


def right_of_way(floor: Floor, robots: list[Robot], rng: np.random.Generator) -> tuple[list[int], set[int]]:
    """One action for each robot, such that no two want one cell; and which robots were asked to give way."""
    crossing = _Crossing(floor, robots)
    for i in sorted(range(len(robots)), key=lambda i: (not robots[i].dodges, -robots[i].priority, i)):
        if robots[i].dodges:
            crossing.dodge(i, rng)
        elif i not in crossing.actions:
            crossing.decide(i, ())
    return [crossing.actions[i] for i in range(len(robots))], crossing.asked


class _Crossing:
    """One step of one team while it is being decided."""

    def __init__(self, floor: Floor, robots: list[Robot]) -> None:
        self.floor, self.robots = floor, robots
        self.at = {robot.cell: i for i, robot in enumerate(robots)}
        self.taken: set[int] = set()  # cells of the next step
        self.actions: dict[int, int] = {}
        self.asked: set[int] = set()

    def dodge(self, i: int, rng: np.random.Generator) -> None:
        """A random action of robot i that hinders nobody."""
        robot = self.robots[i]
        ahead = self.floor.ahead[robot.cell][robot.direction]
        free = ahead != OUTSIDE and ahead not in robot.closed and ahead not in self.at and ahead not in self.taken
        self._settle(i, int(rng.choice((FORWARD, LEFT, RIGHT) if free else (LEFT, RIGHT))))

    def decide(self, i: int, pushers: tuple[int, ...]) -> int:
        """Choose for robot i, which the `pushers` want gone from its cell; says when it will be."""
        robot = self.robots[i]
        if robot.toggles:
            self._settle(i, TOGGLE)
            return LATER
        for direction in self._wishes(robot, pushers):
            if direction is None:
                break
            result = self._head_for(i, direction, pushers)
            if result != NEVER:
                return result
        self._settle(i, STAY)
        return NEVER

    def _wishes(self, robot: Robot, pushers: tuple[int, ...]) -> list[int | None]:
        """Directions to go in, the fewest steps to the goal first; None is to stay, which a pushed robot may not."""
        cost: dict[int | None, int] = {}
        turns, here = TURNS[robot.direction], int(robot.steps_to_goal[robot.cell, robot.direction])
        in_front = 2 * robot.cell - self.robots[pushers[0]].cell if pushers else OUTSIDE
        for direction, cell in enumerate(self.floor.ahead[robot.cell]):
            if cell != OUTSIDE and cell not in robot.closed:
                onwards = 1 + int(self.floor.toll[robot.cell, direction] + robot.steps_to_goal[cell, direction])
                cost[direction] = turns[direction] + onwards
                if pushers and cost[direction] > here:  # not its own way: while it turns, two robots wait
                    cost[direction] += turns[direction] + IN_THE_WAY * (cell == in_front)
        if not pushers:
            cost[None] = here + 1 + robot.waited
        return sorted((w for w in cost if cost[w] < UNREACHABLE), key=lambda wish: (cost[wish], wish is None))

    def _head_for(self, i: int, direction: int, pushers: tuple[int, ...]) -> int:
        """Turn towards the cell in `direction`, or enter it, if whoever stands there can be made to leave."""
        robot = self.robots[i]
        cell = self.floor.ahead[robot.cell][direction]
        turns = TURNS[robot.direction][direction]
        left = self._leaves(self.at.get(cell), (i, *pushers))
        if left == NEVER or (not turns and left == MOVES and cell in self.taken):
            return NEVER
        if turns:
            self._settle(i, LEFT if AFTER_LEFT[robot.direction] == direction else RIGHT)
            return LATER
        self._settle(i, FORWARD if left == MOVES else STAY)
        return left

    def _leaves(self, other: int | None, pushers: tuple[int, ...]) -> int:
        """When the robot `other` leaves its cell; asked to if it has not decided yet."""
        if other is None:
            return MOVES
        if other in pushers:
            return NEVER
        if other not in self.actions:
            self.asked.add(other)
            return self.decide(other, pushers)
        return {FORWARD: MOVES, STAY: NEVER}.get(self.actions[other], LATER)

    def _settle(self, i: int, action: int) -> None:
        robot = self.robots[i]
        self.actions[i] = action
        self.taken.add(self.floor.ahead[robot.cell][robot.direction] if action == FORWARD else robot.cell)
