// Services: what sites publish, with live throughput; and one of them in full.
import { h, say, swap, pill, link, path, outside, mono, empty, copyable } from "../dom.js";
import { Table } from "../table.js";
import { Spark } from "../chart.js";
import { throughput } from "../throughput.js";
import { keyOf } from "../live.js";
import { count, rate, perSecond, bytes, bits, since } from "../format.js";

const toml = `[[service]]
name    = "intranet"
publish = "https://intranet.example.com"
target  = "http://127.0.0.1:8080"`;

const errorsOf = (s) => Object.values(s.errors || {}).reduce((n, x) => n + x, 0);

export function services(scope) {
  return scope.parts.length >= 2 ? one(scope, scope.parts[0], scope.parts[1]) : all(scope);
}

function all(scope) {
  const { live } = scope;
  const problem = scope.problem();
  const filter = scope.filter("Filter services", "Filter by site, name, URL", () => draw());
  let rows = null;
  const kept = (r) => live.services.get(keyOf(r.site, r.name));
  const figure = (r, name) => kept(r)?.figures[name] ?? 0;
  const table = new Table({
    caption: "Services",
    key: (r) => keyOf(r.site, r.name),
    sort: "To visitors",
    columns: [
      { label: "Service", class: "grow", sort: (r) => `${r.site}/${r.name}`, build: (td, now) => {
        const a = link(path("services", now().site, now().name), h("span", { class: "muted" }, now().site + "/"), h("b", {}, now().name));
        td.append(a);
      } },
      { label: "Published at", class: "grow wide hide-narrow", build: (td) => {
        let last = null;
        return (r) => { if (last !== r.publish) swap(td, outside((last = r.publish))); };
      }, title: (r) => r.publish || "" },
      { label: "Target", class: "hide-narrow", text: (r) => r.target_scheme },
      { label: "Visitors", class: "num", sort: (r) => figure(r, "visitors"), text: (r) => count(kept(r)?.figures.visitors ?? r.visitors) },
      { label: "Req/s", class: "num", sort: (r) => figure(r, "requests"), text: (r) => perSecond(figure(r, "requests")) },
      { label: "To visitors", class: "num rate", sort: (r) => figure(r, "out"), text: (r) => rate(figure(r, "out")) },
      { label: "From visitors", class: "num rate", sort: (r) => figure(r, "in"), text: (r) => rate(figure(r, "in")) },
      { label: "Last minute", class: "spark-cell", build: (td) => {
        const spark = new Spark("out", "in");
        td.append(spark.element);
        return (r) => { const k = kept(r); if (k) spark.set([k.out.array(), k.in.array()], 60); };
      } },
      { label: "Errors", class: "num", sort: errorsOf, build: (td) => (r) => {
        const n = errorsOf(r);
        say(td, count(n));
        td.classList.toggle("bad", n > 0);
      }, title: (r) => Object.entries(r.errors || {}).map(([w, n]) => `${w}: ${n}`).join(", ") },
    ],
    blank: () => (rows && rows.length ? empty("No service matches the filter.") : empty("No service yet.", h("p", {}, "A site announces what it offers. At the end of its ", h("code", {}, "private.toml"), ":"), copyable(toml, "an example of a service"), h("p", {}, "It is read again without a restart: ", h("code", {}, "systemctl reload relay-private")))),
  });
  const draw = () => {
    if (!rows) return;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    table.update(rows.filter((r) => { const text = `${r.site}/${r.name} ${r.publish || ""} ${r.target_scheme}`.toLowerCase(); return words.every((w) => text.includes(w)); }));
  };
  scope.poll("services/List", {}, 5, (list) => { rows = list || []; draw(); }, problem.set);
  scope.figures(draw);
  return { title: "Services", actions: filter, element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}

function one(scope, site, name) {
  const { live } = scope;
  const problem = scope.problem();
  const values = {};
  const tile = (id, label) => h("div", { class: "tile", id: `tile-${id}` }, h("span", { class: "label" }, label), (values[id] = h("b", { class: "value" }, "–")));
  const tiles = [tile("visitors", "Visitors"), tile("requests", "Requests per second"), tile("out", "To visitors"), tile("in", "From visitors"), tile("errors", "Errors per second")];
  const facts = h("dl", { class: "facts" });
  scope.figures(() => {
    const f = live.services.get(keyOf(site, name))?.figures;
    if (!f) return;
    say(values.visitors, count(f.visitors));
    say(values.requests, perSecond(f.requests));
    say(values.out, rate(f.out));
    say(values.in, rate(f.in));
    say(values.errors, perSecond(f.errors));
  });
  const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  scope.poll("services/List", { site }, 5, (list) => {
    const s = (list || []).find((x) => x.name === name && x.site === site);
    if (!s) {
      say(values.visitors, "–");
      return swap(facts, fact("State", pill("away", "not announced"), h("p", {}, "The site does not offer it at the moment.")));
    }
    const errors = Object.entries(s.errors || {}).sort((a, b) => b[1] - a[1]);
    swap(facts,
      fact("Site", link(path("sites", site), site)),
      fact("Published at", outside(s.publish)),
      fact("Target", mono(s.target_scheme + "://…"), h("div", { class: "muted" }, "the address is the site's own business")),
      fact("Visitors so far", count(s.visitors_total)),
      fact("From visitors", bytes(s.received)),
      fact("To visitors", bytes(s.sent)),
      s.datagrams_received || s.datagrams_sent ? fact("Datagrams", `${count(s.datagrams_received || 0)} in, ${count(s.datagrams_sent || 0)} out, ${count(s.datagrams_dropped || 0)} lost`) : null,
      s.camera ? fact("Camera", `${count(s.camera.viewers)} viewers, ${bits(s.camera.bits_per_second)}`, h("div", { class: "muted" }, (s.camera.tracks || []).map((t) => `${t.media} ${t.codec || ""} ${t.width ? `${t.width}×${t.height}` : ""}`).join(", ")), s.camera.key_frame ? h("div", { class: "muted" }, `last key frame ${since(s.camera.key_frame)} ago`) : null) : null,
      s.files ? fact("Files", `${bits(s.files.bits_per_second)}, ${bytes(s.files.cached)} kept, ${count(s.files.hits)} from the cache`) : null,
      fact("Errors", errors.length ? h("ul", { class: "plain-list" }, errors.map(([w, n]) => h("li", {}, h("span", { class: "bad num" }, count(n)), " ", w))) : "none"));
  }, problem.set);
  return {
    title: h("span", {}, h("span", { class: "muted" }, site + "/"), name),
    above: h("div", { class: "crumb" }, link("#/services", "Services")),
    actions: [h("a", { class: "button", href: `#/streams?site=${encodeURIComponent(site)}&service=${encodeURIComponent(name)}` }, "Its streams"), h("a", { class: "button", href: `#/requests?site=${encodeURIComponent(site)}&service=${encodeURIComponent(name)}` }, "Its requests")],
    element: h("div", {}, problem.element,
      h("section", { class: "tiles five", "aria-label": "Now" }, tiles),
      h("section", { class: "card", "aria-labelledby": "traffic" }, throughput(scope, "traffic", "Traffic", { site, service: name })),
      h("section", { class: "card", "aria-labelledby": "about" }, h("h2", { id: "about" }, "About it"), facts)),
  };
}
