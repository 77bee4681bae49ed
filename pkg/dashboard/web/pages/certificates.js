// Certificates: those that the relay obtains by itself.
import { h, say, mono, pill, empty, copyable } from "../dom.js";
import { Table } from "../table.js";
import { date, until, moment } from "../format.js";
import { ask, toast } from "../dialog.js";

export function stateOf(c) {
  const left = c.expires ? (Date.parse(c.expires) - Date.now()) / 86_400_000 : NaN;
  if (c.expires && left < 0) return ["expired", "Expired"];
  if (c.failures > 0) return ["failed", c.failures === 1 ? "Last attempt failed" : `${c.failures} attempts failed`];
  if (c.ordering) return ["ordering", "Being ordered"];
  if (!c.expires) return ["none", "None yet"];
  if (c.renews && Date.parse(c.renews) < Date.now()) return ["expiring", "Renewal is due"];
  return ["valid", "Valid"];
}

export function certificates(scope) {
  const { api } = scope;
  const problem = scope.problem();
  const filter = scope.filter("Filter certificates", "Filter by name, issuer", () => draw());
  let rows = null;
  const renew = async (c) => {
    const yes = await ask({ title: `Renew ${c.name} now?`, button: "Renew", text: ["Another certificate is ordered. The one that is there is used until it has come. Authorities limit how many they give for a name in a week."], act: () => api.call("certificates/Renew", { name: c.name }) });
    if (yes) toast(`Another certificate for ${c.name} is ordered`);
    refresh();
  };
  const table = new Table({
    caption: "Certificates",
    key: (c) => c.name,
    sort: "Ends",
    down: false,
    columns: [
      { label: "Name", class: "grow wrap", sort: (c) => c.name, build: (td, now) => {
        td.append(mono(now().name));
        const why = h("div", { class: "bad small-text" });
        td.append(why);
        return (c) => say(why, c.error ? `${c.error}${c.next_try ? `. Next attempt ${until(c.next_try)}.` : ""}` : "");
      } },
      { label: "State", sort: (c) => stateOf(c)[1], build: (td) => { const p = pill("none"); td.append(p); return (c) => p.set(...stateOf(c)); } },
      { label: "Ends", class: "num", sort: (c) => (c.expires ? Date.parse(c.expires) : 0), text: (c) => (c.expires ? until(c.expires) : "–"), title: (c) => moment(c.expires) },
      { label: "Until", class: "num hide-narrow", text: (c) => date(c.expires) },
      { label: "Renewal", class: "num", text: (c) => (c.renews ? until(c.renews) : "–"), title: (c) => moment(c.renews) },
      { label: "Issuer", class: "grow", text: (c) => c.issuer || c.directory || "–", title: (c) => c.directory || "" },
      { label: "Because", class: "hide-narrow", text: (c) => (c.on_demand ? "a visitor came" : "configured") },
      ...(api.may("operator") ? [{ label: "Renew", hidden: true, class: "act", build: (td, now) => { td.append(h("button", { type: "button", class: "small", "aria-label": `Renew ${now().name}`, onclick: () => renew(now()) }, "Renew")); } }] : []),
    ],
    blank: () => (rows && rows.length ? empty("No certificate matches the filter.") : empty("The relay obtains no certificates by itself.", h("p", {}, "It would, with this in ", h("code", {}, "public.toml"), " (to use Let's Encrypt is to agree to its terms):"), copyable('[acme]\nemail = "ops@example.com"', "the configuration for certificates"))),
  });
  const draw = () => {
    if (!rows) return;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    table.update(rows.filter((c) => { const t = `${c.name} ${c.issuer || ""} ${stateOf(c)[1]}`.toLowerCase(); return words.every((w) => t.includes(w)); }));
  };
  const refresh = scope.poll("certificates/List", {}, 5, (list) => { rows = list || []; draw(); }, problem.set);
  return { title: "Certificates", actions: filter, element: h("div", {}, problem.element, h("div", { class: "card flush" }, table.element)) };
}
