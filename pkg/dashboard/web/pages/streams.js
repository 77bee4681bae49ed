// Streams: who is connected to what, just now.
import { h, say, link, path, mono, empty } from "../dom.js";
import { Table } from "../table.js";
import { ask, toast } from "../dialog.js";
import { bytes, since, span, moment, part } from "../format.js";

const most = 2000; // streams that the relay is asked for

export function streams(scope) {
  const { api } = scope;
  const problem = scope.problem();
  const site = scope.query.get("site") || "";
  const service = scope.query.get("service") || "";
  const filter = scope.filter("Filter streams", "Filter by address, service, host", () => draw());
  let rows = null;
  const kick = async (r) => {
    const yes = await ask({
      title: "Kick this stream?", button: "Kick", danger: true,
      text: [`${r.operator ? `The forward of ${r.operator}` : `The connection of ${r.remote}`} to ${r.site}/${r.service} is reset. Whoever it is may come back at once.`],
      act: () => api.call("streams/Kick", { id: r.id }),
    });
    if (yes) toast(`Kicked the stream of ${r.operator || r.remote} to ${r.site}/${r.service}`);
    refresh();
  };
  const table = new Table({
    caption: "Streams",
    key: (r) => r.id,
    sort: "Age",
    down: false,
    columns: [
      { label: "Service", class: "grow", sort: (r) => `${r.site}/${r.service}`, build: (td, now) => { td.append(link(path("services", now().site, now().service), h("span", { class: "muted" }, now().site + "/"), now().service)); } },
      { label: "From", class: "grow", sort: (r) => r.operator || r.remote, build: (td) => {
        const who = h("b", {});
        const from = mono("");
        td.append(who, from);
        return (r) => { say(who, r.operator ? r.operator + " " : ""); say(from, r.remote); };
      }, title: (r) => (r.operator ? "an operator's forward" : "a visitor") },
      { label: "By", text: (r) => r.scheme },
      { label: "Host", class: "grow hide-narrow", text: (r) => r.host || "–", title: (r) => r.host || "" },
      { label: "Age", class: "num", sort: (r) => -Date.parse(r.since), text: (r) => since(r.since), title: (r) => moment(r.since) },
      { label: "Idle", class: "num hide-narrow", sort: (r) => r.idle_s, text: (r) => span(r.idle_s) },
      { label: "From visitor", class: "num rate", sort: (r) => r.received, text: (r) => bytes(r.received) },
      { label: "To visitor", class: "num rate", sort: (r) => r.sent, text: (r) => bytes(r.sent) },
      { label: "State", text: (r) => r.state || "–" },
      ...(api.may("operator") ? [{ label: "Kick", hidden: true, class: "act", build: (td, now) => {
        const b = h("button", { type: "button", class: "small danger-text", onclick: () => kick(now()) }, "Kick");
        td.append(b);
        return (r) => b.setAttribute("aria-label", `Kick the stream of ${r.operator || r.remote} to ${r.site}/${r.service}`);
      } }] : []),
    ],
    blank: () => (rows && rows.length ? empty("No stream matches the filter.") : empty("Nobody is connected just now.", h("p", {}, "A stream is one visitor's connection to a service, or one of an operator's: ", h("code", {}, "tunnelctl forward SITE/SERVICE")))),
  });
  const total = h("span", { class: "muted num", id: "stream-count" });
  const draw = () => {
    if (!rows) return;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((r) => { const text = `${r.site}/${r.service} ${r.remote} ${r.host || ""} ${r.operator || ""} ${r.scheme} ${r.state}`.toLowerCase(); return words.every((w) => text.includes(w)); });
    say(total, part(found.length, rows.length, "stream") + (rows.length < most ? "" : " or more"));
    table.update(found);
  };
  const refresh = scope.poll("streams/List", { site, service, limit: most }, 2, (list) => { rows = list || []; draw(); }, problem.set);
  return {
    title: "Streams",
    above: site ? h("div", { class: "crumb" }, "Of ", link(path("services", site, service), `${site}/${service}`), ". ", link("#/streams", "All streams")) : null,
    actions: [total, filter],
    element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)),
  };
}
