// Visitors: addresses, with what they have open.
import { h, say, link, mono, empty } from "../dom.js";
import { Table } from "../table.js";
import { bytes, since, moment, count, part } from "../format.js";

const most = 2000; // addresses that the relay is asked for

export function visitors(scope) {
  const problem = scope.problem();
  const filter = scope.filter("Filter visitors", "Filter by address, service", () => draw());
  let rows = null;
  const table = new Table({
    caption: "Visitors",
    key: (r) => r.address,
    sort: "Streams",
    columns: [
      { label: "Address", class: "grow", sort: (r) => r.address, build: (td, now) => { td.append(link(`#/streams?q=${encodeURIComponent(now().address)}`, mono(now().address))); } },
      { label: "Streams", class: "num", sort: (r) => r.streams, text: (r) => count(r.streams) },
      { label: "Since", class: "num", sort: (r) => -Date.parse(r.since), text: (r) => since(r.since), title: (r) => moment(r.since) },
      { label: "From visitor", class: "num rate", sort: (r) => r.received, text: (r) => bytes(r.received) },
      { label: "To visitor", class: "num rate", sort: (r) => r.sent, text: (r) => bytes(r.sent) },
      { label: "Services", class: "grow wrap", text: (r) => { const s = r.services || []; return s.slice(0, 4).join(", ") + (s.length > 4 ? ` and ${s.length - 4} more` : ""); }, title: (r) => (r.services || []).join(", ") },
    ],
    blank: () => (rows && rows.length ? empty("No visitor matches the filter.") : empty("No visitor just now.", h("p", {}, "An address is here for as long as it has a connection to a service. Those that were here are on the ", link("#/requests", "Requests"), " page."))),
  });
  const total = h("span", { class: "muted num" });
  const draw = () => {
    if (!rows) return;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((r) => { const text = `${r.address} ${(r.services || []).join(" ")}`.toLowerCase(); return words.every((w) => text.includes(w)); });
    say(total, part(found.length, rows.length, "address", "addresses") + (rows.length < most ? "" : " or more"));
    table.update(found);
  };
  scope.poll("visitors/List", { limit: most }, 2, (list) => { rows = list || []; draw(); }, problem.set);
  return { title: "Visitors", actions: [total, filter], element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}
