// Elements, made by hand: text is always text.
import { plain } from "./format.js";

// h makes an element. Attributes that are functions listen (onclick), true ones are set, false and null ones left out.
export function h(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") e.addEventListener(name.slice(2), value);
    else if (value === true) e.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) e.setAttribute(name, value);
  }
  put(e, children);
  return e;
}

// put appends children, whatever they are.
export function put(e, children) {
  for (const c of children.flat(Infinity)) {
    if (c === null || c === undefined || c === false) continue;
    e.append(c instanceof Node ? c : plain(c));
  }
}

// say sets the text of an element if it is another one, so that nothing is drawn, or read aloud, for nothing.
export function say(e, text) {
  text = plain(text);
  if (e.textContent !== text) e.textContent = text;
}

// swap replaces what is in an element.
export function swap(e, ...children) {
  e.replaceChildren();
  put(e, children);
  return e;
}

const shapes = {
  overview: "M2 9l6-6 6 6M4 8v6h8V8",
  services: "M2 4h12M2 8h12M2 12h12",
  streams: "M1 5c2.300-2 4.700-2 7 0s4.700 2 7 0M1 11c2.300-2 4.700-2 7 0s4.700 2 7 0",
  visitors: "M8 8a3 3 0 100-6 3 3 0 000 6zM2 14c.600-3 3-4 6-4s5.400 1 6 4",
  requests: "M2 5h10M9 2l3 3-3 3M14 11H4M7 8l-3 3 3 3",
  sites: "M2 14V6l4-3v11M6 14V5h8v9M1 14h14M9 8h2M9 11h2",
  certificates: "M3 2h10v8H3zM8 10v5l-2-1M8 15l2-1M5.500 5h5M5.500 7.500h3",
  alerts: "M8 2a4 4 0 014 4v3l1.500 3h-11L4 9V6a4 4 0 014-4zM6.500 14h3",
  access: "M10.500 9.500a3.500 3.500 0 10-3.200-2L2 12.800V14h3v-2h2l1.300-1.300M11 5.500h.010",
  log: "M3 2h10v12H3zM5.500 5h5M5.500 8h5M5.500 11h3",
  audit: "M8 1.500l5.500 2v4c0 3.500-2.300 6-5.500 7-3.200-1-5.500-3.500-5.500-7v-4zM5.500 8l2 2 3.500-4",
  maintenance: "M10 2a4 4 0 00-3.500 5.500L2 12l2 2 4.500-4.500A4 4 0 0014 6l-2.500 1.500-2-.500-.500-2z",
  menu: "M2 4h12M2 8h12M2 12h12",
  sun: "M8 11a3 3 0 100-6 3 3 0 000 6zM8 1v1.500M8 13.500V15M1 8h1.500M13.500 8H15M3 3l1 1M12 12l1 1M3 13l1-1M12 4l1-1",
  out: "M6 2H2v12h4M10 5l3 3-3 3M13 8H6",
  keys: "M1.500 4h13v8h-13zM4 6.500h.010M6.700 6.500h.010M9.300 6.500h.010M12 6.500h.010M5 9.500h6",
  close: "M3.500 3.500l9 9M12.500 3.500l-9 9",
};

// icon is a picture beside a text that says the same.
export function icon(name) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(ns, "path");
  path.setAttribute("d", shapes[name]);
  svg.append(path);
  return svg;
}

const stateTones = {
  connected: "good", active: "good", live: "good", valid: "good", ok: "good", open: "good",
  standby: "calm", leaving: "warn", suspended: "warn", expiring: "warn", draining: "warn", ordering: "calm",
  away: "bad", failed: "bad", expired: "bad",
  invited: "idle", none: "idle",
};
const stateWords = { standby: "stand-by" };

// pill is a state: a colour, and the word for those who do not see it. Its set takes another one.
export function pill(state, word) {
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const text = h("span");
  const e = h("span", { class: "pill" }, dot, text);
  e.set = (state, word) => {
    const tone = stateTones[state] || "idle";
    if (e.dataset.tone !== tone) e.dataset.tone = tone;
    say(text, word || stateWords[state] || state);
  };
  e.set(state, word);
  return e;
}

export const mono = (text, title) => h("span", { class: "mono", title: title ? plain(title) : null }, text);

// link is a link to a page of ours.
export const link = (to, ...children) => h("a", { href: to }, ...children);

// path makes a hash route of its parts.
export const path = (...parts) => "#/" + parts.map(encodeURIComponent).join("/");

// outside is a link to a published URL, if browsers open such; text otherwise. The text is the URL as it is.
export function outside(url) {
  if (/^https?:\/\/[^\s*<>"\\]+$/.test(url || "")) {
    return h("a", { href: url, target: "_blank", rel: "noopener noreferrer", class: "mono" }, url);
  }
  return mono(url || "operators only");
}

// copyable shows a text that one takes elsewhere: a command, a token.
export function copyable(text, label) {
  const button = h("button", {
    type: "button",
    class: "small",
    "aria-label": `Copy ${label}`,
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        say(button, "Copied");
      } catch {
        // Without https there is no clipboard: the text is selected, so that Ctrl-C takes it.
        getSelection().selectAllChildren(code);
        say(button, "Selected");
      }
      announce(button.textContent);
      setTimeout(() => say(button, "Copy"), 2000);
    },
  }, "Copy");
  const code = h("code");
  code.textContent = text.split("\n").map(plain).join("\n");
  return h("div", { class: "copyable" }, code, button);
}

// empty says what to do where there is nothing to see.
export const empty = (title, ...more) => h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), ...more);

// announce has a screen reader say something when it is idle.
export function announce(text) {
  let polite = document.querySelector("#announce");
  if (!polite) document.body.append((polite = h("div", { class: "unseen", role: "status", "aria-live": "polite", id: "announce" })));
  polite.textContent = "";
  setTimeout(() => say(polite, text), 50);
}
