// The timeline player: a recorded trace, shown phase by phase. No kernel, no network; see fedmorl.embed.timeline.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const BUSY = new Set(["success", "collision", "error"]);
  const WORD = { success: "✓ success", collision: "✕ collision", error: "! error" };
  const SPEEDS = [["slow", 1], ["normal", 2.5], ["fast", 6], ["fastest", 16]]; // steps a second
  const TOP = 24, BOTTOM = 24;

  function make(space, name, attributes, children) {
    const node = space ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...(children || []));
    return node;
  }
  const html = (name, attributes, ...children) => make(false, name, attributes, children);
  const svg = (name, attributes, ...children) => make(true, name, attributes, children);
  const text = (x, y, words, attributes) => svg("text", { x, y, "text-anchor": "middle", ...attributes }, String(words));

  function columnWidth(step, narrow) {
    if (BUSY.has(step.kind)) return narrow ? 92 : 96;
    if (step.kind === "difs") return 38;
    return step.end - step.slot > 1 ? 64 : 26;
  }

  // Running totals of slots per kind, so that a jump anywhere knows the shares up to there.
  function totals(steps) {
    const sum = { idle: 0, success: 0, collision: 0, error: 0, difs: 0 };
    return steps.map((step) => {
      sum[step.kind] += step.end - step.slot;
      return { ...sum };
    });
  }

  function mount(root) {
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const player = new Player(root, data);
    root.querySelector(".fm-still").remove();
    root.append(player.element);
    root.dataset.fmReady = "";
    new ResizeObserver(() => player.resize()).observe(player.element);
    player.show(0);
  }

  class Player {
    constructor(root, data) {
      Object.assign(this, { root, data, steps: data.steps, at: 0, timer: 0, width: 0 });
      this.totals = totals(data.steps);
      this.widest = Math.max(...data.steps.flatMap((s) => [...s.cw, ...(s.after ? s.after.cw : [])].map((c) => c || 0)));
      this.firstSlot = data.steps[0].slot;
      this.lastSlot = data.steps[data.steps.length - 1].end;
      this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
      this.build();
    }

    build() {
      const id = this.root.id;
      this.title = svg("title", { id: id + "-t" }, `${this.data.title}, ${this.data.kinds.length} stations`);
      this.desc = svg("desc", { id: id + "-d" });
      this.canvas = svg("g", {});
      this.picture = svg("svg", { role: "img", "aria-labelledby": `${id}-t ${id}-d`, "font-size": 13 }, this.title, this.desc, patterns(id), this.canvas);
      this.stage = html("div", { class: "fm-stage", tabindex: 0, role: "group", "aria-label": "Timeline player. Space plays or pauses, the arrow keys step, Home and End jump." }, this.picture);
      this.say = html("p", { class: "fm-say", "aria-live": "polite", "aria-atomic": "true" });
      this.strip = svg("svg", { "aria-hidden": "true", height: 18 });
      this.shares = html("p", { class: "fm-shares" });
      this.element = html("div", { class: "fm-player" }, this.stage, this.say, this.controls(id),
        html("div", { class: "fm-true" }, this.shares, this.strip), html("p", { class: "fm-note" }, this.note()));
      this.stage.addEventListener("keydown", (event) => this.key(event));
    }

    controls(id) {
      const button = (label, name, action) => {
        const node = html("button", { type: "button", class: name }, label);
        node.addEventListener("click", action);
        return node;
      };
      this.play = button("▶ Play", "fm-play", () => this.toggle());
      this.back = button("‹ Back", "fm-back", () => this.step(-1));
      this.next = button("Step ›", "fm-next", () => this.step(1));
      this.range = html("input", { type: "range", id: id + "-r", min: 0, max: this.steps.length - 1, step: 1, value: 0 });
      this.range.addEventListener("input", () => { this.pause(); this.show(+this.range.value); });
      this.range.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); this.toggle(); } });
      this.place = html("output", { for: id + "-r" });
      this.speed = html("select", { id: id + "-s" }, ...SPEEDS.map(([name, rate]) => html("option", { value: rate }, name)));
      this.speed.value = "2.5";
      this.speed.addEventListener("change", () => { if (this.timer) { this.halt(); this.run(); } });
      return html("div", { class: "fm-bar" }, this.back, this.play, this.next,
        html("label", { for: id + "-s" }, "Speed", this.speed),
        html("label", { class: "fm-seek", for: id + "-r" }, "Step", this.range, this.place));
    }

    note() {
      const held = this.data.countdown === "bianchi" ? "During a busy period the others count once." : "During a busy period the others hold their counter.";
      return "A number is a station's counter: it falls by one in each idle slot, and at 0 the station sends. " + held +
        " The bar under a station is its window CW, filled up to the counter. Busy periods are cut short at the slanted lines; the strip is to scale.";
    }

    // --- moving

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
      if (event.key === " ") this.toggle();
      else if (event.key in moves) this.step(moves[event.key]);
      else return;
      event.preventDefault();
      event.stopPropagation();
    }

    step(by) {
      this.pause();
      this.show(this.at + by);
    }

    toggle() {
      if (this.timer) return this.pause();
      if (this.at === this.steps.length - 1) this.show(0);
      this.say.setAttribute("aria-live", "off"); // a running player would talk without end
      this.play.textContent = "❚❚ Pause";
      this.root.dataset.playing = "";
      this.run();
    }

    run() {
      this.timer = window.setInterval(() => {
        this.show(this.at + 1);
        if (this.at === this.steps.length - 1) this.pause();
      }, 1000 / +this.speed.value);
    }

    halt() {
      window.clearInterval(this.timer);
      this.timer = 0;
    }

    pause() {
      if (!this.timer) return;
      this.halt();
      this.say.setAttribute("aria-live", "polite");
      this.play.textContent = "▶ Play";
      delete this.root.dataset.playing;
    }

    show(at) {
      const before = this.at, step = this.steps[(this.at = Math.max(0, Math.min(at, this.steps.length - 1)))];
      this.range.value = this.at;
      this.range.setAttribute("aria-valuetext", `step ${this.at + 1} of ${this.steps.length}, slot ${step.slot}`);
      this.place.textContent = `${this.at + 1} of ${this.steps.length}`;
      this.back.disabled = this.at === 0;
      this.next.disabled = this.at === this.steps.length - 1;
      this.say.textContent = this.desc.textContent = step.text;
      Object.assign(this.root.dataset, { step: this.at, slot: step.slot, kind: step.kind, counters: JSON.stringify(step.counters), cw: JSON.stringify(step.cw) });
      this.shares.replaceChildren(...this.shareWords());
      this.draw(this.at === before + 1);
    }

    shareWords() {
      const sum = this.totals[this.at], end = this.steps[this.at].end, all = end - this.firstSlot;
      const words = ["idle", "success", "collision", "error", "difs"].filter((k) => k !== "error" || sum.error)
        .flatMap((k) => [`${k === "difs" ? "DIFS" : k} `, html("b", {}, `${((100 * sum[k]) / all).toFixed(1)} %`), " · "]);
      return [`Time so far, slots ${this.firstSlot}–${end - 1}: `, ...words.slice(0, -1)];
    }

    // --- drawing

    resize() {
      const width = Math.floor(this.element.clientWidth);
      if (!width || width === this.width) return;
      this.width = width;
      this.narrow = width < 520;
      this.tight = this.narrow || this.data.kinds.some((kind) => kind.length > 6); // CW on a line of its own
      this.left = this.narrow ? 94 : 150;
      this.drawStrip();
      this.draw(false);
    }

    draw(forward) {
      if (!this.width) return;
      const n = this.data.kinds.length, row = 46, height = TOP + n * row + BOTTOM;
      for (const [key, value] of [["viewBox", `0 0 ${this.width} ${height}`], ["width", this.width], ["height", height]]) this.picture.setAttribute(key, value);
      const place = this.layout();
      const columns = svg("g", { class: "fm-columns" }, ...place.shown.map((k) => this.column(k, place.x[k], row)));
      const rows = Array.from({ length: n + 1 }, (_, i) => svg("line", { class: "fm-rule", x1: 0, x2: this.width, y1: TOP + i * row, y2: TOP + i * row }));
      const inside = svg("g", { "clip-path": `url(#${this.root.id}-clip)` }, columns);
      this.canvas.replaceChildren(this.clip(height), ...rows, inside, ...this.axis(place, TOP + n * row + 16), ...this.data.kinds.map((_, i) => this.label(i, TOP + i * row)));
      if (forward && place.moved && this.timer && +this.speed.value < 5 && !this.calm.matches) {
        columns.animate([{ transform: `translateX(${place.moved}px)` }, { transform: "none" }], { duration: 160, easing: "ease-out" });
      }
      this.markStrip();
    }

    // The step shown stands at two thirds of the width once there are enough steps before it.
    layout() {
      const wide = (k) => columnWidth(this.steps[k], this.narrow), area = this.width - this.left;
      let x = 0, here = 0;
      for (let k = 0; k < this.at; k++) here += wide(k);
      const shift = Math.max(0, here + wide(this.at) - Math.round(area * 0.68));
      const place = { x: {}, shown: [], moved: 0 };
      if (shift && this.at) place.moved = Math.min(shift, wide(this.at));
      for (let k = 0; k < this.steps.length && x - shift < area; x += wide(k++)) {
        if (x + wide(k) - shift <= 0) continue;
        place.x[k] = this.left + x - shift;
        place.shown.push(k);
      }
      return place;
    }

    clip(height) {
      return svg("clipPath", { id: this.root.id + "-clip" }, svg("rect", { x: this.left - 2, y: 0, width: this.width - this.left + 2, height }));
    }

    column(k, x, row) {
      const step = this.steps[k], wide = columnWidth(step, this.narrow), n = step.counters.length, high = n * row;
      const group = svg("g", k > this.at ? { class: "fm-later" } : {});
      if (step.kind === "difs") group.append(svg("rect", { class: "fm-difs", x, y: TOP, width: wide, height: high }));
      if (k === this.at) group.append(svg("rect", { class: "fm-now", x: x + 1, y: TOP - 1, width: wide - 2, height: high + 2, rx: 4 }));
      step.counters.forEach((counter, i) => group.append(...this.cell(step, k, i, counter, x, TOP + i * row, wide, row)));
      if (BUSY.has(step.kind) || step.end - step.slot > 1 && step.kind === "idle") group.append(...breakMark(x + wide - 15, TOP, high));
      const head = this.head(step, this.steps[k - 1]);
      if (head) group.append(text(x + wide / 2, 15, head, { class: "fm-muted", "font-size": 11 }));
      return group;
    }

    head(step, before) {
      const length = step.end - step.slot;
      if (step.kind === "difs") return "DIFS";
      if (BUSY.has(step.kind)) return `busy, ${length}`;
      return length > 1 ? `idle, ${length}` : before && before.kind === "idle" ? "" : "idle";
    }

    cell(step, k, i, counter, x, y, wide, row) {
      const middle = x + wide / 2, base = y + row / 2 + 5;
      if (counter === null) return [text(middle, base, "–", { class: "fm-muted" })];
      if (!BUSY.has(step.kind)) {
        const before = this.steps[k - 1], drew = step.kind === "difs" && before && before.senders && before.senders.includes(i);
        const waits = step.wait && step.wait[i];
        return [text(middle, base, waits ? `(${counter})` : counter, { class: drew ? "fm-new" : waits ? "fm-muted" : "", "font-size": 14 })];
      }
      if (step.senders.includes(i)) {
        const box = { x: x + 3, y: y + 6, width: wide - 6, height: row - 12, rx: 4 };
        const parts = [svg("rect", { ...box, class: "fm-" + step.kind })];
        if (step.kind !== "success") parts.push(svg("rect", { ...box, fill: `url(#${this.root.id}-${step.kind})` }));
        return [...parts, text(middle - 5, base, WORD[step.kind], { class: "fm-on", "font-size": 12 })];
      }
      const held = this.data.countdown === "bianchi" ? `${counter} → ${step.after.counters[i]}` : counter;
      const gap = 8 + 4 * String(held).length;
      return [svg("line", { class: "fm-hold", x1: x + 6, x2: middle - 5 - gap, y1: base - 5, y2: base - 5 }),
        svg("line", { class: "fm-hold", x1: middle - 5 + gap, x2: x + wide - 6, y1: base - 5, y2: base - 5 }),
        text(middle - 5, base, held, { class: "fm-muted", "font-size": 14 })];
    }

    label(i, y) {
      const step = this.steps[this.at], kind = this.data.kinds[i], after = step.after && step.senders.includes(i) ? step.after.cw[i] : step.cw[i];
      const cw = step.cw[i], counter = step.counters[i], full = this.left - 12;
      const name = kind ? `${i + 1} ${kind}` : `Station ${i + 1}`, tight = this.tight;
      const parts = [svg("text", { x: 0, y: y + (tight ? 15 : 19), "font-weight": 600 }, name.length > 11 ? name.slice(0, 10) + "…" : name)];
      if (cw === null) return svg("g", {}, ...parts, svg("text", { x: 0, y: y + 36, class: "fm-muted", "font-size": 12 }, "no packet"));
      const size = (c) => Math.max(3, (full * (c + 1)) / (this.widest + 1));
      const words = after !== null && after !== cw ? `CW ${cw} → ${after}` : `CW ${cw}`;
      parts.push(svg("text", { x: tight ? 0 : full, y: y + (tight ? 29 : 19), "text-anchor": tight ? "start" : "end", "font-size": 12, class: after !== cw ? "fm-new" : "fm-muted" }, words));
      const top = y + (tight ? 34 : 28);
      parts.push(svg("rect", { class: "fm-window", x: 0.5, y: top + 0.5, width: size(after ?? cw), height: 8, rx: 2 }));
      if (counter > 0) parts.push(svg("rect", { class: "fm-count", x: 0.5, y: top + 0.5, width: (size(cw) * counter) / (cw + 1), height: 8, rx: 2 }));
      return svg("g", {}, ...parts);
    }

    axis(place, y) {
      const parts = [svg("text", { x: this.left - 8, y: y + 3, class: "fm-muted", "font-size": 11, "text-anchor": "end" }, "slot")];
      let free = this.left - 2;
      for (const k of place.shown) {
        const step = this.steps[k], before = this.steps[k - 1], x = place.x[k], words = String(step.slot);
        const starts = !before || BUSY.has(step.kind) || before.kind !== step.kind;
        if (step.kind === "difs" || !starts || x < free) continue;
        parts.push(svg("line", { class: "fm-rule", x1: x, x2: x, y1: y - 16, y2: y - 10 }),
          svg("text", { x, y: y + 3, class: "fm-muted", "font-size": 11 }, words));
        free = x + 7 * words.length + 10;
      }
      return parts;
    }

    // The whole trace at its true scale.
    drawStrip() {
      const scale = (slot) => ((slot - this.firstSlot) / (this.lastSlot - this.firstSlot)) * this.width;
      this.strip.setAttribute("viewBox", `0 0 ${this.width} 18`);
      this.strip.setAttribute("width", this.width);
      const bars = this.steps.filter((s) => BUSY.has(s.kind)).flatMap((s) => {
        const box = { x: scale(s.slot).toFixed(2), width: Math.max(0.5, scale(s.end) - scale(s.slot)).toFixed(2), y: 4, height: 10 };
        return [svg("rect", { ...box, class: "fm-" + s.kind }), ...(s.kind === "success" ? [] : [svg("rect", { ...box, fill: `url(#${this.root.id}-${s.kind})` })])];
      });
      this.veil = svg("rect", { y: 4, height: 10, fill: "var(--fm-ground)", "fill-opacity": 0.7 });
      this.pointer = svg("rect", { y: 0, height: 18, class: "fm-count" });
      this.strip.replaceChildren(svg("rect", { class: "fm-idle", x: 0, y: 4, width: this.width, height: 10 }), ...bars, this.veil, this.pointer);
      this.scale = scale;
    }

    markStrip() {
      const step = this.steps[this.at], from = this.scale(step.slot), to = this.scale(step.end);
      this.veil.setAttribute("x", to);
      this.veil.setAttribute("width", Math.max(0, this.width - to));
      this.pointer.setAttribute("x", Math.max(0, Math.min(to - 2, this.width - 2)));
      this.pointer.setAttribute("width", 2);
      this.strip.dataset.from = from;
    }
  }

  function breakMark(x, y, high) {
    const line = (dx, name) => svg("line", { class: name, x1: x + dx + 2, x2: x + dx - 2, y1: y, y2: y + high });
    return [line(0, "fm-break"), line(-2.5, "fm-break-edge"), line(2.5, "fm-break-edge")];
  }

  // Failed busy periods are hatched too: colour alone says nothing.
  function patterns(id) {
    const hatch = (kind, turn) => svg("pattern", { id: `${id}-${kind}`, width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})` },
      svg("line", { class: "fm-hatch", x1: 0, x2: 0, y1: 0, y2: 8 }));
    return svg("defs", {}, hatch("collision", 45), hatch("error", -45));
  }

  const mountAll = () => document.querySelectorAll('.fm-embed[data-fm="timeline"]:not([data-fm-ready])').forEach(mount);
  mountAll();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
})();
