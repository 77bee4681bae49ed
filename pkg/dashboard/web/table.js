// Tables whose rows stay what they are while their numbers change.
import { h, say, swap, put, empty } from "./dom.js";
import { count } from "./format.js";

const step = 200; // rows that are shown, and added when one asks for more
const most = 1000; // rows that are ever in the document

// Table shows rows that have a key each. Its columns are {label, text(row)} or {label, build(td, current)}, where build
// makes what is in the cell once and returns a func that takes each newer row; current() is the newest. A column may have
// class ("num", "grow"), title(row), and sort(row), a value to sort by: numbers begin with the largest.
export class Table {
  #columns;
  #key;
  #rows = new Map(); // by key: {tr, cells, row}
  #body = h("tbody", { role: "rowgroup" });
  #more = h("div", { class: "more" });
  #blank = h("div", { class: "blank" });
  #shown = step;
  #sort = null; // column
  #down = true;
  #all = [];
  #held = false;
  #empty;
  #emptyFor = undefined;
  #heads = [];

  constructor({ caption, columns, key, sort = null, down = true, blank }) {
    this.#columns = columns;
    this.#key = key;
    this.#empty = blank;
    this.#sort = columns.find((c) => c.label === sort) || null;
    this.#down = down;
    const head = h("tr", { role: "row" }, columns.map((c) => this.#head(c)));
    this.element = h("div", { class: "table" },
      h("table", { role: "table" },
        h("caption", { class: "unseen" }, caption),
        h("thead", { role: "rowgroup" }, head),
        this.#body),
      this.#blank, this.#more);
    swap(this.#blank, h("p", { class: "loading" }, "Loading…"));
    // What one is about to press must not move away.
    this.#body.addEventListener("pointerenter", () => (this.#held = true));
    this.#body.addEventListener("pointerleave", () => (this.#held = false));
  }

  #head(c) {
    const th = h("th", { role: "columnheader", scope: "col", class: c.class });
    if (c.sort) {
      put(th, [h("button", { type: "button", class: "sort", onclick: () => this.#order(c) }, c.label)]);
      this.#heads.push([c, th]);
    } else if (c.hidden) put(th, [h("span", { class: "unseen" }, c.label)]);
    else put(th, [c.label]);
    this.#mark();
    return th;
  }

  #mark() {
    for (const [c, th] of this.#heads) {
      if (c === this.#sort) th.setAttribute("aria-sort", this.#down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  }

  #order(c) {
    if (this.#sort === c) this.#down = !this.#down;
    else {
      this.#sort = c;
      this.#down = this.#all.length > 0 && typeof c.sort(this.#all[0]) === "number";
    }
    this.#mark();
    this.#held = false;
    this.#draw(true);
  }

  // update shows rows, those of all. What it is given belongs to it.
  update(rows) {
    this.#all = rows;
    this.#draw(false);
  }

  #draw(anew) {
    let rows = this.#all;
    if (this.#sort) {
      const value = this.#sort.sort;
      const sign = this.#down ? -1 : 1;
      rows = rows
        .map((row) => [value(row), row])
        .sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0))
        .map(([, row]) => row);
    }
    const total = rows.length;
    rows = rows.slice(0, this.#shown);
    const keys = new Set(rows.map(this.#key));
    const stays = !anew && (this.#held || this.#body.contains(document.activeElement));
    for (const [key, r] of this.#rows) {
      if (keys.has(key)) continue;
      if (r.tr.contains(document.activeElement)) this.#focusBeside(r.tr);
      r.tr.remove();
      this.#rows.delete(key);
    }
    let cursor = this.#body.firstChild;
    for (const row of rows) {
      const key = this.#key(row);
      let r = this.#rows.get(key);
      const isNew = !r;
      if (isNew) {
        r = this.#make(row);
        this.#rows.set(key, r);
      } else r.row = row;
      for (const update of r.cells) update(row);
      if (r.tr === cursor) cursor = cursor.nextSibling;
      else if (isNew || !stays || !this.#sort) this.#body.insertBefore(r.tr, cursor);
    }
    if (total === 0) {
      const e = this.#empty ? this.#empty() : "Nothing here.";
      const kind = typeof e === "string" ? e : e.textContent;
      if (this.#emptyFor !== kind) swap(this.#blank, typeof e === "string" ? empty(e) : e);
      this.#emptyFor = kind;
    } else if (this.#emptyFor !== "") {
      swap(this.#blank);
      this.#emptyFor = "";
    }
    this.#rest(total, rows.length);
    this.element.querySelector("table").hidden = total === 0;
  }

  #rest(total, shown) {
    const kind = total > shown ? `${total} ${shown}` : "";
    if (this.#more.dataset.kind === kind) return;
    const had = this.#more.contains(document.activeElement);
    this.#more.dataset.kind = kind;
    if (!kind) return swap(this.#more);
    swap(this.#more, h("span", {}, `${count(shown)} of ${count(total)} are shown.`),
      shown < most
        ? h("button", { type: "button", class: "small", onclick: () => { this.#shown = Math.min(most, this.#shown + step); this.#draw(true); } }, `Show ${step} more`)
        : h("span", {}, "Filter to find the others."));
    if (had) this.#more.querySelector("button")?.focus();
  }

  #focusBeside(tr) {
    const next = tr.nextElementSibling || tr.previousElementSibling;
    (next?.querySelector("a, button") || document.querySelector("main h1"))?.focus();
  }

  #make(row) {
    const r = { tr: h("tr", { role: "row" }), cells: [], row };
    const current = () => r.row;
    for (const c of this.#columns) {
      const td = h("td", { role: "cell", class: c.class, "data-label": c.hidden ? null : c.label });
      if (c.build) {
        const update = c.build(td, current);
        if (update) r.cells.push(update);
      } else r.cells.push((row) => say(td, c.text(row)));
      if (c.title) r.cells.push((row) => { const t = c.title(row); if (td.title !== t) td.title = t; });
      r.tr.append(td);
    }
    return r;
  }
}
