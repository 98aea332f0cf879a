"""Agents that are a number each, whose next numbers, and what nobody can predict of them, are known exactly.

Letters: T rows, N agents.
"""

import numpy as np

from fedmorl.data.joint_transitions import JointTransitions

KEEP, PUSH = 0.8, 0.5
REWARDS = ("after", "before")


def linear_agents(
    n_rows: int,
    *,
    n_agents: int = 3,
    carried: float = 0.0,
    noise: float = 0.2,
    reward: str = "after",
    rng: np.random.Generator,
) -> JointTransitions:
    """x_i' = 0.8 x_i + 0.5 a_i + `carried` x mean of the others' a + N(0, noise^2); each agent sees its own x_i alone.

    Numbers are normal and actions uniform in [-1, 1], each row for itself. The reward is the sum of the numbers "after"
    the step, or "before" it, which what is seen next no longer tells.

    Who is told the joint action can predict each number down to a mean squared error of noise^2; who is told its own
    action alone pays carried^2 / (3 (N - 1)) more, the variance of a mean of N - 1 uniform actions.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward must be one of {', '.join(REWARDS)}; got {reward!r}")
    if n_agents < 2 or n_rows < 2:
        raise ValueError(f"n_agents and n_rows must be >= 2; got {n_agents} and {n_rows}")
    x, a = rng.standard_normal((n_rows, n_agents)), rng.uniform(-1, 1, (n_rows, n_agents))
    others = (a.sum(1, keepdims=True) - a) / (n_agents - 1)
    following = KEEP * x + PUSH * a + carried * others + noise * rng.standard_normal((n_rows, n_agents))
    return JointTransitions(
        states=x,
        observations=x[..., None],
        actions=a[..., None],
        rewards=(following if reward == "after" else x).sum(1),
        next_states=following,
        next_observations=following[..., None],
        terminated=np.zeros(n_rows, bool),
        episodes=np.arange(n_rows) // 20,
        discrete=False,
        env_id="linear agents",
        env_version="1",
        env_kwargs={"n_agents": n_agents, "carried": carried, "noise": noise, "reward": reward},
        reward_def=f"sum of the numbers {reward} the step",
        behaviour={"name": "uniform"},
    )
