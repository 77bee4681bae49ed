// Audit: who has changed what, or was refused.
import { h, mono, pill, empty } from "../dom.js";
import { Table } from "../table.js";
import { moment, plain } from "../format.js";

export function audit(scope) {
  const problem = scope.problem();
  let rows = null;
  const text = scope.filter("Filter the audit log", "Filter by who, what, from where", () => draw());
  const outcome = scope.choice("outcome", "Filter by outcome", [["", "Every outcome"], ["ok", "Done"], ["no", "Refused or failed"]], () => draw());
  const said = (l) => (l.in && l.in !== "null" ? JSON.stringify(l.in) : "");
  const table = new Table({
    caption: "Audit log, the newest line first",
    key: (l) => l.key,
    columns: [
      { label: "Time", class: "time", text: (l) => moment(l.time) },
      { label: "Who", build: (td, now) => { td.append(now().operator ? h("b", {}, now().operator) : h("span", { class: "muted" }, "nobody known"), now().role ? h("span", { class: "muted" }, ` ${now().role}`) : ""); } },
      { label: "Outcome", build: (td, now) => { const ok = now().code < 400; td.append(pill(ok ? "ok" : "failed", ok ? "Done" : `Refused, ${now().code}`)); } },
      { label: "What", class: "grow wrap", build: (td, now) => {
        const l = now();
        td.append(h("b", {}, l.call), " ", mono(said(l).slice(0, 500)));
        if (l.error) td.append(h("div", { class: "bad small-text" }, l.error));
      } },
      { label: "From", build: (td, now) => { td.append(mono(now().remote)); }, title: (l) => plain(`${l.via}${l.token ? `, token ${l.token}` : ""}`) },
    ],
    blank: () => (rows && rows.length ? empty("No line matches the filter.") : empty("Nobody has changed anything yet.", h("p", {}, "Changes, and what was refused, are kept in ", h("code", {}, "audit.log"), " of the relay's state folder, too."))),
  });
  const draw = () => {
    if (!rows) return;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const o = outcome.value;
    table.update(rows.filter((l) => (!o || (o === "ok") === l.code < 400) && words.every((w) => `${l.operator || ""} ${l.role || ""} ${l.call} ${said(l)} ${l.remote} ${l.error || ""}`.toLowerCase().includes(w))));
  };
  scope.poll("audit/List", { lines: 500 }, 5, (list) => {
    const seen = new Map();
    rows = (list || []).map((l) => {
      const base = `${l.time} ${l.call} ${l.operator || ""}`;
      const n = (seen.get(base) || 0) + 1;
      seen.set(base, n);
      return { ...l, key: `${base} ${n}` };
    }).sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : 0));
    draw();
  }, problem.set);
  return { title: "Audit", actions: [outcome, text], element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}
