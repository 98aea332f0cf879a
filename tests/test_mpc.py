"""Model predictive control of a team: worth by hand, the best of the candidates, and what a learner makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_central_critic import SMALL, acts, bandit

from fedmorl.learners.central_critic import Actors, judged
from fedmorl.planning.mpc import MPC
from fedmorl.world_models.joint_dynamics import Forecast, Scales
from fedmorl.world_models.joint_networks import Sizes


class Known:
    """The state moves by what is done, and the reward is minus its distance to 1."""

    def predict(self, states, observations, actions):
        following = (states + actions[..., 0]).astype(np.float32)
        return Forecast(following, -abs(following - 1).sum(1), following[..., None], {})


class Nothing(torch.nn.Module):
    """Critics that value nothing."""

    def forward(self, told):
        return torch.zeros(*told.shape[:2], 1)


@pytest.fixture
def parts():
    log = bandit(200)
    actors = Actors(Sizes(**log.sizes), 4, torch.Generator().manual_seed(0))
    return log, actors, Scales(log)


def test_worth_is_the_discounted_sum_and_what_the_critics_add(parts):
    log, actors, scales = parts
    s, o = log.states[:5], log.observations[:5]
    candidates = np.random.default_rng(0).uniform(-1, 1, (3, 5, 2, 1)).astype(np.float32)
    torch.manual_seed(0)
    critics = torch.nn.Sequential(torch.nn.Linear(4, 1))
    found = MPC(model=Known(), horizon=2, gamma=0.5).worth(actors, critics, scales, s, o, candidates)
    for c in range(3):
        first = s + candidates[c, ..., 0]
        then = actors(scales.into("observations", first[..., None])).detach().numpy()
        second = first + then[..., 0]
        last = actors(scales.into("observations", second[..., None])).detach()
        left = judged(critics, scales.into("states", second), last)[0].detach().numpy()
        paid = [-abs(x - 1).sum(1) / log.rewards.std() for x in (first, second)]
        np.testing.assert_allclose(found[c], paid[0] + 0.5 * paid[1] + 0.25 * left, rtol=1e-4)


def test_the_best_of_the_candidates_is_chosen_row_by_row(parts):
    log, actors, scales = parts
    planner = MPC(model=Known(), n_candidates=8, noise=0.5, horizon=1)
    s, o = log.states[:50], log.observations[:50]
    chosen = planner.best(actors, Nothing(), scales, s, o, np.random.default_rng(0))
    own = actors(scales.into("observations", o)).detach().numpy()
    gaps = [abs(s + a[..., 0] - 1).sum(1) for a in (own, chosen)]
    assert (gaps[1] <= gaps[0] + 1e-6).all() and (gaps[1] < gaps[0] - 0.1).mean() > 0.5
    assert abs(chosen).max() <= 1


def test_a_learner_follows_the_plan():
    log = bandit(reward=lambda a: np.zeros(len(a)))

    def plan(rows, actors, critics, scales, rng):
        return torch.full_like(rows.a, 0.8)

    learner = replace(SMALL, policy_gradient=False, cloning=1.0)
    plain, planned = (learner.fit(log, rng=np.random.default_rng(0), plan=p, plan_every=1) for p in (None, plan))
    assert abs(acts(plain, log).mean()) < 0.1  # what was logged is 0 on average
    assert acts(planned, log).mean() == pytest.approx(0.4, abs=0.1)  # half way


@pytest.mark.parametrize(
    "options,said",
    [
        ({"n_candidates": 1}, "n_candidates must be an integer >= 2; got 1"),
        ({"horizon": 0}, "horizon must be an integer >= 1; got 0"),
        ({"noise": -1.0}, "noise must be finite and >= 0; got -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        MPC(model=Known(), **options)


def test_a_model_that_predicts_no_observations_is_refused(parts):
    class Blind(Known):
        def predict(self, *asked):
            return super().predict(*asked)._replace(next_observations=None)

    log, actors, scales = parts
    with pytest.raises(ValueError, match="model must predict observations"):
        MPC(model=Blind()).best(actors, Nothing(), scales, log.states, log.observations, np.random.default_rng(0))
