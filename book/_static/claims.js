// The filters of the claims ledger. The claims are in the page; see fedmorl.embed.claims.
(function () {
  "use strict";
  const PICKED = ["paper", "verdict", "kind", "where"];
  const plural = (n) => `${n} claim${n === 1 ? "" : "s"}`;
  const spaced = (text) => text.toLowerCase().replace(/\s+/g, " ");

  class Ledger {
    constructor(root) {
      this.root = root;
      this.form = root.querySelector("form");
      this.said = this.form.querySelector("output");
      this.sections = [...root.querySelectorAll("section")];
      this.groups = [...root.querySelectorAll("details")].map((node) => this.group(node));
      this.total = this.groups.reduce((sum, group) => sum + group.rows.length, 0);
      this.places = [...this.form.elements.where.options];
      this.unfolded = null; // what was open before the first filter
      this.form.addEventListener("submit", (event) => event.preventDefault());
      this.form.addEventListener("input", () => this.update());
      this.form.addEventListener("reset", () => setTimeout(() => this.update()));
      window.addEventListener("hashchange", () => this.reveal());
      this.form.hidden = false;
      this.update();
      this.reveal();
    }

    group(node) {
      const { paper, where } = node.dataset, title = node.querySelector("caption").textContent;
      const rows = [...node.querySelectorAll("tbody tr")].map((row) => ({
        node: row, paper, where, ...row.dataset, text: spaced([title, row.id, ...[...row.cells].map((cell) => cell.textContent)].join(" ")),
      }));
      return { node, paper, where, rows, shown: node.querySelector(".fm-shown") };
    }

    // The places of the chosen paper, or of all; a choice that the paper does not have falls back to all.
    offerPlaces() {
      const select = this.form.elements.where, chosen = select.value, paper = this.form.elements.paper.value;
      const found = new Set(this.groups.filter((group) => !paper || group.paper === paper).map((group) => group.where));
      select.replaceChildren(...this.places.filter((option) => !option.value || found.has(option.value)));
      select.value = found.has(chosen) ? chosen : "";
    }

    update() {
      this.offerPlaces();
      const fields = this.form.elements, words = spaced(fields.words.value).split(" ").filter(Boolean);
      const picked = PICKED.map((name) => [name, fields[name].value]).filter(([, value]) => value);
      const active = words.length + picked.length > 0;
      const fits = (row) => picked.every(([name, value]) => row[name] === value) && words.every((word) => row.text.includes(word));
      if (active && !this.unfolded) this.unfolded = this.groups.filter((group) => group.node.open);
      let shown = 0;
      for (const group of this.groups) shown += this.show(group, group.rows.filter(fits), active);
      if (!active) this.unfolded = null;
      for (const section of this.sections) section.hidden = !section.querySelector("details:not([hidden])");
      this.said.textContent = active ? `${shown} of ${plural(this.total)}` : plural(this.total);
    }

    show(group, fitting, active) {
      const found = new Set(fitting), n = group.rows.length;
      for (const row of group.rows) row.node.hidden = !found.has(row);
      group.node.hidden = found.size === 0;
      if (active) group.node.open = found.size > 0;
      else if (this.unfolded) group.node.open = this.unfolded.includes(group);
      group.shown.textContent = found.size === n ? plural(n) : `${found.size} of ${plural(n)}`;
      return found.size;
    }

    // A link to one claim unfolds its place.
    reveal() {
      const row = location.hash.startsWith("#claim-") && document.getElementById(location.hash.slice(1));
      if (!row || !this.root.contains(row)) return;
      if (row.hidden) this.form.reset();
      setTimeout(() => {
        row.closest("details").open = true;
        row.scrollIntoView({ block: "center" });
      });
    }
  }

  function mount(root) {
    new Ledger(root);
    root.dataset.fmReady = "";
  }

  const mountAll = () => document.querySelectorAll('.fm-embed[data-fm="claims"]:not([data-fm-ready])').forEach(mount);
  mountAll();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
})();
