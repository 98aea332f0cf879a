"""The live explorer for JupyterLab: controls, a readout, two charts; the simulator answers each move.

A move starts a new *generation*. Work of an older generation stops at the next chunk (some milliseconds), so the
last move always wins. Points are simulated in one worker thread, without Python's lock, while the kernel's event
loop stays free for the next move. The point that was asked for comes first and is drawn at once; the curves around
it fill in behind.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets

from fedmorl.dca import PRESETS
from fedmorl.explore import readout
from fedmorl.explore.chart import STYLE
from fedmorl.explore.configuration import Configuration
from fedmorl.explore.learned import offered
from fedmorl.explore.points import METRICS, Result, compute
from fedmorl.explore.sendings import Sending, who_sends

N_AXIS = (1, 2, 3, 5, 7, 10, 14, 20, 30, 50)
CW_AXIS = tuple(2**k - 1 for k in range(1, 11))  # 1 to 1023, each one more than twice the last
RUNS = 5
WARMUP_SLOTS = 100_000
HORIZONS = {200_000: "1.8 s", 1_000_000: "9 s", 10_000_000: "90 s", 100_000_000: "15 min"}
OWN = "own window"
REDRAW_S = 0.15  # while curves fill in; the asked-for point never waits for it
MAX_KEPT = 5_000  # points; a few megabytes


@dataclass(frozen=True)
class Point:
    """What is simulated, and for how long each run is measured."""

    n_stations: int
    configuration: Configuration
    n_slots: int


class Explorer(widgets.VBox):
    """Number of stations, window, count-down and load in; throughput, collisions, delay and fairness out.

    Parameters
    ----------
    n_stations : int, 1 to 50
    preset : str
        The first configuration: ac_be, ac_vo, ac_vi, csma_ca, csma_eca, or one of the learned policies whose files
        are in the project (`fedmorl.explore.learned`).
    n_slots : int
        Slots that each of the five runs of a point measures; one of `HORIZONS`.
    seed : int

    Attributes
    ----------
    n_stations, preset, cw_min, cw_max, countdown, load_kind, load, horizon, metric : widgets
        The controls; setting `.value` is a move.
    """

    def __init__(self, n_stations: int = 10, preset: str = "ac_be", n_slots: int = 1_000_000, seed: int = 0) -> None:
        self.learned = offered()
        known = [*PRESETS, *self.learned]
        if preset not in known:
            raise ValueError(f"preset must be one of {', '.join(map(repr, known))}; got {preset!r}")
        if isinstance(n_stations, bool) or n_stations not in range(1, N_AXIS[-1] + 1):
            raise ValueError(f"n_stations must be an integer from 1 to {N_AXIS[-1]}; got {n_stations!r}")
        if n_slots not in HORIZONS:
            raise ValueError(f"n_slots must be one of {', '.join(map(str, HORIZONS))}; got {n_slots!r}")
        self.seed, self.generation = seed, 0
        self.pinned: Configuration | None = None
        self._kept: dict[Point, Result] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._task: asyncio.Task | None = None
        self._warm, self._syncing, self._share = False, False, 0.0
        self._make_controls(n_stations, preset, n_slots)
        super().__init__(self._rows())
        self.add_class("fm-live")
        self._listen()
        self._moved()

    # -- what is asked for --------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """What the controls say; the first call for a learned policy reads its file."""
        load = None if self.load_kind.value == "saturated" else self.load.value
        if self.preset.value in self.learned:
            return Configuration.of(self.learned[self.preset.value].station, load=load)
        eca = PRESETS[self.preset.value].eca_backoff_slots if self.preset.value in PRESETS else None
        return Configuration(self.cw_min.value, self.cw_max.value, eca, self.countdown.value, load)

    @property
    def result(self) -> Result | None:
        """The point that the controls ask for, once it is computed."""
        return self._kept.get(self._point(self.configuration, self.n_stations.value))

    async def finished(self) -> None:
        """Wait until nothing is under way."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def pin(self, _: Any = None) -> None:
        """Keep the current configuration as A, beside whatever comes; a second click lets it go."""
        self.pinned = self.configuration if self.pinned is None else None
        self._pin_button.description = "Pin as A" if self.pinned is None else "Unpin A"
        self._pin_button.icon = "thumb-tack" if self.pinned is None else "times"
        self._moved()

    def stop(self, _: Any = None) -> None:
        """End the work under way; what is drawn stays."""
        self.generation += 1
        self._say("Stopped. Any move starts again.")
        self._rest()

    def _point(self, configuration: Configuration, n_stations: int) -> Point:
        return Point(n_stations, configuration, self.horizon.value)

    def _focus(self) -> list[Point]:
        return [self._point(c, self.n_stations.value) for c in (self.configuration, self.pinned) if c is not None]

    def _wanted(self) -> list[Point]:
        """All points to show, the asked-for first; then the middle of a curve before its ends."""
        around: list[Point] = []
        for c in (self.configuration, self.pinned):
            if c is not None:
                around += [self._point(c, n) for n in N_AXIS]
                around += [self._point(at_window(c, cw), self.n_stations.value) for cw in _axis_of(c)]
        return list(dict.fromkeys([*self._focus(), *around]))

    # -- the work -----------------------------------------------------------------------------------------

    def _moved(self, _: Any = None) -> None:
        """A control changed: start a new generation, in the notebook's event loop or, without one, here and now."""
        if self._syncing:
            return
        self.generation += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._refresh(self.generation))
        else:
            self._task = loop.create_task(self._refresh(self.generation))

    async def _refresh(self, generation: int) -> None:
        try:
            await self._warm_up()
            await self._work(generation)
        except Exception as error:  # a task has nobody to raise to: say it where the reader looks
            self._say(f"{type(error).__name__}: {error}", failed=True)
            self._rest()

    async def _warm_up(self) -> None:
        """Load or compile the kernels, or read a policy, once; the first move would pay for it."""
        loop = asyncio.get_running_loop()
        if not self._warm:
            self._say("Compiling the simulator; this happens once.")
            self._busy(0, 1)
            await loop.run_in_executor(self._pool, compile_kernels)
            self._warm = True
        learned = self.learned.get(self.preset.value)
        if learned and not learned.is_read:
            self._say("Reading the policy; this happens once.")
            await loop.run_in_executor(self._pool, lambda: learned.station)

    async def _work(self, generation: int) -> None:
        missing = [point for point in self._wanted() if point not in self._kept]
        waiting = set(self._focus()) & set(missing)
        drawn = 0.0
        if not waiting:
            self._draw()
        for done, point in enumerate(missing):
            result = await self._simulated(point, generation, done, len(missing))
            if result is None or generation != self.generation:
                return
            self._keep(point, result)
            waiting.discard(point)
            if not waiting and time.monotonic() - drawn > REDRAW_S:
                self._draw()
                drawn = time.monotonic()
        if generation == self.generation:
            self._draw()
            self._say(f"{RUNS} runs of {HORIZONS[self.horizon.value]} each; ± is half of a 95 % interval.")
            self._rest()

    async def _simulated(self, point: Point, generation: int, done: int, total: int) -> Result | None:
        """One point from the worker thread; the progress bar moves while it is under way."""
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self._simulate, point, lambda: generation == self.generation
        )
        while not (await asyncio.wait({future}, timeout=REDRAW_S))[0]:
            if generation == self.generation:
                self._busy(done + self._share, total)
        return future.result()

    def _simulate(self, point: Point, wanted: Callable[[], bool]) -> Result | None:
        def carry_on(share: float) -> bool:
            self._share = share
            return wanted()

        return compute(
            point.n_stations,
            point.configuration,
            n_slots=WARMUP_SLOTS + point.n_slots,
            n_replications=RUNS,
            seed=self.seed,
            warmup_slots=WARMUP_SLOTS,
            carry_on=carry_on,
        )

    def _keep(self, point: Point, result: Result) -> None:
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[point] = result

    # -- what is shown ------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Write the readout and the charts anew, as text; the browser draws."""
        shown = [self._kept[point] for point in self._focus()]
        self._table.value = readout.table(shown, self.generation)
        charts = readout.charts(shown, self.metric.value, [list(self._over_n()), list(self._over_cw())])
        self._chart.value = charts + readout.strips(shown, [self._sendings(point) for point in self._focus()])

    def _sendings(self, point: Point) -> Sequence[Sending]:
        return who_sends(point.n_stations, point.configuration, seed=self.seed, warmup_slots=WARMUP_SLOTS)

    def _over_n(self) -> Iterator[list[tuple[float, Result]]]:
        counts = sorted({*N_AXIS, self.n_stations.value})
        for c in filter(None, (self.configuration, self.pinned)):
            found = ((n, self._kept.get(self._point(c, n))) for n in counts)
            yield [(n, result) for n, result in found if result]

    def _over_cw(self) -> Iterator[list[tuple[float, Result]]]:
        for c in filter(None, (self.configuration, self.pinned)):
            points = {cw: self._point(at_window(c, cw), self.n_stations.value) for cw in _axis_of(c)}
            yield [(cw, self._kept[point]) for cw, point in points.items() if point in self._kept]

    def _say(self, text: str, failed: bool = False) -> None:
        self._status.value = readout.status(text, failed)

    def _busy(self, done: float, total: int) -> None:
        self._progress.max, self._progress.value = 1000 * total, int(1000 * done)
        self._progress.layout.visibility = "visible"
        self._stop_button.disabled = False

    def _rest(self) -> None:
        self._progress.layout.visibility = "hidden"
        self._stop_button.disabled = True

    # -- the controls -------------------------------------------------------------------------------------

    def _make_controls(self, n_stations: int, preset: str, n_slots: int) -> None:
        wide, label = widgets.Layout(width="auto"), {"description_width": "6.5rem"}
        look: dict[str, Any] = {"layout": wide, "style": label}
        sizes: dict[str, Any] = {"options": CW_AXIS, "continuous_update": False, **look}
        first = PRESETS.get(preset, PRESETS["ac_be"])
        self.n_stations = widgets.IntSlider(
            n_stations, 1, N_AXIS[-1], description="Stations N", continuous_update=False, **look
        )
        names = [(f"{s.name} ({s.cw_min}–{s.cw_max})", key) for key, s in PRESETS.items()]
        names += [(learned.label, key) for key, learned in self.learned.items()] + [(OWN, OWN)]
        self.preset = widgets.Dropdown(options=names, value=preset, description="Access", **look)
        self.cw_min = widgets.SelectionSlider(value=first.cw_min, description="CWmin", **sizes)
        self.cw_max = widgets.SelectionSlider(value=first.cw_max, description="CWmax", **sizes)
        rules = [("frozen (802.11)", "frozen"), ("Bianchi", "bianchi")]
        self.countdown = widgets.Dropdown(options=rules, description="Count-down", **look)
        self.load_kind = widgets.Dropdown(options=["saturated", "Poisson"], description="Load", **look)
        self.load = widgets.FloatSlider(
            0.6, min=0.05, max=1.5, step=0.05, description="Offered G", disabled=True, continuous_update=False, **look
        )
        runs = [(f"{RUNS} × {text}", slots) for slots, text in HORIZONS.items()]
        self.horizon = widgets.Dropdown(options=runs, value=n_slots, description="Channel time", **look)
        curves = [(name + (f" [{unit}]" if unit else ""), key) for key, (name, unit, _) in METRICS.items()]
        self.metric = widgets.Dropdown(options=curves, description="Charts show", **look)
        self._pin_button = widgets.Button(description="Pin as A", icon="thumb-tack")
        self._stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self._progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="8rem", height="0.6rem"))
        self._status, self._table, self._chart = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._allow_windows()

    def _rows(self) -> list[widgets.Widget]:
        columns = widgets.Layout(
            display="grid", grid_template_columns="repeat(auto-fit, minmax(17rem, 1fr))", grid_gap="0 1.6rem"
        )
        groups = [
            [self.preset, self.cw_min, self.cw_max],
            [self.countdown, self.load_kind, self.load],
            [self.horizon, self.metric],
        ]
        controls = widgets.Box([widgets.VBox(group) for group in groups], layout=columns)
        line = widgets.Layout(align_items="center", flex_flow="row wrap", grid_gap="0 0.8rem")
        actions = widgets.Box([self._pin_button, self._stop_button, self._status, self._progress], layout=line)
        return [widgets.HTML(STYLE), self.n_stations, controls, actions, self._table, self._chart]

    def _listen(self) -> None:
        self.preset.observe(self._preset_moved, "value")
        self.cw_min.observe(self._window_moved, "value")
        self.cw_max.observe(self._window_moved, "value")
        self.load_kind.observe(self._load_moved, "value")
        for control in (self.n_stations, self.countdown, self.load, self.horizon):
            control.observe(self._moved, "value")
        self.metric.observe(self._moved, "value")
        self._pin_button.on_click(self.pin)
        self._stop_button.on_click(self.stop)

    def _preset_moved(self, change: dict) -> None:
        self._allow_windows()
        if change["new"] in PRESETS and not self._syncing:
            station = PRESETS[change["new"]]
            self._set({self.cw_min: station.cw_min, self.cw_max: station.cw_max})
        self._moved()

    def _allow_windows(self) -> None:
        """A policy has neither a window nor a count-down."""
        for control in (self.cw_min, self.cw_max, self.countdown):
            control.disabled = self.preset.value in self.learned

    def _window_moved(self, change: dict) -> None:
        """Keep CWmin <= CWmax, and call the window by its preset's name if it has one."""
        if self._syncing:
            return
        low, high = self.cw_min.value, self.cw_max.value
        if low > high:
            self._set({self.cw_min: change["new"], self.cw_max: change["new"]})
        name = next(
            (k for k, s in PRESETS.items() if (s.cw_min, s.cw_max) == (self.cw_min.value, self.cw_max.value)), OWN
        )
        self._set({self.preset: name})
        self._moved()

    def _load_moved(self, change: dict) -> None:
        self.load.disabled = change["new"] == "saturated"
        self._moved()

    def _set(self, values: dict[Any, Any]) -> None:
        """Set controls without that counting as moves."""
        self._syncing = True
        try:
            for control, value in values.items():
                control.value = value
        finally:
            self._syncing = False


def at_window(configuration: Configuration, cw_min: int) -> Configuration:
    """The configuration with another CWmin; a fixed window stays fixed, else CWmax stays, or gives way; a policy
    has none."""
    if configuration.policy is not None:
        return configuration
    fixed = configuration.cw_min == configuration.cw_max
    return replace(configuration, cw_min=cw_min, cw_max=cw_min if fixed else max(cw_min, configuration.cw_max))


def _axis_of(configuration: Configuration) -> tuple[int, ...]:
    """Windows of the cut; a policy has none and is the same at both ends."""
    return CW_AXIS if configuration.policy is None else (CW_AXIS[0], CW_AXIS[-1])


def compile_kernels() -> None:
    """Run every kernel that the explorer uses for a moment."""
    for load in (None, 0.5):
        compute(2, Configuration(load=load), n_slots=110_000, n_replications=2, warmup_slots=10_000)
    who_sends(2, Configuration())
