// Charts on a canvas: one of throughput over time, and small ones that fit a row.
import { h, say } from "./dom.js";
import { clock, date } from "./format.js";

let colours = null;

// colour resolves a colour of the style sheet, which depends on the theme.
function colour(name) {
  if (!colours) colours = new Map();
  if (!colours.has(name)) {
    const probe = h("span", { class: `colour-${name}` });
    document.body.append(probe);
    colours.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return colours.get(name);
}

const all = new Set(); // weak references to charts, which a change of theme draws again

export function themeChanged() {
  colours = null;
  for (const ref of all) {
    const chart = ref.deref();
    if (chart) chart.draw();
    else all.delete(ref);
  }
}

const seen = new IntersectionObserver((entries) => {
  for (const e of entries) {
    e.target.visible = e.isIntersecting;
    if (e.isIntersecting) e.target.chart.draw();
  }
});
const sized = new ResizeObserver((entries) => {
  for (const e of entries) e.target.chart.draw();
});

// prepare sizes a canvas for its screen and clears it; null while it is not laid out.
function prepare(canvas) {
  const scale = Math.min(3, devicePixelRatio || 1);
  const w = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!w || !height) return null;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(w * scale);
    canvas.height = Math.round(height * scale);
  }
  const c = canvas.getContext("2d");
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.clearRect(0, 0, w, height);
  return { c, w, height };
}

// Spark is a line without axes: the shape of the last minute. The number beside it is its text.
export class Spark {
  #lines = [];
  constructor(...names) {
    this.names = names;
    this.canvas = h("canvas", { class: "spark", "aria-hidden": "true" });
    this.canvas.chart = this;
    this.canvas.visible = false;
    this.element = this.canvas;
    seen.observe(this.canvas);
    all.add(new WeakRef(this));
  }

  // set takes an array of values for each line, the newest last, and how many fill the width.
  set(lines, length) {
    this.#lines = lines;
    this.length = length;
    if (this.canvas.visible) this.draw();
  }

  draw() {
    if (!this.canvas.isConnected) return;
    const p = prepare(this.canvas);
    if (!p) return;
    const { c, w, height } = p;
    let top = 0;
    for (const line of this.#lines) for (const v of line) if (v > top) top = v;
    c.strokeStyle = colour("rule");
    c.beginPath();
    c.moveTo(0, height - 0.5);
    c.lineTo(w, height - 0.5);
    c.stroke();
    if (!top) return;
    this.#lines.forEach((line, i) => {
      const dx = w / Math.max(1, this.length - 1);
      const x0 = w - (line.length - 1) * dx;
      c.beginPath();
      line.forEach((v, j) => c.lineTo(x0 + j * dx, height - 1.5 - (v / top) * (height - 3)));
      c.strokeStyle = colour(this.names[i]);
      c.lineWidth = 1.25;
      c.lineJoin = "round";
      c.stroke();
      if (i === 0 && line.length > 1) {
        c.lineTo(w, height);
        c.lineTo(x0, height);
        c.globalAlpha = 0.13;
        c.fillStyle = colour(this.names[i]);
        c.fill();
        c.globalAlpha = 1;
      }
    });
  }
}

const left = 62; // room for the numbers of the axis
const bottom = 20;
const above = 8;

// nice is the next round number above n.
function nice(n) {
  const e = 10 ** Math.floor(Math.log10(n));
  for (const m of [1, 2, 4, 5, 10]) if (n <= m * e * 1.0001) return m * e;
  return 10 * e;
}

// Chart draws series {name, colour, format} over one span of time. What it shows is told in a sentence below it, too,
// which a screen reader finds; the cross-hair follows the pointer, and the arrow keys.
export class Chart {
  #series;
  #data = [];
  #start = 0;
  #step = 1;
  #length = 0;
  #at = -1;
  #told = 0;

  constructor({ label, series, format }) {
    this.#series = series;
    this.format = format;
    this.label = label;
    this.canvas = h("canvas", {
      class: "chart", role: "img", tabindex: "0", "aria-label": label,
      onpointermove: (e) => this.#point(e.offsetX),
      onpointerleave: () => this.#cross(-1),
      onblur: () => this.#cross(-1),
      onkeydown: (e) => this.#key(e),
    });
    this.canvas.chart = this;
    this.tip = h("div", { class: "tip", hidden: true });
    this.values = series.map(() => h("b", {}, "–"));
    this.legend = h("div", { class: "legend" }, series.map((s, i) => h("span", {}, h("i", { class: `swatch swatch-${s.colour}`, "aria-hidden": "true" }), s.name, " ", this.values[i])));
    this.text = h("p", { class: "chart-text" }, "No data yet.");
    this.element = h("div", { class: "chart-box" }, this.legend, h("div", { class: "chart-area" }, this.canvas, this.tip), this.text);
    sized.observe(this.canvas);
    all.add(new WeakRef(this));
  }

  // set takes an array of values for each series, which begin at start (ms) and have step seconds between them.
  // length is how many the width has: fewer are on the right.
  set(start, step, data, length = data[0].length) {
    this.#start = start;
    this.#step = step;
    this.#data = data;
    this.#length = Math.max(2, length);
    data.forEach((d, i) => say(this.values[i], d.length ? this.format(d.at(-1)) : "–"));
    this.#tell();
    this.draw();
  }

  #tell() {
    if (Date.now() - this.#told < 5000) return; // read aloud, it should not change each second
    const n = this.#data[0]?.length || 0;
    if (!n) return say(this.text, "No data yet.");
    this.#told = Date.now();
    const parts = this.#series.map((s, i) => {
      let top = 0;
      this.#data[i].forEach((v, j) => v > this.#data[i][top] && (top = j));
      return `${s.name}: at most ${this.format(this.#data[i][top])} at ${clock(this.#start + top * this.#step * 1000)}`;
    });
    say(this.text, parts.join("; ") + ".");
    this.canvas.setAttribute("aria-label", `${this.label}. ${this.text.textContent}`);
  }

  #x(j, w) {
    const n = this.#data[0].length;
    return left + ((this.#length - n + j) / (this.#length - 1)) * (w - left - 6);
  }

  #point(x) {
    const n = this.#data[0]?.length || 0;
    const w = this.canvas.clientWidth;
    const j = Math.round(((x - left) / (w - left - 6)) * (this.#length - 1)) - (this.#length - n);
    this.#cross(n && x >= left - 8 ? Math.max(0, Math.min(n - 1, j)) : -1);
  }

  #key(e) {
    const n = this.#data[0]?.length || 0;
    const to = { ArrowLeft: this.#at < 0 ? n - 1 : this.#at - 1, ArrowRight: this.#at < 0 ? n - 1 : this.#at + 1, Home: 0, End: n - 1 }[e.key];
    if (to === undefined || !n) return;
    e.preventDefault();
    this.#cross(Math.max(0, Math.min(n - 1, to)));
  }

  #cross(j) {
    this.#at = j;
    this.draw();
    this.tip.hidden = j < 0;
    if (j < 0) return;
    const t = this.#start + j * this.#step * 1000;
    const when = this.#step >= 600 ? `${date(t)} ${clock(t).slice(0, 5)}` : clock(t);
    this.tip.replaceChildren(h("b", {}, when), ...this.#series.map((s, i) => h("span", {}, h("i", { class: `swatch swatch-${s.colour}` }), `${s.name} ${this.format(this.#data[i][j])}`)));
    const w = this.canvas.clientWidth;
    const x = this.#x(j, w);
    this.tip.style.left = `${Math.max(0, x > w / 2 ? x - this.tip.offsetWidth - 10 : x + 10)}px`;
  }

  draw() {
    const p = prepare(this.canvas);
    if (!p) return;
    const { c, w, height } = p;
    const base = height - bottom;
    let top = 0;
    for (const d of this.#data) for (const v of d) if (v > top) top = v;
    top = top > 0 ? nice(top) : 1;
    const y = (v) => base - (v / top) * (base - above);
    c.font = "11px " + getComputedStyle(this.canvas).fontFamily;
    c.textBaseline = "middle";
    c.lineWidth = 1;
    for (let i = 0; i <= 4; i += 2) {
      const v = (top * i) / 4;
      const yy = Math.round(y(v)) + 0.5;
      c.strokeStyle = colour("rule");
      c.beginPath();
      c.moveTo(left, yy);
      c.lineTo(w - 6, yy);
      c.stroke();
      c.fillStyle = colour("muted");
      c.textAlign = "right";
      if (i > 0 || top !== 1) c.fillText(i === 0 ? "0" : this.format(v), left - 8, yy);
      else c.fillText("0", left - 8, yy);
    }
    const n = this.#data[0]?.length || 0;
    if (!n) return;
    const end = this.#start + (n - 1) * this.#step * 1000;
    const begin = end - (this.#length - 1) * this.#step * 1000;
    c.fillStyle = colour("muted");
    c.textBaseline = "alphabetic";
    const labels = w > 520 ? 5 : 3;
    for (let i = 0; i < labels; i++) {
      const t = begin + ((end - begin) * i) / (labels - 1);
      c.textAlign = i === 0 ? "left" : i === labels - 1 ? "right" : "center";
      const text = end - begin > 36 * 3_600_000 ? date(t).slice(5) + " " + clock(t).slice(0, 5) : clock(t).slice(0, end - begin > 1_200_000 ? 5 : 8);
      c.fillText(text, left + ((w - left - 6) * i) / (labels - 1), height - 4);
    }
    this.#series.forEach((s, i) => {
      const d = this.#data[i];
      c.beginPath();
      d.forEach((v, j) => c.lineTo(this.#x(j, w), y(v)));
      c.strokeStyle = colour(s.colour);
      c.lineWidth = 1.5;
      c.lineJoin = "round";
      c.stroke();
      if (s.fill && n > 1) {
        c.lineTo(this.#x(n - 1, w), base);
        c.lineTo(this.#x(0, w), base);
        c.globalAlpha = 0.12;
        c.fillStyle = colour(s.colour);
        c.fill();
        c.globalAlpha = 1;
      }
    });
    if (this.#at >= 0 && this.#at < n) {
      const x = Math.round(this.#x(this.#at, w)) + 0.5;
      c.strokeStyle = colour("muted");
      c.lineWidth = 1;
      c.beginPath();
      c.moveTo(x, above);
      c.lineTo(x, base);
      c.stroke();
      this.#series.forEach((s, i) => {
        c.fillStyle = colour(s.colour);
        c.beginPath();
        c.arc(x, y(this.#data[i][this.#at]), 3, 0, 7);
        c.fill();
      });
    }
  }
}
