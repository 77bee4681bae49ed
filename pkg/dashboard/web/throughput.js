// A chart of throughput: the past from the relay's history, then live.
import { h } from "./dom.js";
import { Chart } from "./chart.js";
import { rate, perSecond, count } from "./format.js";

const spans = [[300, "5 min"], [3600, "1 h"], [86_400, "24 h"]];
const kinds = {
  bytes: { label: "Throughput", format: rate, series: [{ name: "To visitors", colour: "out", fill: true, of: "out" }, { name: "From visitors", colour: "in", of: "in" }] },
  requests: { label: "Requests", format: perSecond, series: [{ name: "Requests per second", colour: "out", fill: true, of: "requests" }, { name: "Errors per second", colour: "bad", of: "errors" }] },
  visitors: { label: "Visitors", format: count, series: [{ name: "Visitors", colour: "out", fill: true, of: "visitors" }] },
};

// throughput returns what is in a card: the head with what one can choose, and the chart. whose is {site, service}: of a
// service, of a site, or of the whole relay.
export function throughput(scope, id, title, whose) {
  let seconds = 300;
  let kind = "bytes";
  let chart;
  let past = null;
  const place = h("div");
  const head = h("div", { class: "section-head" });

  const values = (h) => kinds[kind].series.map((s) => h[s.of] || []);
  const show = () => {
    if (!past || !chart) return;
    const data = values(past);
    if (!data[0].length) return;
    const n = data[0].length;
    chart.set(past.start, past.step, data.map((d) => (d.length < n ? [...d, ...Array(n - d.length).fill(0)] : d)), Math.max(n, Math.round(seconds / past.step)));
  };
  const make = () => {
    const of = whose.service ? `${whose.site}/${whose.service}` : whose.site || "the relay";
    chart = new Chart({ ...kinds[kind], label: `${kinds[kind].label} of ${of}` });
    place.replaceChildren(chart.element);
    show();
  };
  const ask = scope.poll("history/Get", () => ({ ...whose, span_s: seconds }), 15, (h) => {
    past = { step: h.step_s, start: Date.parse(h.start), in: h.in || [], out: h.out || [], visitors: h.visitors || [], requests: h.requests || [], errors: h.errors || [] };
    show();
  }, (e) => {
    if (e) past ||= { step: 1, start: Date.now(), in: [], out: [], visitors: [], requests: [], errors: [] };
  });

  // Between two looks at the past the live figures go on with it.
  scope.figures((live) => {
    if (!past || seconds > 300 || live.first) return;
    const f = live.figures;
    let v;
    if (whose.service) {
      const s = f.services.find((x) => x.site === whose.site && x.name === whose.service);
      v = s || { in: 0, out: 0, visitors: 0, requests: 0, errors: 0 };
    } else if (whose.site) {
      const s = f.sites.find((x) => x.name === whose.site);
      const of = f.services.filter((x) => x.site === whose.site);
      const sum = (name) => of.reduce((n, x) => n + x[name], 0);
      v = { in: s?.in || 0, out: s?.out || 0, visitors: sum("visitors"), requests: sum("requests"), errors: sum("errors") };
    } else {
      v = { ...live.now, visitors: f.visitors, errors: f.services.reduce((n, x) => n + x.errors, 0) };
    }
    const now = Date.parse(f.time);
    const end = past.start + past.in.length * past.step * 1000;
    if (past.in.length && now < end) return;
    if (past.in.length === 0) past.start = now;
    const most = Math.max(2, Math.round(300 / past.step));
    for (const name of ["in", "out", "visitors", "requests", "errors"]) past[name].push(v[name]);
    while (past.in.length > most) {
      for (const name of ["in", "out", "visitors", "requests", "errors"]) past[name].shift();
      past.start += past.step * 1000;
    }
    show();
  });

  const choice = (name, options, current, choose) =>
    h("div", { class: "choice", role: "group", "aria-label": name }, options.map(([value, label]) => {
      const b = h("button", { type: "button", "aria-pressed": String(value === current), onclick: () => {
        for (const o of b.parentNode.children) o.setAttribute("aria-pressed", String(o === b));
        choose(value);
      } }, label);
      return b;
    }));
  head.append(h("h2", { id }, title), h("div", { class: "choices" },
    choice("What is shown", Object.entries(kinds).map(([k, v]) => [k, v.label]), kind, (k) => { kind = k; make(); }),
    choice("Span of time", spans, seconds, (s) => { seconds = s; past = null; ask(); })));
  make();
  return [head, place];
}
