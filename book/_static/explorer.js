// The kernel-free explorer: reads the grid that a notebook computed. No network; see fedmorl.embed.explorer.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const LETTERS = ["A", "B", "C", "D"];
  const DASH = { A: "", B: "7 3", C: "2 3", D: "9 3 2 3" };
  const MARK = ["circle", "square", "diamond", "triangle"];
  const BOUND_DASH = ["12 5", "1 4", "12 4 2 4"];
  const OWN = "own";

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
  const options = (pairs) => pairs.map(([value, label]) => html("option", { value }, label));
  const unique = (values) => [...new Set(values)].sort((a, b) => a - b);

  // As many decimals as the interval's second digit; without an interval, four figures.
  function decimals(point) {
    const [mean, half] = point;
    if (half) return Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(half))));
    return mean ? Math.min(4, Math.max(0, 3 - Math.floor(Math.log10(Math.abs(mean))))) : 0;
  }

  function ticks(low, high, about) {
    const rough = (high - low) / about || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough) * power;
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(10));
    return found;
  }

  class Explorer {
    constructor(root, grid) {
      Object.assign(this, { root, grid, axes: grid.axes, width: 0, metric: 0 });
      this.n = this.axes.n.indexOf(grid.start.n);
      this.sides = grid.start.compare.map((id) => ({ config: this.axes.config.findIndex((c) => c.id === id), countdown: 0, load: 0 }));
      this.build();
    }

    build() {
      const id = this.root.id, last = this.axes.n.length - 1;
      this.range = html("input", { type: "range", id: id + "-n", name: "n", min: 0, max: last, step: 1, value: this.n });
      this.range.addEventListener("input", () => { this.n = +this.range.value; this.update(); });
      this.count = html("output", { for: id + "-n" });
      this.area = html("div", { class: "fm-sides" });
      this.add = html("button", { type: "button", class: "fm-add" }, "Add a configuration");
      this.add.addEventListener("click", () => this.addSide());
      this.table = html("table", { class: "fm-readout" });
      this.box = html("div", { class: "fm-scroll" }, this.table);
      this.say = html("output", { class: "fm-sr", "aria-live": "polite" });
      this.element = html("div", {},
        html("div", { class: "fm-count-row" }, html("label", { for: id + "-n" }, "Number of stations N"), this.range, this.count),
        this.area, this.add, this.box, this.say, this.chartBlock(id),
        html("p", { class: "fm-note" }, [this.grid.provenance, "A dash marks what was not computed."].filter(Boolean).join(" ")));
      this.buildSides();
    }

    chartBlock(id) {
      this.pick = html("select", { id: id + "-m", name: "metric" }, ...options(this.grid.metrics.map((m, k) => [k, m.label + (m.unit ? ` [${m.unit}]` : "")])));
      this.pick.addEventListener("change", () => { this.metric = +this.pick.value; this.update(); });
      this.title = svg("title", { id: id + "-t" });
      this.desc = svg("desc", { id: id + "-d" });
      this.canvas = svg("g", {});
      this.plot = svg("svg", { class: "fm-plot", role: "img", "aria-labelledby": `${id}-t ${id}-d` }, this.title, this.desc, this.canvas);
      this.plot.addEventListener("click", (event) => this.clicked(event));
      this.legend = html("ul", { class: "fm-legend" });
      return html("div", { class: "fm-chart" },
        html("div", { class: "fm-chart-head" }, html("label", { for: id + "-m" }, "Curve of", this.pick)), this.plot, this.legend);
    }

    // --- one configuration: a fieldset of selects

    buildSides() {
      this.area.replaceChildren(...this.sides.map((side, k) => this.fieldset(side, k)));
      this.add.hidden = this.sides.length >= LETTERS.length;
      this.sides.forEach((_, k) => this.syncSide(k));
    }

    fieldset(side, k) {
      const letter = LETTERS[k], config = this.axes.config, windowed = config.filter(hasWindow);
      const named = config.map((c, i) => [i, c.label]).filter(([, label]) => label);
      const access = config.some((c) => !c.label) ? [...named, [OWN, "own window"]] : named;
      const select = (name, label, pairs, wide, chosen) => {
        const id = `${this.root.id}-${name}-${letter}`, node = html("select", { id, name: `${name}-${letter}` }, ...options(pairs));
        node.addEventListener("change", () => { chosen(node.value); this.syncSide(k); this.update(); });
        return html("label", { for: id, class: wide ? "fm-wide" : "" }, label, node);
      };
      const parts = [
        select("config", "Access", access, true, (v) => { if (v === OWN) this.ownWindow(side); else side.config = +v; }),
        select("cw_min", "CWmin", unique(windowed.map((c) => c.cw_min)).map((v) => [v, v]), false, (v) => this.window(side, +v, config[side.config].cw_max)),
        select("cw_max", "CWmax", unique(windowed.map((c) => c.cw_max)).map((v) => [v, v]), false, (v) => this.window(side, config[side.config].cw_min, +v)),
        select("countdown", "Count-down", this.axes.countdown.map((c, i) => [i, c.label]), false, (v) => { side.countdown = +v; }),
        select("load", "Load", this.axes.load.map((name, i) => [i, name]), false, (v) => { side.load = +v; }),
      ];
      if (k > 1) parts.push(this.removeButton(k));
      return html("fieldset", { class: "fm-side-" + letter }, html("legend", {}, letter), ...parts);
    }

    removeButton(k) {
      const node = html("button", { type: "button" }, "Remove " + LETTERS[k]);
      node.addEventListener("click", () => { this.sides.splice(k, 1); this.buildSides(); this.update(); this.add.focus(); });
      return node;
    }

    addSide() {
      const used = new Set(this.sides.map((side) => side.config)), last = this.sides[this.sides.length - 1];
      const free = this.axes.config.findIndex((c, i) => c.label && !used.has(i));
      this.sides.push({ ...last, config: free < 0 ? last.config : free });
      this.buildSides();
      this.update();
      this.area.lastElementChild.querySelector("select").focus();
    }

    // The window asked for, or the nearest one there is: same CWmin first, then the closest CWmax.
    window(side, cwMin, cwMax) {
      const far = (c) => !hasWindow(c) ? Infinity : 1e6 * Math.abs(Math.log2((c.cw_min + 1) / (cwMin + 1))) + Math.abs(Math.log2((c.cw_max + 1) / (cwMax + 1)));
      let best = 0;
      this.axes.config.forEach((c, i) => { if (far(c) < far(this.axes.config[best])) best = i; });
      side.config = best;
    }

    ownWindow(side) {
      const here = [this.axes.config[side.config], ...this.axes.config].find(hasWindow), own = this.axes.config.map((c, i) => ({ ...c, i })).filter((c) => !c.label);
      const far = (c) => Math.abs(Math.log2((c.cw_min + 1) / (here.cw_min + 1))) + Math.abs(Math.log2((c.cw_max + 1) / (here.cw_max + 1)));
      side.config = own.reduce((a, b) => (far(b) < far(a) ? b : a)).i;
    }

    computed(side) {
      return this.grid.values.some((metric) => metric[side.config][side.countdown][side.load].some(Boolean));
    }

    // Show what is chosen, and offer only what was computed: a CWmax for this CWmin, a load for this count-down. A
    // learned policy has neither window nor count-down.
    syncSide(k) {
      const counts = this.axes.countdown.map((_, countdown) => this.axes.load.some((_, load) => this.computed({ ...this.sides[k], countdown, load })));
      if (!counts[this.sides[k].countdown] && counts.includes(true)) this.sides[k].countdown = counts.indexOf(true);
      const loads = this.axes.load.map((_, load) => this.computed({ ...this.sides[k], load }));
      if (!loads[this.sides[k].load] && loads.includes(true)) this.sides[k].load = loads.indexOf(true);
      const side = this.sides[k], config = this.axes.config[side.config], field = this.area.children[k];
      const set = (name, value, disabled) => Object.assign(field.querySelector(`[name="${name}-${LETTERS[k]}"]`), { value, disabled: !!disabled });
      const wide = new Set(this.axes.config.filter((c) => c.cw_min === config.cw_min).map((c) => String(c.cw_max)));
      for (const option of field.querySelectorAll(`[name="cw_max-${LETTERS[k]}"] option`)) option.disabled = !wide.has(option.value);
      for (const option of field.querySelectorAll(`[name="countdown-${LETTERS[k]}"] option`)) option.disabled = !counts[+option.value];
      for (const option of field.querySelectorAll(`[name="load-${LETTERS[k]}"] option`)) option.disabled = !loads[+option.value];
      set("config", config.label ? side.config : OWN);
      set("cw_min", config.cw_min, !hasWindow(config));
      set("cw_max", config.cw_max, !hasWindow(config));
      set("countdown", hasWindow(config) ? side.countdown : null, !hasWindow(config));
      set("load", side.load);
    }

    // --- reading the grid

    point(metric, side, n) {
      return this.grid.values[metric][side.config][side.countdown][side.load][n] ?? null; // a curve without points is empty
    }

    bounds() {
      const metric = this.grid.metrics[this.metric].id;
      return this.grid.bounds.filter((b) => b.metric === metric && this.fits(b));
    }

    fits(bound) {
      return this.sides.some((s) => (!bound.load || bound.load === this.axes.load[s.load]) &&
        (!bound.countdown || bound.countdown === this.axes.countdown[s.countdown].id));
    }

    name(side) {
      const c = this.axes.config[side.config];
      return c.label || `CW ${c.cw_min}–${c.cw_max}`;
    }

    // --- showing

    update() {
      const n = this.axes.n[this.n];
      this.count.textContent = n;
      this.range.setAttribute("aria-valuetext", `${n} station${n === 1 ? "" : "s"}`);
      Object.assign(this.root.dataset, { n, metric: this.grid.metrics[this.metric].id });
      this.fillTable(n);
      this.draw();
      this.speak(n);
    }

    fillTable(n) {
      const reference = this.grid.bounds.filter((b) => b.id === "optimum" && this.fits(b));
      const head = this.sides.map((side, k) => html("th", { scope: "col", class: "fm-side-" + LETTERS[k] }, `${LETTERS[k]} · ${this.name(side)}`));
      if (reference.length) head.push(html("th", { scope: "col" }, "optimum"));
      const rows = this.grid.metrics.map((metric, m) => {
        const cells = this.sides.map((side, k) => this.cell(metric, m, side, k));
        const best = reference.find((b) => b.metric === metric.id);
        if (reference.length) cells.push(this.referenceCell(best));
        const label = html("th", { scope: "row" }, metric.label + (metric.unit ? ` [${metric.unit}]` : ""));
        if (metric.hint) label.append(html("small", {}, metric.hint));
        return html("tr", {}, label, ...cells);
      });
      const corner = html("th", { scope: "col" }, html("span", { class: "fm-sr" }, "Metric"));
      this.table.replaceChildren(html("caption", {}, `At N = ${n}: mean ± half of the 95 % interval${reference.length ? "; optimum: the p-persistent one" : ""}`),
        html("thead", {}, html("tr", {}, corner, ...head)), html("tbody", {}, ...rows));
      this.reach();
    }

    // A table wider than its box scrolls; then the keyboard must reach the box.
    reach() {
      const wide = this.box.scrollWidth > this.box.clientWidth;
      for (const [key, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "Readout"]]) {
        if (wide) this.box.setAttribute(key, value);
        else this.box.removeAttribute(key);
      }
    }

    cell(metric, m, side, k) {
      const point = this.point(m, side, this.n), config = this.axes.config[side.config];
      const facts = { "data-series": LETTERS[k], "data-metric": metric.id, "data-config": config.id, "data-n": this.axes.n[this.n],
        "data-countdown": this.axes.countdown[side.countdown].id, "data-load": this.axes.load[side.load] };
      if (!point) return html("td", facts, html("span", { title: "not computed" }, "–"));
      const digits = decimals(point), half = point[1] === null ? "" : html("small", {}, ` ± ${point[1].toFixed(digits)}`);
      return html("td", { ...facts, "data-mean": point[0], "data-half-width": point[1] ?? "" }, point[0].toFixed(digits), half);
    }

    referenceCell(bound) {
      const value = bound ? bound.values[this.n] : null;
      if (value === null) return html("td", { class: "fm-ref" }, "");
      return html("td", { class: "fm-ref", "data-series": bound.id, "data-metric": bound.metric, "data-mean": value }, value.toFixed(decimals([value, null])));
    }

    speak(n) {
      const metric = this.grid.metrics[this.metric];
      const said = this.sides.map((side, k) => {
        const point = this.point(this.metric, side, this.n);
        return `${LETTERS[k]}, ${this.name(side)}: ${point ? point[0].toFixed(decimals(point)) + (metric.unit ? " " + metric.unit : "") : "not computed"}`;
      });
      this.say.textContent = `${n} stations, ${metric.label.toLowerCase()}. ${said.join("; ")}.`;
      this.title.textContent = `${metric.label} against the number of stations`;
      this.desc.textContent = `${this.say.textContent} ${this.bounds().map((b) => `${b.label}: ${b.values[this.n] ?? "none"}`).join("; ")}`;
    }

    // --- the chart

    resize() {
      const width = Math.floor(this.element.clientWidth);
      if (!width || width === this.width) return;
      this.width = width;
      this.reach();
      this.draw();
    }

    frame() {
      const points = this.sides.flatMap((side) => this.axes.n.map((_, i) => this.point(this.metric, side, i)).filter(Boolean));
      const values = [...points.flatMap(([mean, half]) => [mean - (half || 0), mean + (half || 0)]), ...this.bounds().flatMap((b) => b.values.filter((v) => v !== null))];
      let low = values.length ? Math.min(...values) : 0, high = values.length ? Math.max(...values) : 1;
      if (low >= 0 && low < 0.5 * high) low = 0; // a zero where it costs little room
      const pad = (high - low || Math.abs(high) || 1) * 0.06;
      low = low === 0 ? 0 : low - pad;
      high += pad;
      const height = this.width < 520 ? 250 : 310, box = { left: 52, right: this.width - 26, top: 14, bottom: height - 42 };
      const first = this.axes.n[0], span = this.axes.n[this.axes.n.length - 1] - first || 1;
      return { ...box, height, low, high,
        x: (n) => box.left + ((n - first) / span) * (box.right - box.left),
        y: (v) => box.bottom - ((v - low) / (high - low)) * (box.bottom - box.top) };
    }

    draw() {
      if (!this.width) return;
      const f = (this.f = this.frame());
      for (const [key, value] of [["viewBox", `0 0 ${this.width} ${f.height}`], ["width", this.width], ["height", f.height]]) this.plot.setAttribute(key, value);
      const here = f.x(this.axes.n[this.n]);
      this.canvas.replaceChildren(...this.axisParts(f),
        svg("line", { class: "fm-here", x1: here, x2: here, y1: f.top, y2: f.bottom }),
        ...this.bounds().map((b, k) => this.boundCurve(f, b, k)),
        ...this.sides.map((side, k) => this.curve(f, side, k)), ...this.tags(f));
      this.legend.replaceChildren(...this.sides.map((side, k) => this.key(k, `${LETTERS[k]} · ${this.fullName(side)}`)), ...this.bounds().map((b, k) => this.boundKey(k, b)));
    }

    fullName(side) {
      const parts = [this.name(side)];
      if (this.axes.countdown.length > 1 && hasWindow(this.axes.config[side.config])) parts.push(this.axes.countdown[side.countdown].label);
      if (this.axes.load.length > 1) parts.push(this.axes.load[side.load]);
      return parts.join(", ");
    }

    axisParts(f) {
      const metric = this.grid.metrics[this.metric], parts = [];
      const marks = ticks(f.low, f.high, 5), digits = Math.max(0, ...marks.map((v) => (String(v).split(".")[1] || "").length));
      for (const v of marks) {
        parts.push(svg("line", { class: "fm-grid", x1: f.left, x2: f.right, y1: f.y(v), y2: f.y(v) }),
          svg("text", { class: "fm-tick", x: f.left - 7, y: f.y(v) + 4, "text-anchor": "end" }, v.toFixed(Math.min(digits, 6))));
      }
      let free = -Infinity;
      for (const n of this.axes.n) {
        const x = f.x(n);
        parts.push(svg("line", { class: "fm-grid", x1: x, x2: x, y1: f.bottom, y2: f.bottom + 4 }));
        if (x < free) continue;
        parts.push(svg("text", { class: "fm-tick", x, y: f.bottom + 17, "text-anchor": "middle" }, String(n)));
        free = x + 24;
      }
      parts.push(svg("text", { class: "fm-tick fm-axis", x: (f.left + f.right) / 2, y: f.bottom + 36, "text-anchor": "middle" }, "number of stations N"));
      this.plot.setAttribute("data-unit", metric.unit);
      return parts;
    }

    // Runs of neighbouring points: a missing point breaks the line.
    runs(values) {
      const runs = [[]];
      values.forEach((v, i) => (v === null ? runs.push([]) : runs[runs.length - 1].push([this.axes.n[i], v])));
      return runs.filter((run) => run.length);
    }

    curve(f, side, k) {
      const letter = LETTERS[k], points = this.axes.n.map((_, i) => this.point(this.metric, side, i));
      const at = ([n, v]) => `${f.x(n).toFixed(1)},${f.y(v).toFixed(1)}`;
      const group = svg("g", { class: "fm-side-" + letter });
      for (const run of this.runs(points)) {
        const upper = run.map(([n, [m, h]]) => at([n, m + (h || 0)])), lower = run.map(([n, [m, h]]) => at([n, m - (h || 0)])).reverse();
        group.append(svg("polygon", { class: "fm-band", points: [...upper, ...lower].join(" ") }),
          svg("polyline", { class: "fm-curve", "stroke-dasharray": DASH[letter], points: run.map(([n, [m]]) => at([n, m])).join(" ") }));
        for (const [n, [m]] of run) group.append(mark(MARK[k], f.x(n), f.y(m), n === this.axes.n[this.n] ? 6 : this.axes.n.length > 24 ? 0 : 3.2));
      }
      return group;
    }

    // The letters at the right end of the curves, moved apart where they would meet.
    tags(f) {
      const ends = this.sides.map((side, k) => {
        const last = this.runs(this.axes.n.map((_, i) => this.point(this.metric, side, i))).pop();
        return last && { k, y: f.y(last[last.length - 1][1][0]) + 4 };
      }).filter(Boolean).sort((a, b) => a.y - b.y);
      ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 14); });
      return ends.map(({ k, y }) => svg("g", { class: "fm-side-" + LETTERS[k] }, svg("text", { class: "fm-tag", x: f.right + 10, y }, LETTERS[k])));
    }

    boundCurve(f, bound, k) {
      const lines = this.runs(bound.values).map((run) => svg("polyline", { class: "fm-bound", "stroke-dasharray": BOUND_DASH[k % 3], "stroke-linecap": k % 3 === 1 ? "round" : "butt", points: run.map(([n, v]) => `${f.x(n).toFixed(1)},${f.y(v).toFixed(1)}`).join(" ") }));
      return svg("g", { "data-bound": bound.id }, ...lines);
    }

    key(k, label) {
      const line = svg("svg", { width: 34, height: 12, "aria-hidden": "true" }, svg("line", { class: "fm-curve", x1: 1, x2: 33, y1: 6, y2: 6, "stroke-dasharray": DASH[LETTERS[k]] }), mark(MARK[k], 17, 6, 4));
      return html("li", { class: "fm-side-" + LETTERS[k] }, line, label);
    }

    boundKey(k, bound) {
      const value = bound.values[this.n], label = bound.label + (value === null ? "" : `: ${value.toFixed(decimals([value, null]))}`);
      const line = svg("svg", { width: 34, height: 12, "aria-hidden": "true" }, svg("line", { class: "fm-bound", x1: 1, x2: 33, y1: 6, y2: 6, "stroke-dasharray": BOUND_DASH[k % 3], "stroke-linecap": k % 3 === 1 ? "round" : "butt" }));
      return html("li", { "data-bound": bound.id, "data-mean": value ?? "" }, line, label);
    }

    // A click in the chart goes to the nearest N; the slider does the same by keyboard.
    clicked(event) {
      const x = event.clientX - this.plot.getBoundingClientRect().left;
      const far = (i) => Math.abs(this.f.x(this.axes.n[i]) - x);
      this.n = this.axes.n.reduce((best, _, i) => (far(i) < far(best) ? i : best), 0);
      this.range.value = this.n;
      this.update();
    }
  }

  function hasWindow(config) {
    return config.cw_min !== null;
  }

  function mark(kind, x, y, r) {
    if (kind === "circle") return svg("circle", { class: "fm-dot", cx: x, cy: y, r });
    if (kind === "square") return svg("rect", { class: "fm-dot", x: x - r, y: y - r, width: 2 * r, height: 2 * r });
    const corners = kind === "diamond" ? [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]] : [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]];
    return svg("polygon", { class: "fm-dot", points: corners.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" ") });
  }

  function mount(root) {
    const explorer = new Explorer(root, JSON.parse(root.querySelector('script[type="application/json"]').textContent));
    root.querySelector(".fm-still").remove();
    root.append(explorer.element);
    root.dataset.fmReady = "";
    explorer.update();
    explorer.resize();
    new ResizeObserver(() => explorer.resize()).observe(explorer.element);
  }

  const mountAll = () => document.querySelectorAll('.fm-embed[data-fm="explorer"]:not([data-fm-ready])').forEach(mount);
  mountAll();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
})();
