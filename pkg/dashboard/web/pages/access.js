// Access: tokens, and the operators whose they are.
import { h, say, mono, pill, empty, copyable } from "../dom.js";
import { Table } from "../table.js";
import { date, moment, since, until, count } from "../format.js";
import { ask, tell, toast } from "../dialog.js";

const roles = ["viewer", "operator", "admin"];
const meaning = { viewer: "sees", operator: "sees, forwards, kicks, replays, promotes", admin: "may everything" };
const roleOptions = (most) => roles.slice(0, roles.indexOf(most) + 1).map((r) => [r, `${r}: ${meaning[r]}`]);
const lives = [["86400", "1 day"], ["604800", "7 days"], ["7776000", "90 days"], ["31536000", "1 year"], ["never", "as long as it is not revoked"]];

const showToken = (made, title) => tell(title,
  h("p", {}, h("strong", {}, "The token is shown this once. "), made.expires ? `It is good until ${moment(made.expires)}.` : "It is good until it is revoked."),
  copyable(made.token, "the token"),
  h("p", {}, "It is used here, or by ", h("code", {}, "tunnelctl login"), ", which asks for it."));

export function access(scope) {
  const { api } = scope;
  const admin = api.may("admin");
  const problem = scope.problem();
  let operators = [];

  const create = async () => {
    const made = await ask({
      title: "Create a token", button: "Create",
      fields: [
        { name: "note", label: "What it is for", placeholder: "laptop" },
        ...(admin && operators.length ? [{ name: "operator", label: "Whose", options: operators.map((o) => [o.name, o.name]), value: api.me.name }] : []),
        { name: "role", label: "Role", options: [["", "that of the operator"], ...roleOptions(api.me.role)], value: "" },
        { name: "life", label: "It is good for", options: lives, value: "7776000" },
      ],
      act: (v) => api.call("tokens/Create", {
        note: v.note, ...(v.operator && v.operator !== api.me.name ? { operator: v.operator } : {}), ...(v.role ? { role: v.role } : {}),
        ...(v.life === "never" ? { never: true } : { ttl_s: Number(v.life) }),
      }),
    });
    if (made) await showToken(made, `A token for ${made.operator}`);
    refreshTokens();
  };
  const revoke = async (t) => {
    const yes = await ask({
      title: "Revoke this token?", button: "Revoke", danger: true,
      text: [`${t.note ? `“${t.note}” of ${t.operator}` : `A token of ${t.operator}`} is good for nothing from then on.`, t.current ? h("strong", {}, "It is the one that you are signed in with.") : ""],
      act: () => api.call("tokens/Revoke", { id: t.id }),
    });
    if (yes) toast(`Revoked a token of ${t.operator}`);
    refreshTokens();
  };
  const tokens = new Table({
    caption: "Tokens",
    key: (t) => t.id,
    sort: "Created",
    columns: [
      ...(admin ? [{ label: "Operator", sort: (t) => t.operator, text: (t) => t.operator }] : []),
      { label: "For", class: "grow", build: (td, now) => { td.append(now().note || h("span", { class: "muted" }, "no note"), now().current ? " " : "", now().current ? pill("active", "this one") : ""); } },
      { label: "Role", text: (t) => t.role },
      { label: "Created", class: "num", sort: (t) => Date.parse(t.created), text: (t) => date(t.created), title: (t) => moment(t.created) },
      { label: "Ends", class: "num", sort: (t) => (t.expires ? Date.parse(t.expires) : Infinity), text: (t) => (t.expires ? until(t.expires) : "never"), title: (t) => moment(t.expires) },
      { label: "Last used", class: "num", sort: (t) => (t.last_used ? Date.parse(t.last_used) : 0), text: (t) => (t.last_used ? `${since(t.last_used)} ago` : "never"), title: (t) => moment(t.last_used) },
      { label: "From", text: (t) => t.last_from || "–" },
      { label: "ID", class: "hide-narrow", build: (td, now) => { td.append(mono(now().id)); } },
      { label: "Revoke", hidden: true, class: "act", build: (td, now) => { td.append(h("button", { type: "button", class: "small danger-text", "aria-label": `Revoke the token ${now().note || now().id} of ${now().operator}`, onclick: () => revoke(now()) }, "Revoke")); } },
    ],
    blank: () => empty("No token yet.", h("p", {}, "One for each machine is a good habit: each can be revoked by itself.")),
  });
  const refreshTokens = scope.poll("tokens/List", {}, 10, (list) => tokens.update(list || []), problem.set);

  let people = null;
  if (admin) {
    const add = async () => {
      const made = await ask({
        title: "Add an operator", button: "Add",
        fields: [{ name: "name", label: "Name", required: true, placeholder: "maria" }, { name: "role", label: "Role", options: roleOptions("admin"), value: "viewer" }],
        act: (v) => api.call("operators/Add", v),
      });
      if (made) await showToken(made, `${made.operator} is an operator`);
      refresh();
      refreshTokens();
    };
    const setRole = async (o) => {
      const yes = await ask({ title: `Change the role of ${o.name}`, button: "Change", text: ["Tokens of the operator that may more are taken down with it."], fields: [{ name: "role", label: "Role", options: roleOptions("admin"), value: o.role }], act: (v) => api.call("operators/SetRole", { name: o.name, role: v.role }) });
      if (yes) toast(`${o.name} has another role`);
      refresh();
    };
    const remove = async (o) => {
      const yes = await ask({ title: `Remove ${o.name}?`, button: "Remove", danger: true, typed: o.name, text: ["All tokens of the operator are revoked, and what is under way by them ends."], act: () => api.call("operators/Remove", { name: o.name }) });
      if (yes) toast(`Removed ${o.name}`);
      refresh();
      refreshTokens();
    };
    const table = new Table({
      caption: "Operators",
      key: (o) => o.name,
      sort: "Name",
      down: false,
      columns: [
        { label: "Name", class: "grow", sort: (o) => o.name, text: (o) => o.name },
        { label: "Role", sort: (o) => o.role, text: (o) => o.role, title: (o) => meaning[o.role] || "" },
        { label: "Tokens", class: "num", sort: (o) => o.tokens, text: (o) => count(o.tokens) },
        { label: "Since", class: "num", text: (o) => date(o.created), title: (o) => moment(o.created) },
        { label: "Last used", class: "num", text: (o) => (o.last_used ? `${since(o.last_used)} ago` : "never"), title: (o) => moment(o.last_used) },
        { label: "Actions", hidden: true, class: "act", build: (td, now) => {
          td.append(h("button", { type: "button", class: "small", "aria-label": `Change the role of ${now().name}`, onclick: () => setRole(now()) }, "Role"), " ",
            h("button", { type: "button", class: "small danger-text", "aria-label": `Remove ${now().name}`, onclick: () => remove(now()) }, "Remove"));
        } },
      ],
      blank: () => empty("Only you, by the token of the state folder.", h("p", {}, "Give each person a name of their own: the audit log tells them apart."), copyable("tunnelctl operator add maria --role operator", "the command that adds an operator")),
    });
    const bad = scope.problem();
    const refresh = scope.poll("operators/List", {}, 10, (list) => { operators = list || []; table.update([...operators]); }, bad.set);
    people = h("section", { "aria-labelledby": "operators" }, h("div", { class: "section-head" }, h("h2", { id: "operators" }, "Operators"), h("button", { type: "button", class: "primary", onclick: add }, "Add an operator")), bad.element, h("div", { class: "card flush" }, table.element));
  }
  return {
    title: "Access",
    element: h("div", {}, people, h("section", { "aria-labelledby": "tokens" }, h("div", { class: "section-head" }, h("h2", { id: "tokens" }, admin ? "Tokens" : "Your tokens"), h("button", { type: "button", onclick: create }, "Create a token")), problem.element, h("div", { class: "card flush" }, tokens.element))),
  };
}
