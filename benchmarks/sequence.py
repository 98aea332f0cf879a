"""Measure MADS4's actor beside a decision transformer of 1.9 M parameters: what training costs, and one action.

    python benchmarks/sequence.py                     the rows, on standard output

All programs take turns on one thread and the best of `--repeats` counts, by CPU time. Training is a whole update:
forward, backward, clipping, AdamW; S4 on 16 trajectories of 500 steps of one agent, the transformer on windows of its
context, so many that fewer would cost more a step. An action is one agent's, batch 1, in the middle of an episode: by
S4's recurrence, and by the transformer both with cached keys and values and from its window anew. The sizes are those
of warehouse robots: 71 numbers observed, a one-hot id of two agents, five actions, episodes of 500 steps.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable

import torch
from torch.nn.functional import cross_entropy, one_hot

from fedmorl.federated.clients import one_thread
from fedmorl.learners.mads4_actor import Inputs, MADS4Actor
from fedmorl.learners.madt import decaying
from fedmorl.nn.s4 import parameter_groups
from fedmorl.nn.transformer import DecisionTransformer

SIZE, AGENTS, ACTIONS, LENGTH = 71, 2, 5, 500
TRAJECTORIES = 16
WINDOWS = {20: 64, 100: 16}  # context -> windows of an update
KINDS = ("nplr", "s4d-legs")
ASKED = {
    ("train", "nplr", "context 20"): ">= 10",
    ("act", "s4d-legs", "context 20, cached"): ">= 4",
    ("act", "s4d-legs", "context 20, recomputed"): ">= 15",
}

Program = tuple[Callable[[], object], float]  # what to time, and how much of it a call does


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def transformer(context: int) -> DecisionTransformer:
    """4 layers of width 192 with 4 heads."""
    return DecisionTransformer(
        SIZE + AGENTS, ACTIONS, context=context, n_steps=LENGTH, width=192, n_layers=4, n_heads=4, generator=generator()
    )


def updating(module: torch.nn.Module, groups: list[dict], logits: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """One update of `module` on random actions."""
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    actions = torch.randint(ACTIONS, logits().shape[:2], generator=generator())

    def update() -> None:
        optimiser.zero_grad()
        cross_entropy(logits().flatten(0, 1), actions.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()

    return update


def inputs_of(actor: MADS4Actor, *shape: int) -> Inputs:
    """Random inputs of one agent."""
    draws = generator()
    return Inputs(
        observation=torch.randn(*shape, SIZE, generator=draws),
        agent=one_hot(torch.zeros(shape[0], dtype=torch.long), AGENTS).float(),
        previous_action=one_hot(torch.randint(ACTIONS, shape, generator=draws), ACTIONS).float(),
        return_to_go=torch.rand(*shape, 1, generator=draws),
        message=torch.randn(*shape, actor.message_size, generator=draws),
    )


def s4(kind: str) -> tuple[Program, Program, int]:
    """Training, acting, and the number of parameters."""
    actor = MADS4Actor(SIZE, AGENTS, ACTIONS, kind=kind, length=LENGTH, generator=generator())
    batch, mask, draws = inputs_of(actor, TRAJECTORIES, LENGTH), torch.ones(TRAJECTORIES, LENGTH).bool(), generator()

    def logits() -> torch.Tensor:
        return actor(batch, mask, actor.kernels(LENGTH), draws)[0]

    player = MADS4Actor(SIZE, AGENTS, ACTIONS, kind=kind, length=LENGTH, generator=generator()).eval()
    with torch.no_grad():
        one, before, folded = inputs_of(player, 1), player.blocks.initial_state(1), player.fold()
    train = updating(actor, parameter_groups(actor), logits)
    return (train, TRAJECTORIES * LENGTH), (lambda: player.step(one, before, folded), 1), n_parameters(actor)


def dt(context: int) -> tuple[Program, Program, Program, int]:
    """Training, acting with a cache, acting from the window, and the number of parameters."""
    model, player, draws = transformer(context), transformer(context), generator()
    shape = (WINDOWS[context], context)
    window = (
        torch.rand(shape, generator=draws),
        torch.randn(*shape, SIZE + AGENTS, generator=draws),
        torch.randint(ACTIONS, shape, generator=draws),
        torch.arange(context).expand(shape),
    )
    train = updating(model, decaying(model, 0.1), lambda: model(*window))
    now = window[0][:1, 0], window[1][:1, 0], window[2][:1, 0]
    cache, past = player.initial_cache(), player.initial_window(1)
    with torch.no_grad():
        for _ in range(context + 1):
            cache, past = player.step(*now, cache)[1], player.recompute(*now, past)[1]
    cached, anew = (lambda: player.step(*now, cache)), (lambda: player.recompute(*now, past))
    return (train, shape[0] * context), (cached, 1), (anew, 1), n_parameters(model)


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def cpu_seconds(work: Callable[[], object], calls: int) -> float:
    """CPU time of a call, the mean of several."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


def rates(programs: dict[str, Program], repeats: int, seconds: float) -> dict[str, float]:
    """The best rate of each program over `repeats` turns, of which each lasts about so many seconds."""
    calls = {name: max(1, round(seconds / cpu_seconds(work, 2))) for name, (work, _) in programs.items()}
    turns = [{name: cpu_seconds(work, calls[name]) for name, (work, _) in programs.items()} for _ in range(repeats)]
    return {name: amount / min(turn[name] for turn in turns) for name, (_, amount) in programs.items()}


def sequence(repeats: int) -> Iterable[dict]:
    """Training and acting of both kinds of S4 against contexts 20 and 100."""
    with one_thread():
        ours, peers = {kind: s4(kind) for kind in KINDS}, {f"context {c}": dt(c) for c in WINDOWS}
        train = {name: found[0] for name, found in (ours | peers).items()}
        act = {kind: found[1] for kind, found in ours.items()}
        act |= {f"{name}, cached": found[1] for name, found in peers.items()}
        act |= {f"{name}, recomputed": found[2] for name, found in peers.items()}
        trained = rates(train, repeats, seconds=0.3)
        with torch.inference_mode():
            acted = rates(act, 10 * repeats, seconds=0.01)  # short, so that some turns go undisturbed
    for kind in KINDS:
        case = f"MADS4 actor, {kind}"
        for what, quantity, found in (
            ("train", "steps of a sequence trained per CPU second", trained),
            ("act", "actions per CPU second, batch 1", acted),
        ):
            for peer in [name for name in found if name not in ours]:
                yield compared(case, quantity, found[kind], peer, found[peer], ASKED.get((what, kind, peer), ""))
        yield {"case": case, "quantity": "CPU ms of an action", "ours": f"{1e3 / acted[kind]:.3g}", "asked": "<= 0.5"}
        yield compared(case, "parameters", ours[kind][2], "context 20", peers["context 20"][3], "")
    yield {"case": "this group", "quantity": "load average at its end", "ours": f"{os.getloadavg()[0]:.2f}"}


def compared(case: str, quantity: str, ours: float, peer: str, theirs: float, asked: str) -> dict:
    return {
        "case": case,
        "quantity": quantity,
        "ours": f"{ours:.4g}",
        "peer": f"decision transformer, {peer}",
        "peer_value": f"{theirs:.4g}",
        "ratio": f"{ours / theirs:.3g}",
        "asked": asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns of a program; the best counts (default 9)")
    for row in sequence(parser.parse_args().repeats):
        ratio = f"  {row['ratio']} x {row['peer']} ({row['peer_value']})" if "ratio" in row else ""
        asked = f"  (asked {row['asked']})" if row.get("asked") else ""
        print(f"{row['case']}: {row['ours']} {row['quantity']}{ratio}{asked}", flush=True)


if __name__ == "__main__":
    main()
