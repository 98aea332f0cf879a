"""Measure what a decision costs that is planned in NetWorld, and what the sampler's loop adds to its networks.

    python benchmarks/networld.py                     the rows, on standard output

A decision of one agent, and of 64 agents at once, by P1 (a guided trajectory in five steps) and P2 (eight levels, two
futures each, in four), of the size that is published; the weights are those after one update, which cost the same as
any. The peer is the scheduler of the library `diffusers` (the extra `oracle`), which samples P1's unguided trajectory
with the same denoiser in the same steps; without the library its row is left out. All programs take turns on one
thread; the best of `--repeats` counts, by CPU time.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from sequence import Program, rates
from torch import Tensor

from fedmorl.data.network_logs import collect_network_log
from fedmorl.federated.clients import one_thread
from fedmorl.learners.networld_planner import NetWorldPlanner
from fedmorl.nn.diffusion import ddim
from fedmorl.tasks.cw_selection import CWSelection
from fedmorl.world_models.latent_codec import CodecTraining, D, fit_codec, with_messages
from fedmorl.world_models.network_windows import CONDITION, H
from fedmorl.world_models.networld import NetWorld, NetWorldModel

N_STEPS = 5
AGENTS = (1, 64)
ASKED = "<= 10"


def model() -> NetWorldModel:
    """Of the published size, after one update on a small log."""
    log = collect_network_log(CWSelection(2, 10, "rounds"), 24, rng=np.random.default_rng(0))
    codec = fit_codec([log], CodecTraining(n_steps=1), rng=np.random.default_rng(0))
    method = NetWorld(parts=("score", "guide"), width=192, n_steps=1)
    return method.fit([with_messages(log, codec)], codec, rng=np.random.default_rng(0))


def decide(planner: NetWorldPlanner, n_agents: int) -> None:
    """Levels of agents that saw something, and heard nothing but zeros."""
    rng = np.random.default_rng(0)
    seen, heard = rng.standard_normal((n_agents, 5)).astype(np.float32), np.zeros((n_agents, D), np.float32)
    planner.plan("cw", seen, heard, 8, rng=rng)


def denoiser(trained: NetWorldModel, n_agents: int) -> tuple[Callable[[Tensor, int], Tensor], Tensor, Tensor]:
    """P1's guess of a clean window, noise to begin with, and what is known."""
    draws = torch.Generator().manual_seed(0)
    c, noise = torch.randn(n_agents, CONDITION, generator=draws), torch.randn(n_agents, H, D, generator=draws)

    def guess(x: Tensor, level: int) -> Tensor:
        return trained.networks.guess_trajectory(x, torch.full((len(x),), level), c)

    return guess, noise, noise[:, 0]


def by_diffusers(guess: Callable[[Tensor, int], Tensor], noise: Tensor, known: Tensor) -> Callable[[], Tensor] | None:
    """The same sample, stepped by `diffusers`; None where it is not installed."""
    try:
        from diffusers import DDIMScheduler
    except ImportError:
        return None
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(N_STEPS)
    levels = scheduler.timesteps.tolist()

    def sample() -> Tensor:
        x = noise
        for level in levels:
            x = torch.cat([known[:, None], x[:, 1:]], 1)
            x = scheduler.step(guess(x, level), level, x, eta=0.0).prev_sample
        return torch.cat([known[:, None], x[:, 1:]], 1)

    return sample


def sampled(trained: NetWorldModel, n_agents: int) -> dict[str, Program]:
    """P1's unguided window by our loop and by the library's, which must be the same window."""
    guess, noise, known = denoiser(trained, n_agents)
    ours = partial(ddim, noise, guess, N_STEPS, trained.networks.alpha_bar, known)
    found: dict[str, Program] = {"ours": (ours, 1)}
    theirs = by_diffusers(guess, noise, known)
    if theirs is not None:
        assert (ours() - theirs()).abs().max() <= 1e-4
        found["diffusers"] = (theirs, 1)
    return found


def networld(repeats: int) -> Iterable[dict]:
    """Decisions, then the sampler beside its peer."""
    trained = model()
    planners = {
        "P1, 5 steps": NetWorldPlanner(model=trained, method="guide", ddim_steps=N_STEPS),
        "P2, 4 steps": NetWorldPlanner(model=trained, ddim_steps=4),
    }
    for n_agents in AGENTS:
        asked: dict[str, Program] = {
            name: (partial(decide, planner, n_agents), n_agents) for name, planner in planners.items()
        }
        for name, rate in rates(asked, 3 * repeats, seconds=0.1).items():
            quantity = "CPU ms of a decision of one agent"
            case = f"NetWorld, {name}, {n_agents} at once"
            yield {"case": case, "quantity": quantity, "ours": f"{1e3 / rate:.3g}", "asked": ASKED}
    for n_agents in AGENTS:
        with one_thread(), torch.inference_mode():
            found = rates(sampled(trained, n_agents), 3 * repeats, seconds=0.05)
        yield compared(f"NetWorld, unguided window, 5 steps, {n_agents} at once", found)
    yield {"case": "this group", "quantity": "load average at its end", "ours": f"{os.getloadavg()[0]:.2f}"}


def compared(case: str, found: dict[str, float]) -> dict:
    row = {"case": case, "quantity": "samples per CPU second", "ours": f"{found['ours']:.4g}"}
    if "diffusers" not in found:
        return row
    peer = {"peer": "DDIMScheduler of diffusers", "peer_value": f"{found['diffusers']:.4g}"}
    return row | peer | {"ratio": f"{found['ours'] / found['diffusers']:.3g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="a third of the turns; the best counts (default 9)")
    for row in networld(parser.parse_args().repeats):
        ratio = f"  {row['ratio']} x {row['peer']} ({row['peer_value']})" if "ratio" in row else ""
        asked = f"  (asked {row['asked']})" if row.get("asked") else ""
        print(f"{row['case']}: {row['ours']} {row['quantity']}{ratio}{asked}", flush=True)


if __name__ == "__main__":
    main()
