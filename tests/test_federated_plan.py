"""Federations in plain values: a file, a recipe, an order to another process, and the command over them."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flower_clients
import numpy as np
import pytest

from fedmorl.cli import main
from fedmorl.data import collect_dca_logs
from fedmorl.dca import AC_BE, Scenario
from fedmorl.federated import (
    FedAdam,
    FedAvg,
    FederationStopped,
    FedProx,
    FitConfig,
    FlowerError,
    Krum,
    Median,
    Plan,
    PlanError,
    Recipe,
    TrimmedMean,
    read_plan,
    run_federation,
)
from fedmorl.federated import checkpoint as checkpoints
from fedmorl.federated.history import History, checkpoint_of, history_of
from fedmorl.federated.logs import transition_client
from fedmorl.federated.runtime import Order, environment, read_order, read_outcome, write_order, write_outcome

FIT = FitConfig(local_steps=3, batch_size=8, lr=0.01)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three stations' logs."""
    folder = tmp_path_factory.mktemp("logs")
    together = collect_dca_logs(Scenario.uniform(AC_BE, 3), n_decisions=300, seed=0, warmup_slots=1000)
    for k, log in enumerate(together.clients()):
        log.save(folder / f"station_{k}.h5")
    return folder


def write(folder: Path, **fields: object) -> Path:
    """A plan as JSON, which is YAML."""
    path = folder / "federation.yml"
    path.write_text(json.dumps(fields))
    return path


def federate(clients: tuple, engine: str = "loop", **options: object) -> History:
    return run_federation(clients, **{"engine": engine, "rounds": 2, "fit_config": FIT, "seed": 7, **options})


# --- recipes and plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_recipes_are_made_into_their_clients(engine):
    recipes = flower_clients.models(3)
    clients = tuple(flower_clients.model(k, n=40 + 7 * k) for k in range(3))
    assert federate(recipes, engine).rounds == federate(clients, engine).rounds


@pytest.mark.parametrize(
    "rule", [FedAvg(max_n=9), FedProx(), FedAdam(eta=0.3), TrimmedMean(beta=0.2), Median(), Krum(f=1, m=2)], ids=repr
)
def test_a_plan_survives_json(rule):
    made = {"fit": replace(FIT, lr_final=1e-4, lr_rounds=3), "fraction": 0.7, "max_norm": 3.5, "round_timeout_s": 9.0}
    plan = Plan(clients=flower_clients.models(3), rounds=4, aggregator=rule, seed=2**32 - 1, min_updates=2, **made)
    assert Plan.of_plain(json.loads(json.dumps(plan.to_plain()))) == plan


def test_a_file_names_logs_from_its_own_folder_and_the_rest_has_defaults(tmp_path):
    path = tmp_path / "federation.yml"
    path.write_text(
        "rounds: 20\nlogs: [a.h5, sub/b.h5]\noptions: {hidden: [32, 32]}\n"
        "fit: {local_steps: 5, lr: 1.0e-2}\naggregator: {Krum: {f: 1}}\n"
    )
    plan = read_plan(path)
    assert [r.client_id for r in plan.clients] == [0, 1]
    assert plan.clients[1].options == {"hidden": [32, 32], "log": str(tmp_path / "sub/b.h5")}
    assert plan.clients[0].build == "fedmorl.federated.logs:transition_client"
    assert plan.aggregator == Krum(f=1) and plan.fit == FitConfig(local_steps=5, lr=0.01) and plan.seed == 0
    assert read_plan(write(tmp_path, rounds=1, n_clients=3)).clients[2] == Recipe(
        client_id=2, build=plan.clients[0].build
    )


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"n_clients": 2}, "rounds is missing"),
        ({"rounds": 2}, "n_clients must be an integer >= 1 where there are no logs; got None"),
        ({"rounds": 2, "logs": "a.h5"}, "logs must list one file a client"),
        ({"rounds": 2, "logs": ["a.h5"], "n_clients": 2}, "n_clients is 2 and there are 1 logs"),
        ({"rounds": 2, "n_clients": 2, "epochs": 3}, "there is no field epochs; the fields are aggregator, client"),
        ({"rounds": 2, "n_clients": 2, "fit": {"steps": 3}}, "steps"),
        ({"rounds": 2, "n_clients": 2, "fit": {"lr": -1}}, "lr must be > 0"),
        ({"rounds": 2, "n_clients": 2, "aggregator": "Mean"}, "aggregator must be one of FedAvg, FedProx"),
        ({"rounds": 2, "n_clients": 2, "aggregator": {"Krum": {"f": -1}}}, "Krum needs f >= 0"),
        ({"rounds": 2, "n_clients": 2, "round_timeout_s": 0}, "round_timeout_s must be > 0"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_bad_file_is_refused_by_name_and_field(fields, words, tmp_path, capsys):
    path = write(tmp_path, **fields)
    with pytest.raises(PlanError, match=words) as refused:
        read_plan(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert main(["federate", "run", str(path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fedmorl federate: ") and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "build, words",
    [
        ("flower_clients", "must be 'package.module:function'"),
        ("no_such_module:client", "cannot be imported: No module named 'no_such_module'"),
        ("flower_clients:nobody", "the module flower_clients has no function nobody"),
        ("builtins:str", r"builtins:str must return a client with fit\(\) and client_id 0"),
    ],
)
def test_a_recipe_of_nothing_is_refused(build, words):
    with pytest.raises(PlanError, match=words):
        Recipe(client_id=0, build=build).make()


def test_flower_takes_recipes_only():
    client = flower_clients.model(0)
    with pytest.raises(ValueError, match=r"each must be a Recipe, and client 0 is an object of this process"):
        federate((client,), "flower")

    def own_rule(server: object, updates: object) -> object:
        return server

    with pytest.raises(PlanError, match="the aggregator of another process must be one of FedAvg"):
        federate(flower_clients.models(2), "flower", aggregator=own_rule)


@pytest.mark.skipif(importlib.util.find_spec("flwr") is not None, reason="the extra `federated` is installed here")
def test_without_the_extra_flower_says_what_to_install():
    with pytest.raises(FlowerError, match=r"flower-superlink is not installed .*pip install 'fedmorl\[federated\]'"):
        federate(flower_clients.models(2), "flower")


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is not None, reason="the extra `federated` is installed")
def test_without_the_extra_the_maker_of_keys_says_what_to_install(tmp_path, capsys):
    assert main(["federate", "keys", str(tmp_path / "keys"), "--clients", "1"]) != 0
    assert "needs cryptography for this, an extra: pip install" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


# --- orders and outcomes ---------------------------------------------------------------------------------


def test_an_order_reaches_the_other_process_whole(tmp_path):
    plan = Plan(clients=flower_clients.models(2), rounds=3, fit=FIT)
    initial = {"b": np.float32([[1, 2]]), "a": np.float64([0.1])}
    order = Order(plan=plan, checkpoint=tmp_path / "kept", initial=initial, client_of_node={2**63: 1})
    (tmp_path / "outcome.json").write_text("of an earlier run")
    write_order(tmp_path, order)
    found = read_order(tmp_path)
    assert found.plan == plan and found.checkpoint == tmp_path / "kept" and found.client_of_node == {2**63: 1}
    assert all((found.initial[k] == initial[k]).all() and found.initial[k].dtype == initial[k].dtype for k in initial)
    assert read_outcome(tmp_path) is None, "the outcome of an earlier run is taken for this one's"


def test_an_outcome_is_what_would_have_happened_here(tmp_path):
    history = federate(flower_clients.models(2))
    write_outcome(tmp_path, "done", "", checkpoint_of(history))
    found = history_of(read_outcome(tmp_path))
    assert found.rounds == history.rounds and found.digest == history.digest
    write_outcome(tmp_path, "stopped", "round 2 failed", checkpoint_of(history))
    with pytest.raises(FederationStopped, match="round 2 failed") as stopped:
        history_of(read_outcome(tmp_path))
    assert stopped.value.history.rounds == history.rounds
    for status, kind in (("refused", ValueError), ("failed", FlowerError)):
        write_outcome(tmp_path, status, "for a reason")
        with pytest.raises(kind, match="for a reason"):
            history_of(read_outcome(tmp_path))


def test_flower_s_processes_call_nobody_and_install_nothing(tmp_path):
    found = environment(tmp_path)
    off = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
    assert [found[name] for name in off] == ["0", "0"] and found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1" and found["OMP_NUM_THREADS"] == "1"
    assert Path(found["FLWR_HOME"]).parent == tmp_path, "two runs share a home, and with it each other's code"


def test_importing_any_of_it_but_the_engine_brings_no_flower():
    code = (
        "import sys, fedmorl.federated.deployment, fedmorl.federated.keys, fedmorl.cli, fedmorl.federated.logs\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('flwr', 'ray', 'cryptography')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- checkpoints and logs elsewhere ----------------------------------------------------------------------


def test_a_checkpoint_compares_a_log_only_where_both_sides_know_it(tmp_path):
    client = checkpoints.LOG + "1"
    kept = checkpoint_of(federate(flower_clients.models(2)))
    checkpoints.write(tmp_path, kept, {"seed": 1, client: "abc"})
    assert checkpoints.read(tmp_path, {"seed": 1}) is not None, "a silent client stops the resume"
    with pytest.raises(ValueError, match="the log of client 1 = abc and this run has xyz"):
        checkpoints.read(tmp_path, {"seed": 1, client: "xyz"})
    assert checkpoints.last_round(tmp_path) == 2 and checkpoints.last_round(tmp_path / "none") == 0


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_federates_logs_and_goes_on_where_it_was(logs, tmp_path, capsys):
    fields = {"seed": 7, "logs": [str(logs / f"station_{k}.h5") for k in range(3)], "options": {"hidden": [8]}}
    fields["fit"] = {"local_steps": 3, "batch_size": 8, "lr": 0.01}
    for rounds in (1, 2):
        path = write(tmp_path, rounds=rounds, **fields)
        assert main(["federate", "run", str(path), "--engine", "loop", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "history.json").read_text())
    clients = tuple(transition_client(k, logs / f"station_{k}.h5", hidden=[8]) for k in range(3))
    whole = federate(clients)
    assert told["digest"] == whole.digest and [entry["round"] for entry in told["rounds"]] == [1, 2]
    assert f"2 rounds, {whole.bytes_up / 2**20:.3g} MiB up" in capsys.readouterr().out
    from safetensors.numpy import load_file

    model = load_file(tmp_path / "out" / "model.safetensors")
    assert all((model[name] == value).all() for name, value in whole.state.items()) and set(model) == set(whole.state)


def test_a_log_that_is_missing_or_torn_is_refused_by_name(logs, tmp_path, capsys):
    torn = tmp_path / "torn.h5"
    torn.write_bytes((logs / "station_0.h5").read_bytes()[:2000])
    for name in (str(torn), str(tmp_path / "none.h5")):
        path = write(tmp_path, rounds=1, logs=[name])
        assert main(["federate", "run", str(path), "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert name in said and said.count("\n") == 1
    with pytest.raises(ValueError, match="client 3 has no log"):
        transition_client(3)


def test_help_lists_every_way(capsys):
    with pytest.raises(SystemExit):
        main(["federate", "--help"])
    said = capsys.readouterr().out
    for name in ("run", "keys", "server", "client"):
        assert f"\n{name:6} " in said
        with pytest.raises(SystemExit) as left:
            main(["federate", name, "--help"])
        assert left.value.code == 0
