"""A federation in plain values: what another process, or another machine, needs to take part in it.

An object in memory cannot travel, since nothing here is pickled. So a client that lives elsewhere is told by a
`Recipe`: the name of a function that makes it, and that function's arguments. A `Plan` is a whole federation of such
clients, and a YAML file of few lines holds one:

    client: fedmorl.federated.logs:transition_client    # the default: FedMORL's world model on a log in HDF5
    options: {hidden: [64, 64]}                         # what the function takes beside client_id and log
    logs: [station_0.h5, station_1.h5, station_2.h5]    # client k reads the k-th; from this file's folder
    rounds: 20
    fit: {local_steps: 50, batch_size: 256, lr: 0.003}
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmorl.federated.aggregators import FedAdam, FedAvg, FedProx, Krum, Median, TrimmedMean
from fedmorl.federated.records import Aggregator, Client, FitConfig
from fedmorl.federated.screening import MaxNorm

DEFAULT_CLIENT = "fedmorl.federated.logs:transition_client"
RULES = (FedAvg, FedProx, FedAdam, TrimmedMean, Median, Krum)
FEDAVG = FedAvg()  # frozen, so fit for a default
ROUND_TIMEOUT_S = 600.0  # about three times a slow round; ours


class PlanError(ValueError):
    """A federation that cannot be run as it is described; one sentence."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a client: `build(client_id, **options)`, wherever it is to live.

    Attributes
    ----------
    client_id : int
        Its name in every engine.
    build : str
        "package.module:function"; the function returns a `Client` with that id.
    options : mapping
        Plain values (numbers, text, lists, mappings): they travel as JSON.
    """

    client_id: int
    build: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Client:
        """The client itself."""
        client = function_of(self.build)(self.client_id, **self.options)
        if getattr(client, "client_id", None) != self.client_id or not callable(getattr(client, "fit", None)):
            raise PlanError(f"{self.build} must return a client with fit() and client_id {self.client_id}")
        return client

    def fit(self, *args: Any) -> Any:
        """A recipe is no client yet: `run_federation` makes it first, where it is to live."""
        raise TypeError("a Recipe cannot fit; make() the client first")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that `run_federation` takes, for clients that are told by recipes."""

    clients: tuple[Recipe, ...]
    rounds: int
    fit: FitConfig = field(default_factory=FitConfig)
    aggregator: Aggregator = FEDAVG
    seed: int = 0
    fraction: float = 1.0
    min_updates: int = 1
    on_failed_round: str = "stop"
    max_norm: MaxNorm = "auto"
    round_timeout_s: float = ROUND_TIMEOUT_S

    def __post_init__(self) -> None:
        if not 0 < self.round_timeout_s < math.inf:
            raise PlanError(f"round_timeout_s must be > 0 and finite; got {self.round_timeout_s}")

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `run_federation`, but for clients, engine and checkpoint."""
        names = ("aggregator", "rounds", "seed", "fraction", "min_updates", "on_failed_round", "max_norm")
        return {"fit_config": self.fit, **{name: getattr(self, name) for name in names}}

    def to_plain(self) -> dict[str, Any]:
        """For JSON; `Plan.of_plain` gives an equal plan."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        clients = [dataclasses.asdict(recipe) for recipe in self.clients]
        return plain | {"clients": clients, "fit": dataclasses.asdict(self.fit), "aggregator": _told(self.aggregator)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_plain`."""
        recipes = tuple(Recipe(**entry) for entry in plain["clients"])
        made = {"clients": recipes, "fit": FitConfig(**plain["fit"]), "aggregator": rule_of(plain["aggregator"])}
        return cls(**{**plain, **made})


def refuse_carry(config: FitConfig) -> None:
    """A client elsewhere has a new process for each round, which remembers nothing."""
    if config.client_optimiser == "carry":
        raise PlanError("client_optimiser must be 'reset' with Flower: a client's process ends with the round")


def function_of(name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise PlanError(f"client must be 'package.module:function'; got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PlanError(f"{name} cannot be imported: {error}; is it installed on this machine?") from None
    if not callable(getattr(module, attribute, None)):
        raise PlanError(f"the module {module_name} has no function {attribute}")
    return getattr(module, attribute)


# --- a file that a person wrote --------------------------------------------------------------------------


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file, or PlanError in one sentence that names the file and the field."""
    from fedmorl.strict_yaml import read_yaml

    given = read_yaml(path)
    if not isinstance(given, dict):
        raise PlanError(f"{path} must hold names with values, such as `rounds: 20`")
    try:
        return _plan(given, path.resolve().parent)
    except (TypeError, ValueError) as error:
        raise PlanError(f"{path}: {error}") from None


def _plan(given: dict[str, Any], folder: Path) -> Plan:
    own = {"client", "options", "logs", "n_clients"}
    known = own | {f.name for f in dataclasses.fields(Plan)} - {"clients"}
    unknown = sorted(map(str, set(given) - known))
    if unknown:
        raise PlanError(f"there is no field {unknown[0]}; the fields are {', '.join(sorted(known))}")
    if "rounds" not in given:
        raise PlanError("rounds is missing")
    rest = {name: value for name, value in given.items() if name not in own}
    if "fit" in rest:
        rest["fit"] = FitConfig(**_mapping(rest["fit"], "fit"))
    if "aggregator" in rest:
        rest["aggregator"] = rule_of(rest["aggregator"])
    return Plan(clients=_recipes(given, folder), **rest)


def _recipes(given: Mapping[str, Any], folder: Path) -> tuple[Recipe, ...]:
    logs, number = given.get("logs"), given.get("n_clients")
    if logs is not None and (not isinstance(logs, list) or not logs):
        raise PlanError("logs must list one file a client")
    if logs is None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
        raise PlanError(f"n_clients must be an integer >= 1 where there are no logs; got {number!r}")
    if logs is not None and number not in (None, len(logs)):
        raise PlanError(f"n_clients is {number} and there are {len(logs)} logs; leave the first out")
    build, options = given.get("client", DEFAULT_CLIENT), _mapping(given.get("options", {}), "options")
    paths: Sequence[Any] = logs if logs is not None else [None] * int(number or 0)
    own = [{} if path is None else {"log": str(folder / path)} for path in paths]
    return tuple(Recipe(client_id=k, build=build, options={**options, **mine}) for k, mine in enumerate(own))


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{name} must hold names with values; got {value!r}")
    return value


# --- aggregators by name ---------------------------------------------------------------------------------


def rule_of(told: Any) -> Aggregator:
    """An aggregator from its name, or from {name: {field: value}}."""
    name, fields = next(iter(told.items())) if isinstance(told, Mapping) and len(told) == 1 else (told, {})
    rules = {rule.__name__: rule for rule in RULES}
    if not isinstance(name, str) or name not in rules or not isinstance(fields, Mapping):
        raise PlanError(f"aggregator must be one of {', '.join(rules)}, or {{Krum: {{f: 1}}}}; got {told!r}")
    return rules[name](**fields)


def _told(rule: Aggregator) -> dict[str, Any]:
    if type(rule) not in RULES:
        names = ", ".join(known.__name__ for known in RULES)
        raise PlanError(f"the aggregator of another process must be one of {names}; got {type(rule).__name__}")
    assert dataclasses.is_dataclass(rule) and not isinstance(rule, type)
    return {type(rule).__name__: dataclasses.asdict(rule)}
