// Overview: the whole relay on one page.
import { h, say, swap, pill, link, path, empty, copyable, mono } from "../dom.js";
import { Spark } from "../chart.js";
import { throughput } from "../throughput.js";
import { SiteList, noSites } from "../sitelist.js";
import { count, rate, perSecond, span, until, since } from "../format.js";

export function overview(scope) {
  const { live, api } = scope;
  const tile = (label, name, ...colours) => {
    const value = h("b", { class: "value" }, "–");
    const spark = new Spark(...colours);
    return { element: h("div", { class: "tile", id: `tile-${name}` }, h("span", { class: "label" }, label), value, spark.element), value, spark };
  };
  const tiles = {
    visitors: tile("Visitors", "visitors", "muted"),
    streams: tile("Streams", "streams", "muted"),
    requests: tile("Requests per second", "requests", "muted"),
    out: tile("To visitors", "out", "out"),
    in: tile("From visitors", "in", "in"),
  };
  const formats = { visitors: count, streams: count, requests: perSecond, out: rate, in: rate };
  const banner = h("div", { class: "banner", hidden: true });
  const list = new SiteList(scope, { manage: false });
  const facts = h("dl", { class: "facts" });
  const problem = scope.problem();

  scope.figures((live) => {
    const now = { visitors: live.figures.visitors, streams: live.figures.streams, ...live.now };
    for (const [name, t] of Object.entries(tiles)) {
      say(t.value, formats[name](now[name]));
      t.spark.set([live.total[name].array()], 300);
    }
    list.figures(live);
  });

  const alerts = () => {
    const active = live.alerts || [];
    const key = JSON.stringify(active.map((a) => a.id));
    if (banner.dataset.key === key) return;
    banner.dataset.key = key;
    banner.hidden = active.length === 0;
    swap(banner, active.slice(0, 3).map((a) => h("p", {}, pill("failed", "Alert"), h("strong", {}, a.subject), " ", a.text, h("span", { class: "muted" }, ` for ${since(a.since)}`))),
      active.length > 3 ? link("#/alerts", `All ${active.length} alerts`) : active.length ? link("#/alerts", "Alerts") : null);
  };
  scope.on(live, "alerts", alerts);
  alerts();

  const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  scope.poll("status/Get", {}, 5, (s) => {
    list.update(s.sites || []);
    const c = s.counters || {};
    const due = (s.certificates || []).filter((x) => x.expires).sort((a, b) => (a.expires < b.expires ? -1 : 1))[0];
    swap(facts,
      fact("Domain", mono(s.domain)),
      fact("Version", s.version),
      fact("Up for", span(s.uptime_s), s.draining ? [" ", pill("draining")] : null),
      fact("Requests so far", count(c.requests)),
      fact("Answered by the relay", count(c.answered)),
      fact("Malformed or too slow", count(c.rejected)),
      fact("Refused by a policy", count(c.refused)),
      fact("Beyond a limit", count(c.turned_away)),
      fact("Next certificate to end", due ? [link("#/certificates", due.name), " ", until(due.expires)] : "none of the relay's own"),
      fact("Listens on", h("ul", { class: "plain-list" }, (s.listeners || []).slice(0, 12).map((l) => h("li", {}, h("span", { class: "muted" }, l.name), " ", mono(l.addr))), (s.listeners || []).length > 12 ? h("li", { class: "muted" }, `and ${s.listeners.length - 12} more`) : null)));
  }, problem.set);

  return {
    title: "Overview",
    element: h("div", {},
      banner, problem.element,
      h("section", { class: "tiles", "aria-label": "Now" }, Object.values(tiles).map((t) => t.element)),
      h("section", { class: "card", "aria-labelledby": "traffic" }, throughput(scope, "traffic", "Traffic", {})),
      h("section", { "aria-labelledby": "sites" }, h("div", { class: "section-head" }, h("h2", { id: "sites" }, "Sites and their links"), link("#/sites", api.may("operator") ? "Manage sites" : "All of each site")), list.element),
      h("section", { class: "card", "aria-labelledby": "relay" }, h("h2", { id: "relay" }, "This relay"), facts)),
  };
}
