"""A world model that keeps what never changes: landmarks stay, all else is the model's own answer."""

import numpy as np
import pytest

from fedmorl.data.collect_joint import collect_joint
from fedmorl.tasks.spread import PDTeam, Spread
from fedmorl.world_models.joint_constants import KeptDynamics, still
from fedmorl.world_models.joint_dynamics import Training
from fedmorl.world_models.logo import LOGO


@pytest.fixture(scope="module")
def data():
    team = PDTeam(0.4)
    return collect_joint(Spread(2), team, 4, seed=0, behaviour=team.describe())


@pytest.fixture(scope="module")
def model(data):
    return LOGO(hidden=8, training=Training(n_steps=5)).fit(data, rng=np.random.default_rng(0))


def test_landmarks_are_what_stands_still(data):
    assert still(data).tolist() == [False] * 8 + [True] * 4


def test_landmarks_stay_and_the_rest_is_the_models(model, data):
    kept, where = KeptDynamics.of(model, data), still(data)
    asked = data.states[:7], data.observations[:7], data.actions[:7]
    for mine, plain in (
        (kept.predict(*asked), model.predict(*asked)),
        (kept.draw(*asked, np.random.default_rng(1)), model.draw(*asked, np.random.default_rng(1))),
    ):
        assert np.array_equal(mine.next_states[:, where], asked[0][:, where])
        assert np.array_equal(mine.next_states[:, ~where], plain.next_states[:, ~where])
        assert not np.allclose(plain.next_states[:, where], asked[0][:, where], atol=0.01)
        assert np.array_equal(mine.rewards, plain.rewards)
    assert type(model) is not KeptDynamics and kept.ceiling == model.ceiling


def test_a_state_that_changes_throughout_has_nothing_to_keep(model, data):
    from dataclasses import replace

    moved = replace(data, next_states=data.states + 1)
    with pytest.raises(ValueError, match="every number of the state changes"):
        KeptDynamics.of(model, moved)
