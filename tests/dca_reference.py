"""The channel's rules once more, slot by slot, as plain as Python allows: an oracle for the kernels.

Nothing is shared with the package but the random streams, redone here on Python integers.
"""

import math

MASK = (1 << 64) - 1


def splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return x, z ^ (z >> 31)


class Stream:
    def __init__(self, seed, replication, station, purpose):
        key = 0
        for word in (seed, replication, station, purpose):
            key = splitmix(key ^ word)[1]
        self.s = []
        for _ in range(4):
            key, word = splitmix(key)
            self.s.append(word)

    def word(self):
        s = self.s
        rotated = ((s[1] * 5 & MASK) << 7 | (s[1] * 5 & MASK) >> 57) & MASK
        t = s[1] << 17 & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = (s[3] << 45 | s[3] >> 19) & MASK
        return rotated * 9 & MASK

    def backoff(self, cw):
        return ((self.word() >> 32) * (cw + 1)) >> 32

    def uniform(self):
        return (self.word() >> 11) * 2.0**-53

    def gap(self, kind, rate):
        return -math.log1p(-self.uniform()) / rate if kind == "Poisson" else 1 / rate


class Radio:
    def __init__(self, scenario, k, seed, replication):
        self.station, self.traffic = scenario.stations[k], scenario.station_traffic(k)
        self.kind, self.rate = type(self.traffic).__name__, getattr(self.traffic, "rate_per_slot", None)
        self.arrival, self.backoff, _, self.channel = (Stream(seed, replication, k, p) for p in range(4))
        self.cw, self.counter, self.defer, self.retries, self.hol = self.station.cw_min, 0, 0, 0, 0
        self.fifo, self.successes, self.collisions, self.errors = [], 0, 0, 0
        self.dropped, self.blocked, self.arrivals, self.access_delays, self.delays = 0, 0, 0, [], []
        self.next_arrival = math.inf
        self.joins = getattr(self.traffic, "start_slot", 0)
        self.leaves = getattr(self.traffic, "stop_slot", None) or math.inf
        self.present = self.joins == 0
        if self.kind == "Poisson":
            self.next_arrival = self.arrival.gap(self.kind, self.rate)
        elif self.kind == "ConstantRate":
            self.next_arrival = self.arrival.uniform() / self.rate

    @property
    def active(self):
        return self.present if self.kind == "Saturated" else bool(self.fifo)

    def draw(self):
        self.counter = self.backoff.backoff(self.cw)

    def take_arrivals(self, before, buffer):
        if 0 < self.joins <= before:
            self.present, self.hol, self.joins = True, self.joins, 0
            self.draw()
        while self.next_arrival < before:
            self.arrivals += 1
            if len(self.fifo) == buffer:
                self.blocked += 1
            else:
                self.fifo.append(self.next_arrival)
                if len(self.fifo) == 1:
                    self.retries, self.hol = 0, math.floor(self.next_arrival) + 1
                    self.draw()
            self.next_arrival += self.arrival.gap(self.kind, self.rate)

    def leave(self, end):
        """The head-of-line packet goes, delivered or dropped."""
        arrived = self.fifo.pop(0) if self.kind != "Saturated" else None
        self.present = end < self.leaves
        self.hol, self.retries, self.cw = end, 0, self.station.cw_min
        return arrived

    def succeed(self, end):
        self.successes += 1
        self.access_delays.append(end - self.hol)
        arrived = self.leave(end)
        if arrived is not None:
            self.delays.append(end - arrived)
        if self.active and self.station.eca_backoff_slots:
            self.counter = self.station.eca_backoff_slots
        elif self.active:
            self.draw()

    def fail(self, end, collided):
        self.collisions, self.errors = self.collisions + collided, self.errors + (not collided)
        self.retries += 1
        if self.station.retry_limit and self.retries >= self.station.retry_limit:
            self.dropped += 1
            self.leave(end)
        else:
            self.cw = min(2 * self.cw + 1, self.station.cw_max)
        if self.active:
            self.draw()


def reference_run(scenario, n_slots, seed=0, replication=0):
    """(radios, {"idle": slots, "success": ..., "collision": ..., "error": ..., "difs": ...}, busy periods).

    A busy period is (start slot, end slot, tuple of senders). Rule-based stations only, no warm-up.
    """
    radios = [Radio(scenario, k, seed, replication) for k in range(scenario.n_stations)]
    slots, busy = dict.fromkeys(("idle", "success", "collision", "error", "difs"), 0), []
    left, difs_left, label, senders = 0, 0, "idle", []
    for radio in radios:
        if radio.kind == "Saturated" and radio.present:
            radio.draw()
    for t in range(n_slots):
        if left == 0 and difs_left == 0:
            for radio in radios:
                radio.take_arrivals(t, scenario.buffer)
            senders = [k for k, r in enumerate(radios) if r.active and r.defer == 0 and r.counter == 0]
            if not senders:
                for radio in radios:
                    if radio.defer > 0:
                        radio.defer -= 1
                    elif radio.active:
                        radio.counter -= 1
                slots["idle"] += 1
                continue
            label = "success" if len(senders) == 1 else "collision"
            if label == "success" and (fer := radios[senders[0]].station.frame_error_rate) > 0:
                label = "error" if radios[senders[0]].channel.uniform() < fer else label
            left = scenario.failure_slots if label == "collision" else scenario.tx_slots
            busy.append((t, t + left, tuple(senders)))
            if scenario.countdown == "bianchi":
                for k, radio in enumerate(radios):
                    radio.counter -= radio.active and k not in senders
        if left > 0:
            slots[label] += 1
            left -= 1
            if left == 0:
                end_of_busy(scenario, radios, senders, label, t + 1)
                difs_left = scenario.difs_slots
        else:
            slots["difs"] += 1
            difs_left -= 1
    for radio in radios:
        radio.take_arrivals(n_slots, scenario.buffer)
    return radios, slots, busy


def end_of_busy(scenario, radios, senders, label, end):
    for radio in radios:
        radio.take_arrivals(end, scenario.buffer)
    for k, radio in enumerate(radios):
        if k in senders and label == "success":
            radio.succeed(end)
        elif k in senders:
            radio.fail(end, label == "collision")
        radio.defer = radio.station.aifs_slots - scenario.difs_slots
        if label != "success" and k not in senders:
            radio.defer += scenario.eifs_extra_slots
