"""Which of several searches to deploy: long scenes in the learned joint model, and the policies that do best there.

A search ends where its noise has led it: one keeps an idle slot before every packet, another starves a neighbour whose
counter stands still. Short scenes hardly show it, long ones do, and the simulator is not needed to see it.
"""

from collections.abc import Sequence

import numpy as np

from fedmorl.dca import AC_BE, CSMA_ECA
from fedmorl.dca.policy import pack_weights
from fedmorl.learners.scenes import Scene, Stage, beside, cold, loaded
from fedmorl.policies import LearnedPolicy
from fedmorl.world_models.joint import JointModel

LATE_SLOT = 10_000
LEAST_SCORE = 1e-3  # so that a scene that is lost counts, and does not count alone


def long_scenes(policy: LearnedPolicy, end_slot: int = 400_000) -> list[Scene]:
    """28 scenes: saturated, loaded, and beside AC_BE or CSMA/ECA stations, there from the start or late."""
    alone = [cold(n, end_slot, policy) for n in (2, 6, 10, 14)]
    load = [loaded(n, share, end_slot, policy) for share in (0.5, 0.8) for n in (10, 14)]
    mixed = [
        beside(n, rule, end_slot, policy, join_slot)
        for rule in (AC_BE, CSMA_ECA)
        for n in (2, 4, 6, 10, 14)
        for join_slot in (0, LATE_SLOT)
    ]
    return alone + load + mixed


def long_scores(
    model: JointModel, policies: Sequence[LearnedPolicy], *, seed: int, end_slot: int = 400_000
) -> np.ndarray:
    """(K policies, 28 scenes) scores, all on the same random numbers; ValueError without a policy."""
    if not policies:
        raise ValueError("policies must name at least one policy; got none")
    stage = Stage(model, long_scenes(policies[0], end_slot), seed)
    return np.array([stage.scores(pack_weights([policy])[1]) for policy in policies])


def overall(scores: np.ndarray) -> np.ndarray:
    """(K, scenes) -> (K,) geometric mean: what fails in one scene cannot be made good in the others."""
    return np.exp(np.log(np.maximum(scores, LEAST_SCORE)).mean(1))
