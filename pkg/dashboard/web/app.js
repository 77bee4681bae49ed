// The page: who is signed in, where one is, and what belongs around every section.
import { Api } from "./api.js";
import { Live } from "./live.js";
import { Scope } from "./scope.js";
import { h, say, swap, icon, link, copyable, announce } from "./dom.js";
import { tell, open } from "./dialog.js";
import { themeChanged } from "./chart.js";
import { span } from "./format.js";
import { overview } from "./pages/overview.js";
import { sites } from "./pages/sites.js";
import { services } from "./pages/services.js";
import { streams } from "./pages/streams.js";
import { visitors } from "./pages/visitors.js";
import { requests } from "./pages/requests.js";
import { certificates } from "./pages/certificates.js";
import { alerts } from "./pages/alerts.js";
import { access } from "./pages/access.js";
import { log } from "./pages/log.js";
import { audit } from "./pages/audit.js";
import { maintenance } from "./pages/maintenance.js";

// The sections, in their groups: the key is pressed after g.
const sections = [
  { group: "Traffic" },
  { name: "overview", label: "Overview", key: "o", page: overview },
  { name: "services", label: "Services", key: "s", page: services },
  { name: "streams", label: "Streams", key: "t", page: streams },
  { name: "visitors", label: "Visitors", key: "v", page: visitors },
  { name: "requests", label: "Requests", key: "r", page: requests },
  { group: "Fleet" },
  { name: "sites", label: "Sites", key: "i", page: sites },
  { name: "certificates", label: "Certificates", key: "c", page: certificates },
  { name: "alerts", label: "Alerts", key: "a", page: alerts },
  { group: "Relay" },
  { name: "access", label: "Access", key: "k", page: access },
  { name: "log", label: "Log", key: "l", page: log, role: "operator" },
  { name: "audit", label: "Audit", key: "u", page: audit, role: "admin" },
  { name: "maintenance", label: "Maintenance", key: "m", page: maintenance, role: "admin" },
];
const pages = sections.filter((s) => s.page);

const api = new Api();
const live = new Live(api);
let scope = null; // of the page that is shown
let shown = ""; // its hash
let shell = null;

// --- the theme -----------------------------------------------------------------------------------------------------------

const themes = ["system", "light", "dark"];
let theme = localStorage.getItem("culvert-theme") || "system";
if (!themes.includes(theme)) theme = "system";

function setTheme(to) {
  theme = to;
  localStorage.setItem("culvert-theme", to);
  if (to === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = to;
  for (const e of document.querySelectorAll(".theme-word")) say(e, `Theme: ${to}`);
  themeChanged();
}
const nextTheme = () => setTheme(themes[(themes.indexOf(theme) + 1) % themes.length]);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);
const themeButton = () => h("button", { type: "button", class: "quiet", onclick: nextTheme }, icon("sun"), h("span", { class: "theme-word" }, `Theme: ${theme}`));

// --- signing in ----------------------------------------------------------------------------------------------------------

function signIn() {
  leave();
  document.documentElement.classList.remove("is-offline");
  shell = null;
  document.title = "Sign in · Culvert";
  const ended = api.ended ? h("p", { class: "notice", role: "status" }, "You were signed out: your token has ended or was revoked, or the relay was restarted. Sign in to go on where you were.") : null;
  const error = h("p", { class: "error", role: "alert" });
  const token = h("input", { id: "token", name: "token", type: "password", autocomplete: "current-password", required: true, autofocus: true, spellcheck: "false", "aria-describedby": "token-hint" });
  const button = h("button", { type: "submit", class: "primary wide" }, "Sign in");
  const form = h("form", {
    method: "dialog",
    onsubmit: async (e) => {
      e.preventDefault();
      button.setAttribute("aria-busy", "true");
      say(error, "");
      try {
        await api.login(token.value.trim());
        token.value = "";
      } catch (e) {
        say(error, e.code === 401 ? "The relay does not know this token. Is it complete, and has it not expired?" : e.message);
        token.select();
      } finally {
        button.removeAttribute("aria-busy");
      }
    },
  },
    // Password managers want a name beside a password.
    h("input", { type: "text", name: "username", autocomplete: "username", value: "culvert", hidden: true }),
    h("label", { for: "token" }, "Token"), token, error, button,
    h("div", { class: "hint", id: "token-hint" },
      h("p", {}, "An admin makes one for you on the Access page, or with:"), copyable("tunnelctl token create", "the command that makes a token"),
      h("p", {}, "The first one is in the relay's state folder:"), copyable("sudo cat /var/lib/culvert/admin.token", "the command that shows the first token")));
  swap(document.body,
    h("main", { class: "sign-in" }, h("div", { class: "card" }, brand(), h("h1", {}, "Sign in to ", h("span", { class: "mono" }, location.host)), ended, form), themeButton()));
  token.focus();
}

const brand = () => h("span", { class: "brand" }, h("img", { src: new URL("icon.svg", import.meta.url).pathname, alt: "", width: "24", height: "24" }), "Culvert");

// --- around the page -----------------------------------------------------------------------------------------------------

function build() {
  const main = h("main", { id: "main", tabindex: "-1" });
  const menu = h("button", { type: "button", class: "quiet menu", "aria-expanded": "false", "aria-controls": "nav", onclick: () => fold(menu.getAttribute("aria-expanded") === "true") }, icon("menu"), h("span", {}, "Menu"));
  const state = h("span", { class: "state" });
  const badge = h("span", { class: "badge", hidden: true });
  const lists = [];
  for (const s of sections) {
    if (s.group) lists.push(h("div", { class: "nav-group" }, h("h2", { id: `nav-${s.group}` }, s.group), h("ul", { "aria-labelledby": `nav-${s.group}` })));
    else if (!s.role || api.may(s.role)) {
      lists.at(-1).lastChild.append(h("li", {}, h("a", { href: `#/${s.name}`, "data-section": s.name, onclick: () => fold(true) }, icon(s.name), h("span", {}, s.label), s.name === "alerts" ? badge : null)));
    }
  }
  const nav = h("nav", { id: "nav", "aria-label": "Sections" }, lists);
  const foot = h("div", { class: "foot" },
    h("div", { class: "who" }, h("span", { class: "who-name" }, api.me.name), h("span", { class: "role" }, api.me.role)),
    themeButton(),
    h("button", { type: "button", class: "quiet", onclick: help }, icon("keys"), "Keys ", h("kbd", {}, "?")),
    h("button", { type: "button", class: "quiet", onclick: () => api.logout() }, icon("out"), "Sign out"));
  nav.append(foot);
  const fold = (folded) => {
    menu.setAttribute("aria-expanded", String(!folded));
    nav.classList.toggle("open", !folded);
  };
  const retry = h("button", { type: "button", class: "small", onclick: () => api.retry() }, "Try now");
  const offlineText = h("span");
  const offline = h("div", { class: "offline", hidden: true }, offlineText, retry);
  swap(document.body,
    h("a", { class: "skip", href: "#main", onclick: (e) => { e.preventDefault(); main.querySelector("h1")?.focus(); } }, "Skip to content"),
    h("div", { class: "layout" },
      h("header", { class: "side" }, h("div", { class: "top" }, h("a", { href: "#/overview", class: "home", "aria-label": "Culvert, overview" }, brand()), state, menu), nav),
      main),
    offline, h("div", { class: "unseen", role: "status", "aria-live": "polite", id: "announce" }));
  shell = { main, menu, state, offline, offlineText, badge, fold, word: "" };
  connection();
  showAlerts();
}

// connection says whether what one sees is still so.
function connection() {
  if (!shell) return;
  const online = api.state === "online";
  shell.state.dataset.tone = !online ? "bad" : live.draining ? "warn" : "good";
  say(shell.state, !online ? "Offline" : live.draining ? "Draining" : "Live");
  shell.offline.hidden = online;
  document.documentElement.classList.toggle("is-offline", !online);
  if (!online) {
    const s = Math.ceil((api.retryAt - Date.now()) / 1000);
    say(shell.offlineText, `${live.draining ? "The relay was draining, and has stopped: it comes back when somebody starts it." : "The relay is not reached."} What you see is as it was. ${api.retryAt && s > 0 ? `Trying again in ${span(s)}.` : "Trying now…"}`);
  }
  const word = !online ? "The connection to the relay was lost. Trying again." : live.draining ? "The relay is draining: it takes no more visitors." : "Connected to the relay.";
  if (shell.word && shell.word !== word) announce(word);
  shell.word = word;
}
setInterval(() => api.state === "offline" && connection(), 1000);

function showAlerts() {
  if (!shell) return;
  const n = live.alerts?.length || 0;
  shell.badge.hidden = n === 0;
  say(shell.badge, String(n));
  shell.badge.setAttribute("aria-label", `${n} active`);
}
live.addEventListener("alerts", showAlerts);
live.addEventListener("draining", connection);

// --- where one is --------------------------------------------------------------------------------------------------------

function leave() {
  if (scope) scope.end();
  scope = null;
  shown = "";
}

const here = () => location.hash.replace(/^#\/?/, "") || "overview";

function route(focus) {
  if (!shell || api.me === null) return;
  const hash = here();
  if (hash === shown) return;
  const [place, query = ""] = hash.split("?");
  let parts;
  try {
    parts = place.split("/").map(decodeURIComponent);
  } catch {
    parts = ["overview"];
  }
  const section = pages.find((p) => p.name === parts[0]);
  leave();
  shown = hash;
  scope = new Scope(api, live, parts.slice(1), new URLSearchParams(query), () => (shown = here()));
  let page;
  if (!section) page = { title: "Not found", element: h("p", {}, "There is no such page. ", link("#/overview", "Go to the overview"), ".") };
  else if (section.role && !api.may(section.role)) page = { title: section.label, element: h("p", {}, `This needs the role ${section.role}. Yours is ${api.me.role}: an admin can change it.`) };
  else page = section.page(scope);
  for (const a of document.querySelectorAll("a[data-section]")) {
    if (section && a.dataset.section === section.name) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  const title = h("h1", { tabindex: "-1" }, page.title);
  document.title = `${title.textContent} · Culvert`;
  swap(shell.main, h("div", { class: "head" }, h("div", { class: "title" }, page.above, title), h("div", { class: "actions" }, page.actions)), page.element);
  scrollTo(0, 0);
  if (focus) title.focus({ preventScroll: true });
}
addEventListener("hashchange", () => {
  shell?.fold(true);
  route(true);
});

// --- keys ----------------------------------------------------------------------------------------------------------------

let went = 0; // when g was pressed

function help() {
  const rows = [
    ["?", "This list"],
    ["/", "To the filter of the page"],
    ["p", "Pause, and go on with, a live list"],
    ["t", "Another theme"],
    ["Esc", "Close a dialog; leave a filter"],
    ...pages.filter((s) => !s.role || api.may(s.role)).map((s) => [`g ${s.key}`, s.label]),
  ];
  tell("Keys", h("table", { class: "keys" }, h("caption", { class: "unseen" }, "Keys"), h("tbody", {}, rows.map(([k, what]) => h("tr", {}, h("th", { scope: "row" }, k.split(" ").map((x) => h("kbd", {}, x))), h("td", {}, what))))),
    h("p", { class: "hint" }, "They do nothing while a field has the focus."));
}

addEventListener("keydown", (e) => {
  const field = e.target.closest?.("input, select, textarea, [contenteditable]");
  if (e.key === "Escape" && field && field.classList.contains("filter")) {
    field.blur();
    document.querySelector("main h1")?.focus();
    return;
  }
  if (e.key === "Escape" && shell?.menu.getAttribute("aria-expanded") === "true" && !document.querySelector("dialog[open]")) {
    shell.fold(true);
    shell.menu.focus();
    return;
  }
  if (field || e.ctrlKey || e.altKey || e.metaKey || document.querySelector("dialog[open]") || !shell) return;
  const after = Date.now() - went < 1500;
  went = 0;
  if (after) {
    const to = pages.find((s) => s.key === e.key && (!s.role || api.may(s.role)));
    if (to) {
      e.preventDefault();
      location.hash = `#/${to.name}`;
      return;
    }
  }
  switch (e.key) {
    case "g":
      went = Date.now();
      return;
    case "?":
      help();
      break;
    case "/": {
      const filter = document.querySelector("main input.filter");
      if (!filter) return;
      filter.focus();
      filter.select();
      break;
    }
    case "p":
      document.querySelector("main button.pause")?.click();
      break;
    case "t":
      nextTheme();
      break;
    default:
      return;
  }
  e.preventDefault();
});

// --- the beginning -------------------------------------------------------------------------------------------------------

api.addEventListener("state", () => {
  if (api.state === "signed-out") return signIn();
  if (api.state === "online" && !shell) {
    build();
    route(false);
  }
  if (!shell && api.state === "offline") {
    swap(document.body, h("main", { class: "sign-in" }, h("div", { class: "card" }, brand(), h("h1", {}, "The relay is not reached"), h("p", {}, "Trying again…"), h("button", { type: "button", class: "primary", onclick: () => api.retry() }, "Try now"))));
  }
  connection();
});

// Another role has other pages: what was shown is built anew.
api.addEventListener("me", () => {
  if (!shell) return;
  for (const d of document.querySelectorAll("dialog")) d.close();
  build();
  shown = "";
  route(false);
});

// A relay of another version has another page.
let version = "";
live.addEventListener("figures", async () => {
  if (live.asked === api.me) return;
  live.asked = api.me;
  try {
    const v = (await api.call("relay/Version")).version;
    if (version && version !== v) {
      open("The relay was updated", (close) => h("div", {}, h("p", {}, "This page is of the version before. Load it anew to have the one that belongs to the relay."),
        h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => close() }, "Later"), h("button", { type: "button", class: "primary", onclick: () => location.reload() }, "Load anew"))));
    }
    version = v;
  } catch {
    // The overview says the version, too.
  }
});

swap(document.body, h("main", { class: "sign-in" }, h("p", { class: "loading", role: "status" }, "Connecting to the relay…")));
api.begin();
