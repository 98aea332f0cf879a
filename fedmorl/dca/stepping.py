"""Many replications, one decision each: the compiled half of the environments."""

import numpy as np

from fedmorl.dca import kernels
from fedmorl.dca.compiled import compiled

RAW_DELAY_LIMIT_SLOTS = 12_400  # delay_term="raw": 100 busy periods (ours)
CHUNK_SLOTS = 1_000_000  # a step looks this far for the next decision before it looks again


@compiled
def step_batch(
    all_stations, channels, queues, all_heard, access_histogram, delay_histogram, log, trace, sizes, weights, scratch,
    agents, actions, first, alpha, raw_delay, observations, mask, rewards, durations, global_rewards, local_rewards,
):  # fmt: skip
    """Answer each replication's open decisions, run it to its next one, and fill the output arrays."""
    for b in range(channels.shape[0]):
        stations, ch = all_stations[b], channels[b]
        started, credited = ch.t, ch.reward_glob
        for a in range(agents.shape[0]):
            u = stations[agents[a]]
            u.action = actions[b, a] * u.may_decide
            local_rewards[b, a] = 0.0 if first else -delay_term(u, ch, raw_delay) * u.may_decide
        ch.answered = 0 if first else 1
        stopped = kernels.REACHED
        while stopped != kernels.DECIDE:
            stopped = kernels.advance(
                stations, ch, queues[b], all_heard[b], access_histogram, delay_histogram, log, trace, sizes, weights,
                scratch, ch.t + CHUNK_SLOTS,
            )  # fmt: skip
        durations[b] = ch.t - started
        global_rewards[b] = ch.reward_glob - credited
        for a in range(agents.shape[0]):
            u = stations[agents[a]]
            kernels.observe(u, agents[a], ch, stations.shape[0])
            mask[b, a] = u.may_decide == 1
            rewards[b, a] = global_rewards[b] + alpha * local_rewards[b, a]
            for k in range(observations.shape[2]):
                observations[b, a, k] = u.observation[k]


@compiled
def delay_term(u, ch, raw_delay):
    """d~ b~ of a station as it was observed at its decision (rule 10)."""
    if raw_delay:
        return min((ch.t - u.last_success) / RAW_DELAY_LIMIT_SLOTS, 1.0) * np.float64(u.observation[6])
    return np.float64(u.observation[5]) * np.float64(u.observation[6])
