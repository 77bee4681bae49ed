// Maintenance: whether a configuration would do, and the end of the relay.
import { h, say, swap, pill, link, copyable } from "../dom.js";
import { ask, toast } from "../dialog.js";
import { count, many } from "../format.js";

const most = 200 << 10; // bytes of a configuration file, as in tunnelctl
const shown = 8; // services that visitors are still at

export function maintenance(scope) {
  return {
    title: "Maintenance",
    element: h("div", {},
      h("section", { class: "card", "aria-labelledby": "check" }, h("h2", { id: "check" }, "Check a configuration"), check(scope)),
      h("section", { class: "card", "aria-labelledby": "drain" }, h("h2", { id: "drain" }, "Stop the relay"), drain(scope))),
  };
}

function check({ api }) {
  const result = h("div", { class: "result", role: "status" });
  const text = h("textarea", { id: "config", rows: "10", required: true, spellcheck: "false", autocomplete: "off", "aria-describedby": "config-hint", oninput: () => swap(result) });
  const file = h("input", { id: "config-file", type: "file", accept: ".toml,text/plain", onchange: async () => {
    const [f] = file.files;
    if (!f) return;
    swap(result);
    if (f.size > most) swap(result, h("p", { class: "error" }, `${f.name} is larger than ${count(most >> 10)} KiB: it is no configuration file.`));
    else text.value = await f.text();
    file.value = ""; // so that the same one, changed, can be chosen again
  } });
  const button = h("button", { type: "submit", class: "primary" }, "Check");
  const show = (r) => {
    const mistakes = r.mistakes || [];
    const restart = r.restart || [];
    if (!r.ok) swap(result, h("p", {}, pill("failed", many(mistakes.length, "mistake"))), h("ul", { class: "mistakes" }, mistakes.map((m) => h("li", { class: "mono" }, m))));
    else swap(result, h("p", {}, pill("valid", "Good"), " The relay can run with it."),
      restart.length
        ? h("p", {}, h("strong", {}, "It needs a restart: "), "a reload does not change ", restart.map((x, i) => [i ? ", " : "", h("code", {}, x)]), ".")
        : [h("p", {}, "A reload is enough, once it is in its place:"), copyable("systemctl reload relay-public", "the command that reloads the relay")]);
  };
  return h("form", { onsubmit: async (e) => {
    e.preventDefault();
    if (button.getAttribute("aria-busy")) return;
    if (new Blob([text.value]).size > most) return swap(result, h("p", { class: "error" }, `That is more than ${count(most >> 10)} KiB: it is no configuration file.`));
    button.setAttribute("aria-busy", "true");
    try {
      show(await api.call("config/Check", { text: text.value }));
    } catch (e) {
      swap(result, h("p", { class: "error" }, e.message));
    } finally {
      button.removeAttribute("aria-busy");
    }
  } },
    h("p", { class: "hint", id: "config-hint" }, "Nothing is changed by it. Files that it names are those of the relay's machine, and what a reload does not change is told by the configuration that the relay runs with."),
    h("div", { class: "field" }, h("label", { for: "config" }, "Content of ", h("code", {}, "public.toml")), text),
    h("div", { class: "row" }, button, h("label", { class: "file", for: "config-file" }, "or a file:"), file),
    result);
}

function drain(scope) {
  const { api, live } = scope;
  const state = h("p", { role: "status" });
  const open = h("dl", { class: "facts" });
  const button = h("button", { type: "button", class: "danger", onclick: async () => {
    const yes = await ask({
      title: `Stop the relay ${location.host}?`, button: "Stop it", danger: true, typed: "stop",
      text: [h("p", {}, "Nobody new is let in from then on, to no service of any site. Those who are there may finish for up to the relay's ", h("code", {}, "drain_timeout"), "."),
        "Then it ends, and this page is not reached until somebody starts the relay again on its machine."],
      act: () => api.call("relay/Drain"),
    });
    if (yes) toast("The relay drains");
  } }, "Drain and stop");
  const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  let key = "";
  scope.figures(({ figures: f, draining }) => {
    button.disabled = draining;
    say(state, draining ? "It drains: nobody new is let in, and it stops when those who are there have finished." : "It runs. This is what is open:");
    const busy = f.services.filter((s) => s.visitors > 0).sort((a, b) => b.visitors - a.visitors || (`${a.site}/${a.name}` < `${b.site}/${b.name}` ? -1 : 1));
    const now = JSON.stringify([f.visitors, f.streams, busy.slice(0, shown).map((s) => [s.site, s.name, s.visitors]), busy.length]);
    if (now === key) return;
    key = now;
    const focus = open.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    swap(open, fact("Visitors", count(f.visitors)), fact("Streams", count(f.streams)),
      fact("Where they are", busy.length ? h("ul", { class: "plain-list" }, busy.slice(0, shown).map((s) => h("li", {}, link(`#/streams?site=${encodeURIComponent(s.site)}&service=${encodeURIComponent(s.name)}`, `${s.site}/${s.name}`), " ", h("span", { class: "muted" }, many(s.visitors, "visitor")))), busy.length > shown ? h("li", { class: "muted" }, `and ${count(busy.length - shown)} more services`) : null) : "no service"));
    if (focus) (open.querySelector(`[href="${CSS.escape(focus)}"]`) || document.querySelector("main h1")).focus();
  });
  return h("div", {}, state, open, h("p", { class: "hint" }, "To take up another version or configuration, restart it instead: ", h("code", {}, "systemctl restart relay-public"), " drains it, too, and starts it again."), h("div", { class: "row" }, button));
}
