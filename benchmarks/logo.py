"""Measure one LOGO beside ensembles that doubt by disagreeing: what a prediction costs.

    python benchmarks/logo.py                         the rows, on standard output

LOGO doubts by the distance of its two ways, so one network is enough. Its peers are five: copies of the same
architecture, and joint perceptrons of three layers from states, observations and actions to the same numbers; each as
one batched product over members, and as a loop over five networks. All are as wide (256), have variances, and predict
states, rewards and observations, which a rollout of policies needs. Agents are always one batched product. Sizes are
those that StarCraft's Multi-Agent Challenge states for three of its maps. All programs take turns on one thread; the
best of `--repeats` counts, by CPU time.
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import replace

import torch
from sequence import Program, rates
from torch import Tensor

from fedmorl.federated.clients import one_thread
from fedmorl.world_models.ensemble import JointMLP
from fedmorl.world_models.joint_dynamics import Network
from fedmorl.world_models.joint_networks import Foreseen, Sizes
from fedmorl.world_models.logo import LOGO
from fedmorl.world_models.matching import Kind, count

MAPS = {
    "2s3z": Sizes(n_agents=5, observation_size=80, action_size=11, state_size=120),
    "5m_vs_6m": Sizes(n_agents=5, observation_size=55, action_size=12, state_size=98),
    "6h_vs_8z": Sizes(n_agents=6, observation_size=78, action_size=14, state_size=140),
}
BATCHES = (1, 64, 500)
MEMBERS = 5
ONE = LOGO(hidden=256, likelihood="gaussian")
COPIES = LOGO(hidden=256, likelihood="gaussian", members=MEMBERS)
JOINT = JointMLP(likelihood="gaussian", from_observations=True, observations=True, members=MEMBERS)
PEERS = {"five copies": COPIES, "five joint perceptrons": JOINT}
ASKED = {("five copies", 64): ">= 4", ("five copies", 500): ">= 4"}


def network(kind: Kind, sizes: Sizes) -> Network:
    """Random weights, the same each time."""
    return kind.network(sizes, torch.Generator().manual_seed(0))


def situations(sizes: Sizes, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random states (1, B, S), observations (1, N, B, O) and actions (1, N, B, A)."""
    draws, n = torch.Generator().manual_seed(1), sizes.n_agents
    widths = (sizes.observation_size, sizes.action_size)
    o, a = (torch.randn(1, n, batch, width, generator=draws) for width in widths)
    return torch.randn(1, batch, sizes.state_size, generator=draws), o, a


def apart(together: Network, alone: Kind, sizes: Sizes) -> list[Network]:
    """The members of `together`, each as a network of its own."""
    members = [network(alone, sizes) for _ in range(together.members)]
    for k, member in enumerate(members):
        mine = member.state_dict()
        theirs = {name: x.view(together.members, *mine[name].shape)[k] for name, x in together.state_dict().items()}
        member.load_state_dict(theirs)
    return members


def batched(together: Network, asked: tuple[Tensor, ...]) -> Foreseen:
    """All members at once, each asked the same."""
    return together(*(x.expand(together.members, *x.shape[1:]) for x in asked))


def looped(members: list[Network], asked: tuple[Tensor, ...]) -> list[Foreseen]:
    """One member after the other."""
    return [member(*asked) for member in members]


def programs(sizes: Sizes, batch: int) -> dict[str, Program]:
    """LOGO and its peers by name, the same situations for all."""
    asked, one = situations(sizes, batch), network(ONE, sizes)
    found: dict[str, Program] = {"LOGO": (lambda: one(*asked), batch)}
    for name, kind in PEERS.items():
        together = network(kind, sizes)
        members = apart(together, replace(kind, members=1), sizes)
        found[f"{name}, batched"] = (lambda t=together: batched(t, asked), batch)
        found[f"{name}, looped"] = (lambda m=members: looped(m, asked), batch)
    return found


def logo(repeats: int) -> Iterable[dict]:
    """Predictions per CPU second of one LOGO and of its peers, map by map and batch by batch."""
    for name, sizes in MAPS.items():
        for batch in BATCHES:
            with one_thread(), torch.inference_mode():
                measured = rates(programs(sizes, batch), 3 * repeats, seconds=0.05)
            for peer in [peer for peer in measured if peer != "LOGO"]:
                yield compared(f"LOGO, sizes of {name}, batch {batch}", measured["LOGO"], peer, measured[peer], batch)
        for peer, kind in PEERS.items():
            yield compared_size(f"LOGO, sizes of {name}", count(ONE, sizes), peer, count(kind, sizes))
    yield {"case": "this group", "quantity": "load average at its end", "ours": f"{os.getloadavg()[0]:.2f}"}


def compared(case: str, ours: float, peer: str, theirs: float, batch: int) -> dict:
    return {
        "case": case,
        "quantity": "predictions per CPU second",
        "ours": f"{ours:.4g}",
        "peer": peer,
        "peer_value": f"{theirs:.4g}",
        "ratio": f"{ours / theirs:.3g}",
        "asked": ASKED.get((peer.split(",")[0], batch), ""),
    }


def compared_size(case: str, ours: int, peer: str, theirs: int) -> dict:
    shown = {"ours": f"{ours:.4g}", "peer": peer, "peer_value": f"{theirs:.4g}", "ratio": f"{ours / theirs:.3g}"}
    return {"case": case, "quantity": "parameters, with what only training needs", **shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="a third of the turns; the best counts (default 9)")
    for row in logo(parser.parse_args().repeats):
        ratio = f"  {row['ratio']} x {row['peer']} ({row['peer_value']})" if "ratio" in row else ""
        asked = f"  (asked {row['asked']})" if row.get("asked") else ""
        print(f"{row['case']}: {row['ours']} {row['quantity']}{ratio}{asked}", flush=True)


if __name__ == "__main__":
    main()
