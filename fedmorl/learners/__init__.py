"""Learners: from logs and models to policies. Each has `fit(dataset, ..., rng=rng)`, which returns a policy."""

from fedmorl.learners.behaviour_cloning import BehaviourCloning, BlindBehaviour
from fedmorl.learners.planner_weighted import PlannerWeightedCloning
from fedmorl.learners.rollout_augmentation import RolloutAugmentation
from fedmorl.policies import LearnedPolicy, load_policies, load_policy, save_policies

__all__ = [
    "BehaviourCloning",
    "BlindBehaviour",
    "LearnedPolicy",
    "PlannerWeightedCloning",
    "RolloutAugmentation",
    "load_policies",
    "load_policy",
    "save_policies",
]
