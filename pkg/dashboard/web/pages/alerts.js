// Alerts: what somebody should look after, and what was.
import { h, pill, link, path, empty } from "../dom.js";
import { Table } from "../table.js";
import { since, moment, span } from "../format.js";
import { tell, toast } from "../dialog.js";

const words = { "site-away": "Site away", certificate: "Certificate", disk: "Disk", "access-log": "Access log", test: "Test" };

// tryOut has all who are to be told of alerts be told of a test.
async function tryOut(api, button) {
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  let came;
  try {
    came = (await api.call("alerts/Test")) || [];
  } catch (e) {
    toast(e.message, "bad");
    return;
  } finally {
    button.removeAttribute("aria-busy");
  }
  await tell("A test alert was sent", came.length
    ? h("ul", { class: "came" }, came.map((d) => h("li", {}, pill(d.error ? "failed" : "ok", d.error ? "Not told" : "Told"), " ", d.to, d.error ? h("p", { class: "error" }, d.error) : null)))
    : h("p", {}, "But there is nobody to be told: ", h("code", {}, "[alerts]"), " in ", h("code", {}, "public.toml"), " says who is."));
}

export function alerts(scope) {
  const problem = scope.problem();
  const table = new Table({
    caption: "Alerts, those that are active first",
    key: (a) => a.id,
    columns: [
      { label: "State", build: (td) => { const p = pill("none"); td.append(p); return (a) => p.set(a.resolved ? "ok" : "failed", a.resolved ? "Resolved" : "Active"); } },
      { label: "Kind", text: (a) => words[a.kind] || a.kind },
      { label: "About", class: "grow", build: (td, now) => {
        const a = now();
        td.append(a.kind === "site-away" ? link(path("sites", a.subject), h("b", {}, a.subject)) : a.kind === "certificate" ? link("#/certificates", h("b", {}, a.subject)) : h("b", {}, a.subject));
      } },
      { label: "What", class: "grow wrap", text: (a) => a.text },
      { label: "Since", class: "time", text: (a) => moment(a.since) },
      { label: "For", class: "num", text: (a) => (a.resolved ? span((Date.parse(a.resolved) - Date.parse(a.since)) / 1000) : since(a.since)) },
    ],
    blank: () => empty("Nothing to look after.", h("p", {}, "An alert is raised when a site is away, a certificate will not renew, or a disk is full. To be told by mail or a webhook, see ", h("code", {}, "[alerts]"), " in ", h("code", {}, "public.toml"), ".")),
  });
  scope.poll("alerts/List", {}, 5, (list) => {
    scope.live.setAlerts(list || []);
    table.update([...(list || [])].sort((a, b) => Boolean(a.resolved) - Boolean(b.resolved) || (a.since < b.since ? 1 : -1)));
  }, problem.set);
  const test = h("button", { type: "button", onclick: () => tryOut(scope.api, test) }, "Send a test");
  return { title: "Alerts", actions: scope.api.may("operator") ? test : null, element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}
