"""Measure the batched federation engine beside the loop, in one run and by CPU time; and what a thousand clients take.

    python benchmarks/federated.py                    the rows, on standard output

One step is one Adam step of every client, drawing its batch included; a round has 20 steps, on one thread. The two
engines alternate and the best of `--repeats` counts, because the clock of a shared machine wanders. The model is
FedMORL's in size: seven observed numbers and two actions in, two hidden layers of 64, and nine numbers out (logits of
four outcomes, a residual for each, a reward).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from fedmorl.federated import Engine, FitConfig, InProcessBatched, InProcessLoop, ModelClient, run_federation

STEPS = 20
CROWD = 1000


def loss(module: nn.Module, x: torch.Tensor, outcome: torch.Tensor, d2lt: torch.Tensor, reward: torch.Tensor):
    """Outcome by cross-entropy, next D2LT as a residual of the outcome, reward by regression."""
    out = module(x)  # (B, 9)
    residual = out[:, 4:8].gather(1, outcome[:, None])[:, 0]
    return cross_entropy(out[:, :4], outcome) + mse_loss(residual, d2lt) + mse_loss(out[:, 8], reward)


def clients_of(k: int, n: int, hidden: int) -> list[ModelClient]:
    """K clients with logs of n random transitions."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Linear(9, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 9)
    )  # fmt: skip
    logs = (
        [torch.randn(n, 9, generator=generator), torch.randint(4, (n,), generator=generator)]
        + [torch.randn(n, generator=generator) for _ in range(2)]
        for _ in range(k)
    )
    return [ModelClient(i, module, loss, log) for i, log in enumerate(logs)]


def steps_per_second(engine: Engine, clients: Sequence[ModelClient], config: FitConfig) -> float:
    """Of one round."""
    state = clients[0].state()
    start = time.process_time()
    result = engine.run_round(1, state, config, range(len(clients)))
    seconds = time.process_time() - start
    assert len(result.updates) == len(clients) and not result.failures
    return config.local_steps / seconds


def federated(repeats: int) -> Iterable[dict]:
    """Steps a second of both engines over clients and batch sizes, and the memory of a thousand clients."""
    cells = [(k, batch, 64) for k in (4, 14, 64) for batch in (32, 64, 256)]
    for k, batch, hidden in [*cells, (14, 64, 128)]:
        clients = clients_of(k, 2000, hidden)
        config = FitConfig(local_steps=STEPS, batch_size=batch, seed=0)
        engines = InProcessBatched(clients), InProcessLoop(clients)
        for engine in engines:
            steps_per_second(engine, clients, config)  # traces, and touches its memory
        pairs = [[steps_per_second(engine, clients, config) for engine in engines] for _ in range(repeats)]
        ours, loop = (max(speeds) for speeds in zip(*pairs, strict=True))
        yield {
            "case": f"{k} clients, batch {batch}, 2 x {hidden} units",
            "quantity": "federated Adam steps per CPU second",
            "ours": f"{ours:.4g}",
            "peer": "loop over clients",
            "peer_value": f"{loop:.4g}",
            "ratio": f"{ours / loop:.3g}",
            "asked": ">= 3" if (k, batch, hidden) == (14, 64, 64) else "",
        }
    command = [sys.executable, __file__, "--crowd"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    yield {
        "case": f"{CROWD} clients, batch 64, 2 x 64 units, 1000 transitions each",
        "quantity": "GiB of memory at the most, torch included",
        "ours": f"{json.loads(printed)['gib']:.4g}",
        "asked": "<= 2",
    }


def crowd() -> float:
    """Most GiB of this process after two rounds of the crowd."""
    import resource

    clients = clients_of(CROWD, 1000, 64)
    history = run_federation(clients, rounds=2, fit_config=FitConfig(local_steps=STEPS, batch_size=64), seed=0)
    assert len(history.rounds[-1].used) == CROWD
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds an engine, of which the best counts (default 9)")
    parser.add_argument("--crowd", action="store_true", help="only print the memory that a thousand clients take")
    chosen = parser.parse_args()
    if chosen.crowd:
        print(json.dumps({"gib": crowd()}))
        return
    for row in federated(chosen.repeats):
        ratio = f"  {row['ratio']} x {row['peer']} ({row['peer_value']})" if "ratio" in row else ""
        asked = f"  (asked {row['asked']})" if row["asked"] else ""
        print(f"{row['case']}: {row['ours']} {row['quantity']}{ratio}{asked}", flush=True)


if __name__ == "__main__":
    main()
