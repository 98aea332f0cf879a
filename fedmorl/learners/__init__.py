"""Learners: from logs and models to policies. Each has `fit(dataset, ..., rng=rng)`, which returns a policy."""

from fedmorl.learners.behaviour_cloning import BehaviourCloning, BlindBehaviour
from fedmorl.learners.mads4 import MADS4
from fedmorl.learners.madt import MADT
from fedmorl.learners.madtkd import MADTKD
from fedmorl.learners.mappo import MAPPO
from fedmorl.learners.planner_weighted import PlannerWeightedCloning
from fedmorl.learners.rollout_augmentation import RolloutAugmentation
from fedmorl.learners.team_cloning import TeamCloning
from fedmorl.policies import LearnedPolicy, load_policies, load_policy, save_policies

__all__ = [
    "MADS4",
    "MADT",
    "MADTKD",
    "MAPPO",
    "BehaviourCloning",
    "BlindBehaviour",
    "LearnedPolicy",
    "PlannerWeightedCloning",
    "RolloutAugmentation",
    "TeamCloning",
    "load_policies",
    "load_policy",
    "save_policies",
]
