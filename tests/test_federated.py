"""Federation: the same model whatever the order of arrival, the engine, the fault or the kill."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmorl.federated import (
    ClientUpdate,
    FedAdam,
    FedAvg,
    FederationStopped,
    FedProx,
    FitConfig,
    History,
    InProcessBatched,
    InProcessLoop,
    Krum,
    Median,
    ModelClient,
    RoundResult,
    ServerState,
    TooFewUpdates,
    TrimmedMean,
    address,
    as_state,
    digest,
    load_into,
    proximal_term,
    run_federation,
    trainable,
)
from fedmorl.federated import checkpoint as checkpoints
from fedmorl.federated.records import sample_ids
from fedmorl.federated.screening import REASONS, screen

pytestmark = pytest.mark.filterwarnings("error:round")  # a stack that falls apart is a fault of the engine, but for one

FIT = FitConfig(local_steps=3, batch_size=8, lr=0.01)
ALL = (FedAvg(), FedProx(), FedAdam(), TrimmedMean(beta=0.2), Median(), Krum(f=1))  # every rule, for K >= 5


# --- toys ------------------------------------------------------------------------------------------------


class Drift:
    """A client of numpy alone: adds noise that its address fixes, of the norm `size`."""

    def __init__(self, client_id: int, size: float = 1.0, n: int = 10) -> None:
        self.client_id, self.size, self.n = client_id, size, n

    def state(self) -> dict[str, np.ndarray]:
        return {"bias": np.float32([0.5]), "weight": np.ones((3, 2), np.float32)}

    def fit(self, round: int, state: dict, config: FitConfig) -> ClientUpdate:
        rng = np.random.default_rng(address(config.seed, self.client_id, round))
        noise = {name: rng.normal(size=value.shape) for name, value in state.items()}
        scale = self.size / np.sqrt(sum((x**2).sum() for x in noise.values()))
        moved = {name: (value + scale * noise[name]).astype(value.dtype) for name, value in state.items()}
        return ClientUpdate(client_id=self.client_id, round=round, n=self.n, state=moved, stats={"loss": 0.25})


class Spoilt(Drift):
    """Answers honestly, then `spoil` changes the answer in the given rounds."""

    def __init__(self, client_id: int, spoil: Callable, rounds: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__(client_id)
        self.spoil, self.rounds = spoil, rounds

    def fit(self, round: int, state: dict, config: FitConfig) -> ClientUpdate:
        update = super().fit(round, state, config)
        return self.spoil(update) if round in self.rounds else update


def network() -> torch.nn.Module:
    """A world model in small: 4 outcomes, and a reward."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))


def loss(module: torch.nn.Module, x: torch.Tensor, outcome: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    out = module(x)  # (B, 5)
    return torch.nn.functional.cross_entropy(out[:, :4], outcome) + ((out[:, 4] - reward) ** 2).mean()


def model_client(client_id: int, n: int = 40, module: torch.nn.Module | None = None) -> ModelClient:
    generator = torch.Generator().manual_seed(client_id)
    x = torch.randn(n, 3, generator=generator)
    outcome, reward = torch.randint(4, (n,), generator=generator), x.sum(1) + client_id
    return ModelClient(client_id, module or network(), loss, (x, outcome, reward))


def model_clients(k: int) -> list[ModelClient]:
    return [model_client(i, n=40 + 7 * i) for i in range(k)]


def federate(clients: list, aggregator: object = FedAvg(), **options: object) -> History:
    return run_federation(
        clients, aggregator, **{"rounds": 3, "fit_config": FIT, "seed": 7, "engine": "loop", **options}
    )


def update(client_id: int, *values: float, n: int = 1, **rest: object) -> ClientUpdate:
    return ClientUpdate(client_id=client_id, **{"round": 1, "n": n, "state": {"x": np.array(values, "f4")}, **rest})


def server(*values: float) -> ServerState:
    return ServerState(round=0, state={"x": np.array(values, "f4")})


def same(a: History, b: History) -> bool:
    return digest(a.state) == digest(b.state) and a.rounds == b.rounds and opt_digest(a) == opt_digest(b)


def opt_digest(history: History) -> dict[str, str]:
    return {kind: digest(state) for kind, state in history.server.opt.items()}


# --- states and addresses --------------------------------------------------------------------------------


def test_a_state_is_sorted_floating_and_finite():
    assert list(as_state({"b": np.ones(1), "a": np.ones(())})) == ["a", "b"]
    assert as_state({"a": np.ones(())})["a"].shape == ()
    with pytest.raises(ValueError, match=r"state\['steps'\] must be floating .* it is int64"):
        as_state({"steps": np.arange(3)})
    with pytest.raises(ValueError, match=r"state\['a'\] must be finite"):
        as_state({"a": np.array([np.inf])})
    with pytest.raises(ValueError, match="at least one array"):
        as_state({})


def test_digest_sees_name_dtype_shape_and_value_but_neither_order_nor_layout():
    base = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(2, "<f8")}
    same_thing = {"b": base["b"].astype(">f8"), "a": np.asfortranarray(base["a"])}
    assert digest(base) == digest(same_thing)
    others = [
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].astype("<f8"), "b": base["b"]},
        {"a": -base["a"], "b": base["b"]},
        {"aa": base["a"], "b": base["b"]},
    ]
    assert len({digest(state) for state in [base, *others]}) == 5


def test_address_traps():
    assert np.random.SeedSequence([7, 2]).entropy != np.random.SeedSequence([7, 2, 0]).entropy
    words = [np.random.SeedSequence(entropy).generate_state(1)[0] for entropy in ([7, 2], [7, 2, 0])]
    assert words[0] == words[1], "zero padding: the reason why rounds count from 1"
    with pytest.raises(ValueError, match="rounds count from 1; got round 0"):
        address(7, 2, 0)
    for bad in ((2**32, 2, 1), (-1, 2, 1), (7, 2**32, 1), (7, -1, 1)):
        with pytest.raises(ValueError, match=r"from 0 to 2\*\*32 - 1"):
            address(*bad)
    with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*32 - 1.*got 4294967296"):
        federate([Drift(0)], seed=2**32)
    grid = list(itertools.product(range(6), range(6), range(1, 7)))
    assert len({address(*where) for where in grid}) == len(grid)
    assert address(1, 2, 3) == int(np.random.SeedSequence([1, 2, 3]).generate_state(1, np.uint64)[0]) >> 1


def test_clients_are_sampled_by_round_alone():
    ids = [9, 3, 11, 4, 20]
    draws = [sample_ids(ids, 0.6, 7, r) for r in range(1, 40)]
    assert all(len(set(d)) == 3 and set(d) <= set(ids) and list(d) == sorted(d) for d in draws)
    assert {i for d in draws for i in d} == set(ids) and len(set(draws)) > 5
    assert draws == [sample_ids(ids[::-1], 0.6, 7, r) for r in range(1, 40)], "the order of the clients decides"
    assert draws != [sample_ids(ids, 0.6, 8, r) for r in range(1, 40)], "the seed does not matter"
    assert sample_ids(ids, 1.0, 7, 1) == (3, 4, 9, 11, 20)
    assert len(sample_ids(range(10), 0.7, 7, 1)) == 7, "0.7 * 10 is a little more than 7 in floating point"
    asked = [record.asked for record in federate([Drift(i) for i in ids], fraction=0.6, rounds=5).rounds]
    assert asked == draws[:5]
    aside = address(7, 1, 1) == np.random.SeedSequence(7, spawn_key=(1, 1)).generate_state(1, np.uint64)[0] >> 1
    assert not aside, "sampling and client 1 of round 1 share a stream"


# --- the order of arrival, one client, mu = 0 ------------------------------------------------------------


class Shuffled(InProcessLoop):
    """A loop whose updates arrive in a new order each round."""

    def run_round(self, round: int, *rest: object) -> RoundResult:
        result = super().run_round(round, *rest)
        order = np.random.default_rng(round).permutation(len(result.updates))
        return replace(result, updates=tuple(result.updates[k] for k in order))


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_arrival_order_does_not_change_a_bit(rule):
    server_state = ServerState(round=0, state=Drift(0).state())
    updates = [Drift(k, size=10.0**k, n=k + 1).fit(1, server_state.state, replace(FIT, seed=3)) for k in range(5)]
    models = {digest(rule(server_state, order).state) for order in itertools.permutations(updates)}
    assert len(models) == 1
    naive = {
        digest({"x": sum((u.state["weight"] for u in order), np.float32(0))})
        for order in itertools.permutations(updates)
    }
    assert len(naive) > 1, "these updates sum to the same in any order: the test is too weak"


def test_a_federation_with_shuffled_arrival_is_bitwise_the_same():
    clients = model_clients(5)
    straight, shuffled = federate(clients), federate(clients[::-1], engine=Shuffled(clients))
    assert same(straight, shuffled)


@pytest.mark.parametrize("rule", [FedAvg(), FedAvg(max_n=3), FedProx(), TrimmedMean(beta=0.4), Median()], ids=repr)
def test_one_client_alone_comes_back_bit_for_bit(rule):
    client = model_client(4)
    history = federate([client], rule, rounds=2)
    state = client.state()
    for round in (1, 2):
        state = client.fit(round, state, replace(FIT, seed=7)).state
    assert history.digest == digest(state) != digest(client.state())


def test_one_client_federated_is_plain_training():
    """A second route: the same steps by hand, with torch's own Adam and the addressed draws."""
    client, module = model_client(2), network()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(address(7, 2, 1))
    for _ in range(20):
        rows = torch.randint(40, (8,), generator=generator)
        optimiser.zero_grad()
        loss(module, *(tensor[rows] for tensor in client.tensors)).backward()
        optimiser.step()
    history = federate([client], rounds=1, fit_config=replace(FIT, local_steps=20))
    for name, parameter in trainable(module).items():
        np.testing.assert_allclose(history.state[name], parameter.detach().numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_prox_of_zero_is_fedavg_and_a_large_one_holds_clients_back(engine):
    clients = model_clients(3)
    plain = federate(clients, FedAvg(), engine=engine)
    zero = federate(clients, FedProx(), engine=engine, fit_config=replace(FIT, prox_mu=0.0))
    tied = federate(clients, FedProx(), engine=engine, fit_config=replace(FIT, prox_mu=1e3, local_steps=30))
    free = federate(clients, FedProx(), engine=engine, fit_config=replace(FIT, local_steps=30))
    assert plain.digest == zero.digest
    assert tied.rounds[0].median_norm < 0.5 * free.rounds[0].median_norm


def test_proximal_term_squares_the_distance():
    x, w = (
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(1.0)},
        {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor(4.0)},
    )
    assert float(proximal_term(x, w, 0.5)) == 0.25 * (4 + 1 + 9)


# --- each rule by hand -----------------------------------------------------------------------------------


def test_fedavg_weighs_by_log_size_and_caps_it():
    updates = [update(0, 1.0, n=1), update(1, 5.0, n=3)]
    assert FedAvg()(server(0.0), updates).state["x"] == 4.0
    assert FedAvg(max_n=1)(server(0.0), updates).state["x"] == 3.0
    after = FedAvg()(server(0.0), updates)
    assert after.round == 1 and after.opt == {} and after.state["x"].dtype == np.float32


def test_fedavg_accumulates_in_float64():
    updates = [update(0, 1e8), update(1, 1.0), update(2, -1e8)]
    assert FedAvg()(server(0.0), updates).state["x"] == np.float32(1 / 3)


def test_fedadam_by_hand():
    d1, d2 = 2.0, -1.0
    rule, w = FedAdam(eta=0.1), 0.0
    first = rule(server(0.0), [update(0, d1)])
    m, v = 0.1 * d1, 0.01 * d1**2
    w = 0.1 * m / (np.sqrt(v) + 1e-3)
    assert first.state["x"] == pytest.approx(w, rel=1e-6)
    second = rule(first, [update(0, float(first.state["x"][0]) + d2)])
    m, v = 0.9 * m + 0.1 * d2, 0.99 * v + 0.01 * d2**2
    assert second.opt["m"]["x"] == pytest.approx(m) and second.opt["v"]["x"] == pytest.approx(v)
    assert second.state["x"] == pytest.approx(w + 0.1 * m / (np.sqrt(v) + 1e-3), rel=1e-6)
    corrected = FedAdam(eta=0.1, bias_correction=True)(server(0.0), [update(0, d1)])
    assert corrected.state["x"] / first.state["x"] == pytest.approx(np.sqrt(1 - 0.99**2) / (1 - 0.9**2), rel=1e-6)


def test_trimmed_mean_drops_both_ends_of_each_coordinate():
    rows = [(1, 50), (2, 40), (3, 30), (4, 20), (1000, -1000)]
    updates = [update(k, *row, n=10**k) for k, row in enumerate(rows)]
    np.testing.assert_array_equal(TrimmedMean(beta=0.2)(server(0, 0), updates).state["x"], [3, 30])
    np.testing.assert_array_equal(TrimmedMean(beta=0.19)(server(0, 0), updates).state["x"], [202, -172])
    for beta in (0.5, -0.1):
        with pytest.raises(ValueError, match="beta must be from 0 to below 1/2"):
            TrimmedMean(beta=beta)


def test_median_of_odd_and_even():
    odd = [update(k, v, n=10**k) for k, v in enumerate([7, 1, 1000])]
    assert Median()(server(0), odd).state["x"] == 7
    assert Median()(server(0), [*odd, update(3, 3)]).state["x"] == 5


def test_krum_takes_the_update_nearest_to_its_neighbours():
    """On a line at 0, 1, 1.5, 4, 100 with f = 1, sums over the two nearest others: 3.25, 1.25, 2.5, 15.25, ...."""
    line = [update(k, v) for k, v in zip((8, 3, 5, 1, 2), (0.0, 1.0, 1.5, 4.0, 100.0), strict=True)]
    assert Krum(f=1).select(line) == [3]
    assert Krum(f=1, m=3).select(line) == [3, 5, 8]
    assert Krum(f=1)(server(0), line).state["x"] == 1.0
    assert Krum(f=1, m=3)(server(0), line).state["x"] == np.float32(2.5 / 3)


def test_krum_breaks_ties_by_the_lowest_id_and_leaves_out_self_by_index():
    ring = [update(k, np.cos(a), np.sin(a)) for k, a in zip((4, 2, 9, 7, 5), np.arange(5) * 0.0, strict=True)]
    assert Krum(f=1).select(ring) == [2], "all alike: the lowest id"
    twins = [update(0, 0.0), update(1, 0.0), update(2, 3.0), update(3, 4.0), update(4, 5.0)]
    # with f = 1 the two nearest others of a twin: the other twin (0) and 3 away (9); of 4.0: 1 and 1
    assert Krum(f=1).select(twins) == [3]


def test_krum_tells_close_models_apart():
    """|a|^2 + |b|^2 - 2ab cancels in float32 (and float64 of float32 sums) where direct differences do not."""
    base = 1e4
    near = [update(k, base + v) for k, v in enumerate((0.0, 0.001953125, 0.00390625, 0.0078125, 0.5))]
    assert Krum(f=1).select(near) == [1]


def test_krum_refuses_too_few():
    four = [update(k, k) for k in range(4)]
    with pytest.raises(TooFewUpdates, match="needs 5 updates; got 4"):
        Krum(f=1)(server(0), four)
    with pytest.raises(FederationStopped, match="round 1 failed: Krum with f = 1, m = 1 needs 5 updates; got 4"):
        federate([Drift(k) for k in range(4)], Krum(f=1))
    with pytest.raises(ValueError, match="f >= 0 and m >= 1"):
        Krum(f=-1)


# --- attackers -------------------------------------------------------------------------------------------

K, F, SIZE = 11, 3, 40
HONEST = np.random.default_rng(1).normal(1.0, 0.2, (K, SIZE))  # updates around 1 from a server at 0
ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign flip x 10": lambda honest: -10 * honest,
    "Gaussian of 10 x the norm": lambda honest: np.random.default_rng(2).normal(
        0, 10 * np.linalg.norm(honest, axis=1).mean() / np.sqrt(SIZE), honest.shape
    ),
    "copies of one stranger": lambda honest: np.tile(np.random.default_rng(3).normal(0, 5, SIZE), (len(honest), 1)),
}
ROBUST = [TrimmedMean(beta=0.3), Median(), Krum(f=F), Krum(f=F, m=4)]


def attacked(attack: str, rule: object, bad: int = F, n_bad: int = 1) -> float:
    """Distance of the result from the honest mean, in units of the honest spread (largest distance of one)."""
    states = np.vstack([ATTACKS[attack](HONEST[:bad]), HONEST[bad:]]) if bad else HONEST
    updates = [update(k, *row, n=n_bad if k < bad else 1) for k, row in enumerate(states)]
    mean = HONEST[bad:].mean(axis=0)
    spread = np.linalg.norm(HONEST[bad:] - mean, axis=1).max()
    return float(np.linalg.norm(rule(server(*[0.0] * SIZE), updates).state["x"] - mean) / spread)


@pytest.mark.parametrize("attack", ATTACKS)
def test_robust_rules_stay_within_the_honest_spread_and_fedavg_does_not(attack):
    assert {rule: attacked(attack, rule) for rule in ROBUST if attacked(attack, rule) > 1} == {}
    assert attacked(attack, FedAvg()) > 2
    assert attacked(attack, TrimmedMean(beta=0.1)) > 1 or attack == "copies of one stranger", "beyond its bound"


def test_inflated_n_buys_nothing_but_from_fedavg():
    """Half the attack of above, at a stated log of 10^6 transitions."""
    attack = "copies of one stranger"
    assert attacked(attack, FedAvg(), bad=1, n_bad=10**6) > 5
    assert attacked(attack, FedAvg(max_n=1), bad=1, n_bad=10**6) == attacked(attack, FedAvg(), bad=1, n_bad=1)
    for rule in ROBUST:
        assert attacked(attack, rule, bad=1, n_bad=10**6) == attacked(attack, rule, bad=1) < 1


# --- faults ----------------------------------------------------------------------------------------------


def spoil_state(change: Callable[[dict], dict]) -> Callable[[ClientUpdate], ClientUpdate]:
    return lambda u: replace(u, state=change(dict(u.state)))


def filled(value: float) -> Callable[[ClientUpdate], ClientUpdate]:
    def change(state: dict) -> dict:
        state["weight"] = state["weight"].copy()
        state["weight"][1, 1] = value
        return state

    return spoil_state(change)


def raising(u: ClientUpdate) -> ClientUpdate:
    raise OSError("the disk is gone\nand more lines")


def far(u: ClientUpdate) -> ClientUpdate:
    start = Drift(0).state()
    return replace(u, state={k: (start[k] + 100 * (v - start[k])).astype("f4") for k, v in u.state.items()})


FAULTS: dict[str, tuple[Callable, str, str]] = {
    "raises": (raising, "error", "OSError: the disk is gone"),
    "no update": (lambda u: None, "error", "TypeError: fit must return a ClientUpdate; it returned NoneType"),
    "another's id": (lambda u: replace(u, client_id=0), "error", "answered under the id 0"),
    "no mapping": (lambda u: replace(u, state=[1.0]), "error", "must be mappings"),
    "stale": (lambda u: replace(u, round=u.round - 1), "stale_round", "of round 0, not 1"),
    "name more": (spoil_state(lambda s: {**s, "extra": s["bias"]}), "bad_keys", "extra"),
    "name less": (spoil_state(lambda s: {"bias": s["bias"]}), "bad_keys", "weight"),
    "shape": (spoil_state(lambda s: {**s, "weight": s["weight"].T}), "bad_shape", r"weight has the shape \(2, 3\)"),
    "broadcast": (spoil_state(lambda s: {**s, "weight": s["weight"][:1]}), "bad_shape", r"\(1, 2\)"),
    "float64": (spoil_state(lambda s: {**s, "bias": s["bias"].astype("f8")}), "bad_dtype", "bias is float64"),
    "a list": (spoil_state(lambda s: {**s, "bias": [0.5]}), "bad_dtype", "bias is list"),
    "NaN": (filled(np.nan), "non_finite", "weight holds NaN or infinity"),
    "Inf": (filled(-np.inf), "non_finite", "weight holds NaN or infinity"),
    "n = 0": (lambda u: replace(u, n=0), "bad_n", "got 0"),
    "n = 2.5": (lambda u: replace(u, n=2.5), "bad_n", "got 2.5"),
    "n = True": (lambda u: replace(u, n=True), "bad_n", "got True"),
    "100 x the norm": (far, "norm", "its update has the norm 100; at most 10 counts"),
    "overflow": (filled(3e38), "norm", "at most 10 counts"),
}


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_client_is_named_and_the_model_is_as_if_it_had_been_silent(fault, engine):
    spoil, reason, detail = FAULTS[fault]
    clients = [Drift(0), Drift(1), Spoilt(2, spoil, rounds=(1,)), Drift(3)]
    history = federate(clients, rounds=1, engine=engine)
    (record,) = history.rounds
    assert record.failures == {2: reason} and reason in REASONS
    assert re.search(detail, record.details[2]), record.details[2]
    assert record.used == (0, 1, 3) and not record.failed and 2 not in record.stats
    without = federate([clients[0], clients[1], clients[3]], rounds=1)
    assert history.digest == without.digest
    again = federate(clients, rounds=2, engine=engine)
    assert again.rounds[1].used == (0, 1, 2, 3), "a failed client is asked again"


def test_screening_names_the_first_fault_in_the_order_of_the_list():
    faults = {
        "stale_round": {"round": 4},
        "not_asked": {"client_id": 9},
        "bad_keys": {"extra": np.ones(2)},
        "bad_shape": {"w": np.full((2, 2), np.nan)},
        "bad_dtype": {"w": np.full(3, np.nan)},
        "non_finite": {"w": np.full(3, np.nan, "f4")},
        "bad_n": {"n": 0},
        "norm": {"w": np.full(3, 1e3, "f4")},
    }
    ours = ServerState(round=4, state={"w": np.zeros(3, "f4")})
    order = list(faults)
    assert [name for name in REASONS if name in faults] == order
    for first in range(len(order)):
        made: dict = {"client_id": 1, "round": 5, "n": 3, "w": np.full(3, 0.1, "f4")}
        for name in reversed(order[first:]):
            made |= faults[name]
        state = {k: made[k] for k in made if k in ("w", "extra")}
        bad = ClientUpdate(client_id=made["client_id"], round=made["round"], n=made["n"], state=state)
        found = screen([bad], ours, [1], 5, max_norm=1.0)
        assert list(found.failures.values()) == [order[first]] and found.updates == ()


def test_two_updates_under_one_id_count_neither_in_any_order():
    ours, one, other = server(0.0), update(1, 0.5), update(1, 0.7)
    for order in itertools.permutations([one, other, update(2, 0.6)]):
        found = screen(order, ours, [1, 2], 1)
        assert found.failures == {1: "duplicate"} and [u.client_id for u in found.updates] == [2]
    late = replace(one, round=0)
    found = screen([late, other], ours, [1], 1)
    assert found.failures == {1: "stale_round"} and found.updates == (other,), "a late one spoils the fresh one"


def test_norm_bound_follows_the_last_round():
    ours = server(0.0)
    updates = [update(0, 1.0), update(1, 2.0), update(2, 50.0)]
    assert screen(updates, ours, [0, 1, 2], 1).failures == {}
    assert screen(updates, ours, [0, 1, 2], 1, "auto").failures == {2: "norm"}, "round 1: ten times its own median"
    assert screen(updates, ours, [0, 1, 2], 1, "auto", last_median=6.0).failures == {}
    assert screen(updates, ours, [0, 1, 2], 1, "auto", last_median=0.15).failures == {1: "norm", 2: "norm"}
    assert screen(updates, ours, [0, 1, 2], 1, 1.5).failures == {1: "norm", 2: "norm"}
    pair = screen([update(0, 1.0), update(1, 100.0)], ours, [0, 1], 1, "auto")
    assert pair.failures == {1: "norm"}, "one bad of two lifts the median"
    still = screen([update(0, 0.0), update(1, 0.0), update(2, 3.0)], ours, [0, 1, 2], 1, "auto", last_median=0.0)
    assert still.failures == {2: "norm"} and still.median_norm == 0.0
    history = federate([Drift(0, 1.0), Drift(1, 1.0), Drift(2, 1.0)])
    assert [r.median_norm for r in history.rounds] == pytest.approx([1, 1, 1], rel=1e-5)
    jump = federate([Drift(0), Drift(1), Spoilt(2, far, rounds=(2,))], rounds=2)
    assert jump.rounds[1].failures == {2: "norm"}


def test_a_failed_round_leaves_the_model_and_stops_or_goes_on():
    clients = [Drift(0), Spoilt(1, filled(np.nan), (2,)), Spoilt(2, raising, (2,))]
    words = (
        r"round 2 failed: 1 valid updates, 2 needed \(client 1: non_finite, weight holds NaN or infinity; "
        r"client 2: error, OSError: the disk is gone\)"
    )
    with pytest.raises(FederationStopped, match=words) as stopped:
        federate(clients, min_updates=2)
    first = federate(clients, rounds=1)
    assert stopped.value.history.digest == first.digest and len(stopped.value.history.rounds) == 2
    history = federate(clients, min_updates=2, on_failed_round="continue")
    assert history.server.round == 3 and history.rounds[1].digest == first.digest
    assert history.rounds[1].failed == "1 valid updates, 2 needed" and history.rounds[1].used == ()
    assert history.rounds[2].used == (0, 1, 2) and history.digest != first.digest


def test_an_aggregate_that_overflows_is_a_failed_round():
    def burst(before: ServerState, updates: object) -> ServerState:
        return (
            FedAvg()(before, updates)
            if before.round
            else replace(before, state={k: v * np.inf for k, v in before.state.items()})
        )

    history = federate([Drift(0), Drift(1)], burst, on_failed_round="continue")
    assert history.rounds[0].failed == "the aggregate is not finite"
    assert all(np.isfinite(v).all() for v in history.state.values()) and not history.rounds[1].failed


def test_silence_is_a_timeout():
    class Deaf(InProcessLoop):
        def run_round(self, round: int, *rest: object) -> RoundResult:
            result = super().run_round(round, *rest)
            return replace(result, updates=result.updates[:-1])

    clients = [Drift(0), Drift(1)]
    assert federate(clients, engine=Deaf(clients)).rounds[2].failures == {1: "timeout"}


def test_a_client_cannot_write_into_the_servers_model():
    class Scribbler(Drift):
        def fit(self, round: int, state: dict, config: FitConfig) -> ClientUpdate:
            made = super().fit(round, state, config)
            state["weight"][:] = np.nan
            return made

    assert federate([Scribbler(0), Drift(1)]).digest == federate([Drift(0), Drift(1)]).digest


def test_bytes_on_the_air_are_counted():
    clients = [Drift(0), Drift(1), Spoilt(2, filled(np.nan), (1,)), Spoilt(3, raising, (1,))]
    history = federate(clients, rounds=2)
    state = 7 * 4
    assert [r.bytes_down for r in history.rounds] == [4 * state, 4 * state]
    assert [r.bytes_up for r in history.rounds] == [3 * (state + 16), 4 * (state + 16)], (
        "a rejected update was sent too"
    )
    assert history.bytes_up == 7 * (state + 16) and history.bytes_down == 8 * state


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rounds": 0}, "rounds must be >= 1"),
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"fraction": 0.5, "min_updates": 2}, "min_updates must be from 1 to 1, the clients a round asks; got 2"),
        ({"on_failed_round": "skip"}, "on_failed_round must be 'stop' or 'continue'"),
        ({"max_norm": -1.0}, "max_norm must be > 0, 'auto' or None"),
        ({"engine": "ray"}, "engine must be 'loop', 'batched', 'flower' or an Engine; got 'ray'"),
        ({"fit_config": replace(FIT, seed=8)}, "fit_config.seed is 8 and seed is 7"),
        (
            {"initial": {"bias": np.ones(1, "f4")}},
            "all models must have one shape: weight is .* in client 0 and missing in initial",
        ),
        ({"clients": []}, "at least one client"),
        ({"clients": [Drift(1), Drift(1)]}, "client ids must differ; 1 occurs twice"),
        ({"clients": [Drift(2**32)]}, r"client ids must be from 0 to 2\*\*32 - 1"),
        (
            {"clients": [model_client(0), model_client(1, module=torch.nn.Linear(3, 5))]},
            "one shape: 0.bias is missing in client 1",
        ),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else given,  # no address: xdist compares them
)
def test_bad_arguments_are_refused_in_one_sentence(options, words):
    clients = options.get("clients", [Drift(0), Drift(1)])
    with pytest.raises(ValueError, match=words):
        federate(clients, **{k: v for k, v in options.items() if k != "clients"})


@pytest.mark.parametrize(
    "field, value",
    [
        ("local_steps", 0),
        ("batch_size", 2.0),
        ("lr", 0.0),
        ("lr_final", -1.0),
        ("prox_mu", -1.0),
        ("client_optimiser", "keep"),
    ],
)
def test_bad_fit_config_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        FitConfig(**{field: value})


def test_learning_rate_follows_a_cosine_over_rounds():
    config = FitConfig(lr=3e-3, lr_final=1e-3, lr_rounds=5)
    assert [config.lr_at(r) for r in (1, 3, 5, 9)] == pytest.approx([3e-3, 2e-3, 1e-3, 1e-3])
    assert FitConfig(lr=0.5).lr_at(7) == 0.5


# --- torch clients ---------------------------------------------------------------------------------------


def test_a_log_must_have_rows_of_one_length_and_finite_numbers():
    x = torch.ones(4, 3)
    for tensors, words in (
        ((), "client 6 has no transitions"),
        ((x[:0],), "client 6 has no transitions"),
        ((x, x[:3]), r"client 6's tensors must have equally many rows; they have \[4, 3\]"),
        ((x, x * torch.nan), "client 6's tensor 1 must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            ModelClient(6, network(), loss, tensors)


def test_draws_in_pieces_are_the_draws_of_one_step_at_a_time():
    client, config = model_client(3), replace(FIT, local_steps=37, seed=1)
    generator = torch.Generator().manual_seed(address(1, 3, 2))
    single = [torch.randint(client.n, (8,), generator=generator) for _ in range(37)]
    assert torch.equal(torch.cat(list(client.rows(2, config))), torch.stack(single))
    assert not torch.equal(torch.cat(list(client.rows(3, config))), torch.stack(single))


def test_a_fit_leaves_the_module_and_the_global_generator_alone():
    client = model_client(0)
    before, generator = digest(client.state()), torch.get_rng_state()
    client.fit(1, client.state(), replace(FIT, seed=1))
    assert digest(client.state()) == before and torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() >= 1


def test_dropout_and_batch_norm_are_refused():
    dropout = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.5))
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 5))
    for module, words, traced in (
        (dropout, "global generator", "random"),
        (norm, "the buffer 0.num_batches_tracked changed in training", "a buffer changes in training"),
    ):
        clients = [model_client(k, module=module) for k in range(2)]
        with pytest.raises(FederationStopped, match=words):
            federate(clients)
        with pytest.raises(ValueError, match=rf"engine='batched' cannot stack this loss \(.*({traced})"):
            federate(clients, engine="batched")


def test_buffers_and_frozen_parameters_stay_at_home():
    class Scaled(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.inner, self.frozen = network(), torch.nn.Parameter(torch.full((3,), scale), requires_grad=False)
            self.register_buffer("shift", torch.tensor(scale))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * self.frozen + self.shift)

    clients = [model_client(k, module=Scaled(1.0 + k)) for k in range(3)]
    loop, batched = federate(clients), federate(clients, engine="batched")
    assert all(name.startswith("inner.") for name in loop.state)
    assert largest_difference(loop, batched) < 1e-5
    alike = [model_client(k, module=Scaled(1.0)) for k in range(3)]
    assert federate(alike, engine="batched").digest != batched.digest, "a client's own constants are not used"
    assert float(clients[2].module.shift) == 3.0


def test_state_that_does_not_fit_the_module_is_refused():
    parameters, state = trainable(network()), model_client(0).state()
    for bad, words in (
        ({"0.bias": state["0.bias"]}, "the state's names"),
        ({**state, "0.bias": state["0.bias"][:1]}, r"0.bias is \(1,\)"),
        ({**state, "0.bias": state["0.bias"].astype("f8")}, "float64 in the state"),
    ):
        with pytest.raises(ValueError, match=words):
            load_into(parameters, bad)
    load_into(parameters, {k: v + 1 for k, v in state.items()})
    assert torch.equal(parameters["2.bias"].detach(), torch.from_numpy(state["2.bias"] + 1))


# --- the batched engine ----------------------------------------------------------------------------------


def largest_difference(a: History, b: History) -> float:
    return max(float(np.abs(a.state[k] - b.state[k]).max()) for k in a.state)


@pytest.mark.parametrize("optimiser", ["reset", "carry"])
@pytest.mark.parametrize("prox_mu", [0.0, 0.3])
def test_batched_agrees_with_the_loop(optimiser, prox_mu):
    config = replace(FIT, local_steps=10, prox_mu=prox_mu, client_optimiser=optimiser, lr_final=1e-3, lr_rounds=3)
    options = {"fit_config": config, "fraction": 0.7}
    loop = federate(model_clients(6), **options)
    batched = federate(model_clients(6), engine="batched", **options)
    assert largest_difference(loop, batched) <= 1e-5
    assert [r.asked for r in loop.rounds] == [r.asked for r in batched.rounds]
    for a, b in zip(loop.rounds, batched.rounds, strict=True):
        assert {k: v["loss"] for k, v in a.stats.items()} == pytest.approx(
            {k: v["loss"] for k, v in b.stats.items()}, rel=1e-5
        )
    other = "carry" if optimiser == "reset" else "reset"
    far = federate(model_clients(6), **{**options, "fit_config": replace(config, client_optimiser=other)})
    assert largest_difference(loop, far) > 1e-3, "carried moments make no difference: the test is too weak"


def test_batched_agrees_with_the_loop_for_the_paper_s_size_of_network():
    """14 clients, two nets of 128 units, 10 Adam steps at batch 256: max abs <= 1e-4."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = torch.nn.Sequential(
            torch.nn.Linear(3, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 5),
        )
    clients = [model_client(k, n=300, module=wide) for k in range(14)]
    config = FitConfig(local_steps=10, batch_size=256)
    loop, batched = InProcessLoop(clients), InProcessBatched(clients, stack=5)
    a, b = (e.run_round(1, clients[0].state(), replace(config, seed=2), range(14)) for e in (loop, batched))
    assert [u.client_id for u in sorted(b.updates, key=lambda u: u.client_id)] == list(range(14))
    theirs = {u.client_id: u for u in b.updates}
    worst = max(float(np.abs(u.state[k] - theirs[u.client_id].state[k]).max()) for u in a.updates for k in u.state)
    moved = min(float(np.abs(u.state[k] - clients[0].state()[k]).max()) for u in a.updates for k in u.state)
    assert worst <= 1e-4 and moved > 1e-2


def test_one_client_s_nan_never_reaches_its_neighbours():
    clients = model_clients(4)
    clients[2].tensors[2][7:] = torch.nan  # after the check of the constructor
    clean = [c for c in clients if c.client_id != 2]
    engine = InProcessBatched(clients)
    found = engine.run_round(1, clients[0].state(), replace(FIT, seed=7), range(4))
    assert not any(np.isfinite(v).all() for v in next(u for u in found.updates if u.client_id == 2).state.values())
    history, without = federate(clients, engine="batched"), federate(clean, engine="batched")
    assert all(r.failures == {2: "non_finite"} for r in history.rounds)
    assert largest_difference(history, without) <= 1e-6
    carried = replace(FIT, client_optimiser="carry")
    for name in ("loop", "batched"):
        federate(clients, engine=name, fit_config=carried)
        assert clients[2].carried() == {} and clients[1].carried(), "moments of NaN are kept"


@pytest.mark.filterwarnings("default:round")
def test_a_log_that_raises_fails_alone_in_the_batched_engine():
    clients = model_clients(4)
    clients[1].tensors[1][:] = 99  # no such outcome
    with pytest.warns(UserWarning, match=r"round 1: clients \[0, 1, 2, 3\] are asked one by one"):
        history = federate(clients, engine="batched", rounds=1)
    (record,) = history.rounds
    assert record.failures == {1: "error"} and record.used == (0, 2, 3)
    assert history.digest == federate(clients, rounds=1).digest


def test_batched_asks_strangers_one_by_one_and_refuses_a_crowd_of_strangers():
    class Quiet(ModelClient):
        """Another class."""

    clients = model_clients(3)
    odd = Quiet(3, network(), loss, clients[0].tensors)
    batched = federate([*clients, odd], engine="batched")
    assert batched.rounds[0].used == (0, 1, 2, 3)
    assert largest_difference(batched, federate([*clients, odd])) <= 1e-6
    own = [ModelClient(k, network(), lambda *a: loss(*a), c.tensors) for k, c in enumerate(clients)]
    with pytest.raises(ValueError, match=r"share one loss object.*no two do"):
        federate(own, engine="batched")


def test_a_loss_that_branches_on_values_is_for_the_loop():
    def branching(module: torch.nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        value = loss(module, *batch)
        return value if value > 1 else 2 * value

    clients = [ModelClient(c.client_id, c.module, branching, c.tensors) for c in model_clients(2)]
    with pytest.raises(ValueError, match=r"cannot stack this loss.*use engine='loop'"):
        federate(clients, engine="batched")
    assert not federate(clients).rounds[0].failures


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_resumed_run_is_the_uninterrupted_run(engine, tmp_path):
    """Server optimiser, carried moments, norm bound and sampling all continue."""
    options = {"engine": engine, "fraction": 0.7, "fit_config": replace(FIT, client_optimiser="carry")}
    whole = federate(model_clients(4), FedAdam(), rounds=5, **options)
    federate(model_clients(4), FedAdam(), rounds=2, checkpoint=tmp_path, **options)
    resumed = federate(model_clients(4), FedAdam(), rounds=5, checkpoint=tmp_path, **options)
    assert same(whole, resumed) and [r.round for r in resumed.rounds] == [1, 2, 3, 4, 5]
    finished = federate(model_clients(4), FedAdam(), rounds=5, checkpoint=str(tmp_path), **options)
    assert same(whole, finished)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"round_0000{r}.{kind}" for r in (4, 5) for kind in ("json", "safetensors")
    ]
    with pytest.raises(ValueError, match="holds 5 rounds and rounds = 3; choose another folder"):
        federate(model_clients(4), FedAdam(), rounds=3, checkpoint=tmp_path, **options)


def test_what_clients_kept_in_an_earlier_run_is_forgotten():
    clients, config = model_clients(2), replace(FIT, client_optimiser="carry")
    assert same(federate(clients, fit_config=config), federate(clients, fit_config=config))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_federated as t
from fedmorl.federated import checkpoint
die = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
where, folder = sys.argv[1:]
real_replace, real_fsync, calls = os.replace, os.fsync, []
def replace(source, target):
    calls.append(str(target))
    if where == "half-written" and target.name == "round_00003.safetensors":
        with open(source, "r+b") as file:
            file.truncate(os.path.getsize(source) // 2)
        die()
    if where == "before the JSON" and target.name == "round_00003.json":
        die()
    real_replace(source, target)
checkpoint.os.replace = replace
def rule(server, updates):
    if where == "between rounds" and server.round == 2:
        die()
    return t.FedAdam()(server, updates)
rule = t.FedAdam() if where != "between rounds" else rule
if where == "between rounds":
    clients = t.killers(die)
    t.federate(clients, t.FedAdam(), rounds=4, checkpoint=folder)
t.federate(t.model_clients(3), t.FedAdam(), rounds=4, checkpoint=folder)
"""


def killers(die: Callable) -> list[ModelClient]:
    """Model clients of which the last one's third round kills the process."""

    class Killer(ModelClient):
        def fit(self, round: int, *rest: object) -> ClientUpdate:
            return die() if round == 3 else super().fit(round, *rest)

    *some, last = model_clients(3)
    return [*some, Killer(last.client_id, last.module, last.loss, last.tensors)]


def test_killed_between_rounds_and_in_mid_write_then_resumed(tmp_path):
    whole = federate(model_clients(3), FedAdam(), rounds=4)
    program = KILLED.format(tests=str(Path(__file__).parent))
    running = {
        where: subprocess.Popen([sys.executable, "-c", program, where, str(tmp_path / where)], stderr=subprocess.PIPE)
        for where in ("between rounds", "half-written", "before the JSON")
    }
    for where, process in running.items():
        _, words = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, f"{where}: {words.decode()}"
        found = sorted(path.name for path in (tmp_path / where).iterdir())
        assert "round_00002.json" in found and "round_00003.json" not in found, where
        assert ("round_00003.safetensors" in found) == (where == "before the JSON")
        assert ("round_00003.safetensors.tmp" in found) == (where == "half-written")
        resumed = federate(model_clients(3), FedAdam(), rounds=4, checkpoint=tmp_path / where)
        assert same(whole, resumed), where
        assert not list((tmp_path / where).glob("*.tmp")), "a torn file is left behind"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"seed": 8}, "fit_config.seed = 7 and this run has 8"),
        ({"fit_config": replace(FIT, lr=0.02)}, "fit_config.lr = 0.01 and this run has 0.02"),
        ({"aggregator": Median()}, r"aggregator = FedAvg\(max_n=None\) and this run has Median\(\)"),
        ({"engine": "batched"}, "engine = loop and this run has batched"),
        ({"fraction": 0.5}, "fraction = 1.0 and this run has 0.5"),
        ({"max_norm": 3.0}, "max_norm = auto and this run has 3.0"),
        ({"initial": {"bias": np.float32([9]), "weight": np.ones((3, 2), "f4")}}, "initial = "),
        ({"clients": [Drift(0), Drift(2)]}, r"clients = \[0, 1\] and this run has \[0, 2\]"),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else given,  # no address: xdist compares them
)
def test_a_checkpoint_of_other_settings_is_refused(options, words, tmp_path):
    clients = options.pop("clients", [Drift(0), Drift(1)])
    federate([Drift(0), Drift(1)], checkpoint=tmp_path)
    with pytest.raises(ValueError, match=rf"round_00003.json was written with {words}"):
        federate(clients, **{"checkpoint": tmp_path, "rounds": 4, **options})


def test_a_checkpoint_of_other_logs_or_code_is_refused(tmp_path, monkeypatch):
    federate(model_clients(2), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="the log of client 1 = "):
        federate([model_client(0), model_client(1, n=41)], checkpoint=tmp_path)
    monkeypatch.setattr(checkpoints, "FORMAT", 0)
    with pytest.raises(ValueError, match="format = 1 and this run has 0"):
        federate(model_clients(2), checkpoint=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("fedmorl.federated.core.version", lambda name: "0.0.1" if name == "torch" else "0")
    with pytest.raises(ValueError, match="the version of"):
        federate(model_clients(2), checkpoint=tmp_path)


def test_torn_and_edited_checkpoints_are_refused_by_name(tmp_path):
    federate([Drift(0), Drift(1)], checkpoint=tmp_path)
    arrays, record = tmp_path / "round_00003.safetensors", tmp_path / "round_00003.json"
    whole, text = arrays.read_bytes(), record.read_text()

    def resumed(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            federate([Drift(0), Drift(1)], checkpoint=tmp_path, rounds=4)

    arrays.write_bytes(whole[:-3])
    resumed("round_00003.safetensors is torn")
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    resumed("round_00003.safetensors does not have the digest")
    arrays.unlink()
    resumed("round_00003.safetensors is missing")
    arrays.write_bytes(whole)
    record.write_text(text[:-40])
    resumed("round_00003.json is not JSON")
    edited = json.loads(text)
    edited["history"][0]["median_norm"] = 1e9
    record.write_text(json.dumps(edited))
    resumed("round_00003.json was torn or edited")
    record.write_text(text)
    assert same(federate([Drift(0), Drift(1)], checkpoint=tmp_path, rounds=4), federate([Drift(0), Drift(1)], rounds=4))


def test_a_stopped_round_is_tried_again_on_resume(tmp_path):
    broken = [Drift(0), Spoilt(1, raising, (2,))]
    with pytest.raises(FederationStopped):
        federate(broken, min_updates=2, checkpoint=tmp_path)
    assert same(
        federate([Drift(0), Drift(1)], min_updates=2, checkpoint=tmp_path),
        federate([Drift(0), Drift(1)], min_updates=2),
    )


def test_a_checkpoint_keeps_shapes_layouts_and_what_is_not_a_number(tmp_path):
    state = {"a": np.float64(3.5) * np.ones(()), "b": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))}
    server_state = ServerState(round=3, state=state, opt={"m": {"x/y": np.ones(2)}})
    entry = checkpoints.plain({"stats": {1: {"loss": np.float64(np.nan)}}, "n": np.int64(3)})
    kept = checkpoints.Checkpoint(server=server_state, carried={12: {"m/b": np.zeros(1, "f4")}}, history=[entry])
    checkpoints.write(tmp_path, kept, {"seed": 1})
    found = checkpoints.read(tmp_path, {"seed": 1})
    assert found is not None and found.history == [{"stats": {"1": {"loss": None}}, "n": 3}]
    assert digest(found.server.state) == digest(state) and found.server.state["a"].shape == ()
    assert found.server.opt["m"]["x/y"].tolist() == [1, 1] and found.carried[12]["m/b"].dtype == np.float32
    assert checkpoints.read(tmp_path / "nothing here", {}) is None


# --- the rest --------------------------------------------------------------------------------------------


def test_progress_is_shown_on_request(capsys):
    federate([Drift(0)], progress=True)
    assert "3/3" in capsys.readouterr().err
    federate([Drift(0)])
    assert capsys.readouterr().err == ""


def test_importing_the_package_brings_no_flower():
    code = "import fedmorl.federated, sys; assert not [m for m in sys.modules if m.split('.')[0] in ('flwr', 'ray')]"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def test_federation_learns_what_no_client_could_alone():
    """Each client has seen one of four outcomes; the shared model knows all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    outcome = 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    logs = [[t[outcome == k] for t in (x, outcome, x.sum(1))] for k in range(4)]
    clients = [ModelClient(k, network(), loss, log) for k, log in enumerate(logs)]
    history = federate(
        clients, engine="batched", rounds=30, fit_config=FitConfig(local_steps=5, batch_size=64, lr=0.02)
    )
    losses = {}
    for name, state in {
        "shared": history.state,
        "alone": clients[0].fit(1, clients[0].state(), replace(FIT, local_steps=150, seed=7)).state,
    }.items():
        module = network()
        load_into(trainable(module), state)
        losses[name] = float(torch.nn.functional.cross_entropy(module(x)[:, :4], outcome).detach())
    assert losses["shared"] < 1 < np.log(4) < losses["alone"]
