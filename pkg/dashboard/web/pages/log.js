// Log: what the relay says, as it says it.
import { h, say, empty } from "../dom.js";
import { Table } from "../table.js";
import { clock, moment, count, part } from "../format.js";

const kept = 2000; // lines in memory
const shown = 300; // rows
const ranks = { DEBUG: 0, INFO: 1, WARN: 2, ERROR: 3 };
const tones = { DEBUG: "idle", INFO: "idle", WARN: "warn", ERROR: "bad" };

export function log(scope) {
  const problem = scope.problem();
  let list = []; // newest first
  let waiting = [];
  let paused = false;
  let loaded = false;
  let n = 0;
  const level = scope.choice("level", "Least level", [["0", "Every level"], ["1", "Info and above"], ["2", "Warnings and errors"], ["3", "Errors"]], () => draw());
  const text = scope.filter("Filter the log by text", "Filter by text", () => draw());
  const word = h("span", {}, "Pause");
  const pause = h("button", { type: "button", class: "pause", "aria-pressed": "false", onclick: () => { paused = !paused; pause.setAttribute("aria-pressed", String(paused)); tick(); } }, word);
  const total = h("span", { class: "muted num" });
  const attrs = (l) => Object.entries(l.attrs || {}).map(([k, v]) => [h("span", { class: "muted" }, `${k}=`), v, " "]);
  const table = new Table({
    caption: "Log, the newest line first",
    key: (l) => l.n,
    columns: [
      { label: "Time", class: "time", text: (l) => clock(l.time), title: (l) => moment(l.time) },
      { label: "Level", build: (td, now) => { td.append(h("span", { class: "status", "data-tone": tones[now().level] || "idle" }, now().level)); } },
      { label: "Message", class: "grow wrap log-line", build: (td, now) => { const span = h("span", {}, h("b", {}, now().message), " ", h("span", { class: "mono" }, attrs(now()))); td.append(span); } },
    ],
    blank: () => empty(list.length ? "No line matches the filter." : "The relay has said nothing yet."),
  });
  const draw = () => {
    if (!loaded) return;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const least = Number(level.value);
    const found = list.filter((l) => (ranks[l.level] ?? 3) >= least && (!words.length || ((l.text ||= `${l.message} ${Object.entries(l.attrs || {}).map(([k, v]) => `${k}=${v}`).join(" ")}`.toLowerCase()), words.every((w) => l.text.includes(w)))));
    say(total, part(found.length, list.length, "line"));
    table.update(found.slice(0, shown));
  };
  const tick = () => {
    say(word, paused ? (waiting.length ? `Go on (${count(waiting.length)} new)` : "Go on") : "Pause");
    if (paused || !waiting.length) return;
    loaded = true;
    for (const l of waiting) {
      l.n = ++n;
      list.unshift(l);
    }
    list.length = Math.min(list.length, kept);
    waiting = [];
    draw();
  };
  scope.every(1000, tick);
  // The feed begins with the last lines, also after a cut: those that are there already are known by their time.
  const same = (l) => `${l.time} ${l.level} ${l.message}`;
  let there = null;
  scope.feed("logs/Follow", { lines: 500 }, (l) => {
    if (there?.has(same(l))) return;
    if (waiting.length >= kept) waiting.shift();
    waiting.push(l);
  }, {
    failed: problem.set,
    began: () => {
      there = new Set([...list, ...waiting].map(same));
      setTimeout(() => {
        loaded = true;
        there = null;
        tick();
        draw();
      }, 700);
    },
  });
  return { title: "Log", actions: [total, level, text, pause], element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}
