// Requests: the last ones with their timing, as they come; and one of them in full.
import { h, say, link, path, mono, empty } from "../dom.js";
import { Table } from "../table.js";
import { clock, moment, millis, bytes, count, part } from "../format.js";
import { inspector } from "./inspector.js";

const kept = 1000; // requests in memory
const shown = 200; // rows

export const statusTone = (s) => (s >= 500 ? "bad" : s >= 400 ? "warn" : s >= 300 ? "idle" : s >= 200 || s === 101 ? "good" : "bad");

// statusMark is a status with its colour.
export function statusMark() {
  const e = h("span", { class: "status" });
  e.set = (r) => {
    e.dataset.tone = statusTone(r.status);
    say(e, r.status ? String(r.status) : "none");
  };
  return e;
}

// timing draws how long one waited for the head, and how long the rest took, beside others.
export function timing() {
  const wait = h("i", { class: "wait" });
  const rest = h("i", { class: "rest" });
  const e = h("span", { class: "timing", "aria-hidden": "true" }, wait, rest);
  e.set = (r, longest) => {
    const of = (ms) => `${Math.min(100, (Math.log1p(ms) / Math.log1p(Math.max(longest, 10))) * 100).toFixed(1)}%`;
    wait.style.width = of(Math.min(r.wait_ms, r.took_ms));
    rest.style.width = of(r.took_ms);
  };
  return e;
}

export function requests(scope) {
  if (scope.parts[0]) return inspector(scope, scope.parts[0]);
  const { api } = scope;
  const problem = scope.problem();
  const site = scope.query.get("site") || "";
  const service = scope.query.get("service") || "";
  let list = []; // newest first
  let ids = new Set();
  let waiting = []; // came while it is paused, or since it was drawn last
  let paused = false;
  let loaded = false;

  const text = scope.filter("Filter requests by text", "Filter by path, host, address", () => draw());
  const status = scope.choice("status", "Filter by status", [["", "Every status"], ["2", "2xx"], ["3", "3xx"], ["4", "4xx"], ["5", "5xx"], ["x", "Trouble"]], () => draw());
  const which = h("select", { "aria-label": "Filter by service", onchange: () => draw() }, h("option", { value: "" }, "Every service"));
  const pauseWord = h("span", {}, "Pause");
  const pause = h("button", { type: "button", class: "pause", "aria-pressed": "false", onclick: () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    take();
    draw();
    caption();
  } }, pauseWord);
  const total = h("span", { class: "muted num" });
  const clear = h("button", { type: "button", onclick: () => { list = []; waiting = []; ids = new Set(); draw(); } }, "Clear");

  const mark = (td) => { const m = statusMark(); td.append(m); return (r) => m.set(r); };
  let longest = 10;
  const table = new Table({
    caption: "Requests, the newest first",
    key: (r) => r.id,
    columns: [
      { label: "Time", class: "time", text: (r) => clock(r.time), title: (r) => moment(r.time) },
      { label: "Status", build: mark, title: (r) => r.word || "" },
      { label: "Method", class: "method", text: (r) => r.method },
      { label: "Request", class: "grow wide", build: (td, now) => {
        const r = now();
        const what = [h("span", { class: "muted" }, r.host), mono(r.path)];
        if (r.word) td.append(h("span", { class: "word" }, r.word));
        td.append(r.inspectable && api.may("operator") ? link(path("requests", r.id), what) : h("span", {}, what));
      }, title: (r) => `${r.host}${r.path}` },
      { label: "Service", class: "hide-narrow", build: (td, now) => { td.append(link(path("services", now().site, now().service), h("span", { class: "muted" }, now().site + "/"), now().service)); } },
      { label: "Wait", class: "num", text: (r) => millis(r.wait_ms), title: () => "until the head of the answer came" },
      { label: "Took", class: "num", text: (r) => millis(r.took_ms), title: () => "until its end" },
      { label: "Timing", hidden: true, class: "timing-cell hide-narrow", build: (td) => { const t = timing(); td.append(t); return (r) => t.set(r, longest); } },
      { label: "Sent", class: "num", text: (r) => bytes(r.sent), title: (r) => `${bytes(r.received)} from the visitor, ${bytes(r.sent)} to the visitor` },
      { label: "From", class: "hide-narrow", build: (td, now) => { td.append(mono(now().remote)); } },
    ],
    blank: () => (list.length ? empty("No request matches the filter.") : empty("No request yet.", h("p", {}, "They come here as visitors send them. To see one, visit a published URL, or:"), h("p", {}, h("code", {}, "tunnelctl http SITE/SERVICE /")))),
  });
  const caption = () => {
    say(pauseWord, paused ? (waiting.length ? `Go on (${count(waiting.length)} new)` : "Go on") : "Pause");
  };
  const matches = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const s = status.value;
    const w = which.value;
    return (r) => {
      if (site && (r.site !== site || (service && r.service !== service))) return false;
      if (w && `${r.site}/${r.service}` !== w) return false;
      if (s === "x" ? !r.word && r.status < 500 && r.status > 0 : s && String(r.status)[0] !== s) return false;
      if (!words.length) return true;
      const all = `${r.method} ${r.host}${r.path} ${r.remote} ${r.status} ${r.word || ""} ${r.proto} ${r.site}/${r.service}`.toLowerCase();
      return words.every((x) => all.includes(x));
    };
  };
  const draw = () => {
    if (!loaded) return;
    const found = list.filter(matches());
    const rows = found.slice(0, shown);
    longest = rows.reduce((n, r) => Math.max(n, r.took_ms), 10);
    say(total, part(found.length, list.length, "request"));
    table.update(rows);
  };
  const services = () => {
    const names = [...new Set(list.map((r) => `${r.site}/${r.service}`))].sort().slice(0, 500);
    if (names.join("\n") === which.dataset.names || document.activeElement === which) return;
    const was = which.value;
    which.dataset.names = names.join("\n");
    which.replaceChildren(h("option", { value: "" }, "Every service"), ...names.map((n) => h("option", { value: n }, n)));
    which.value = was;
    if (which.value !== was) which.value = "";
  };
  const take = () => {
    if (paused || !waiting.length) return false;
    for (const r of waiting) {
      if (ids.has(r.id)) continue;
      ids.add(r.id);
      list.unshift(r);
    }
    waiting = [];
    for (const r of list.splice(kept)) ids.delete(r.id);
    services();
    return true;
  };
  // The feed may be faster than anybody reads: once a second is enough.
  scope.every(1000, () => {
    if (take()) draw();
    caption();
  });
  scope.feed("requests/Follow", { site, service }, (r) => {
    if (waiting.length >= kept) waiting.shift();
    waiting.push(r);
  }, { failed: problem.set, began: () => problem.set(null) });
  // What was before, and what came during a cut.
  scope.poll("requests/List", { site, service, limit: kept }, 0, (past) => {
    loaded = true;
    past = past || [];
    const older = past.filter((r) => !ids.has(r.id));
    if (!paused) {
      list = [...list, ...older].sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : 0)).slice(0, kept);
      ids = new Set(list.map((r) => r.id));
    } else waiting.push(...older.reverse());
    waiting = waiting.filter((r) => !ids.has(r.id)).slice(-kept);
    take();
    draw();
    services();
  }, problem.set);
  return {
    title: "Requests",
    above: site ? h("div", { class: "crumb" }, "Of ", link(path("services", site, service), `${site}/${service}`), ". ", link("#/requests", "All requests")) : null,
    actions: [total, site ? null : which, status, text, pause, clear],
    element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)),
  };
}
