// Questions that have to be answered before anything else: modal, closed by Esc, and the focus stays within.
import { h, say, announce } from "./dom.js";

// open shows a dialog and resolves when it is closed, with what close was given; Esc is null. fill gets close and
// returns what is in the dialog.
export function open(title, fill, { wide = false } = {}) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    let result = null;
    const id = `dialog-${Math.random().toString(36).slice(2)}`;
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const dialog = h("dialog", { class: wide ? "wide" : null, "aria-labelledby": id },
      h("h2", { id }, title), fill(close));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before && before.isConnected) before.focus();
      else document.querySelector("main h1")?.focus();
      resolve(result);
    });
    dialog.addEventListener("keydown", (e) => keep(e, dialog));
    document.body.append(dialog);
    dialog.showModal();
    (dialog.querySelector("[autofocus]") || dialog.querySelector("input, select, textarea, button"))?.focus();
  });
}

// keep moves the focus around within a dialog.
function keep(e, dialog) {
  if (e.key !== "Tab") return;
  const all = [...dialog.querySelectorAll("a[href], button, input, select, textarea, [tabindex='0']")].filter((x) => !x.disabled && x.getClientRects().length);
  if (!all.length) return;
  const [first, last] = [all[0], all.at(-1)];
  if (e.shiftKey && document.activeElement === first) {
    e.preventDefault();
    last.focus();
  } else if (!e.shiftKey && document.activeElement === last) {
    e.preventDefault();
    first.focus();
  }
}

// ask shows a form and does what it is for. fields are {name, label, hint, type, value, options, required, placeholder};
// act gets their values, and what it throws is shown in the dialog, which stays open. It resolves to act's answer, null if
// there was none. typed is a word that has to be typed before the button works.
export function ask({ title, text = [], fields = [], typed = "", button, danger = false, act }) {
  return open(title, (close) => {
    const error = h("p", { class: "error", role: "alert" });
    const inputs = {};
    const rows = fields.map((f) => {
      const id = `field-${f.name}`;
      const attributes = { id, name: f.name, required: f.required || null, placeholder: f.placeholder, autocomplete: "off", spellcheck: "false", "aria-describedby": f.hint ? id + "-hint" : null };
      let input;
      if (f.options) input = h("select", attributes, f.options.map(([value, label]) => h("option", { value, selected: value === f.value }, label)));
      else if (f.type === "textarea") input = h("textarea", { ...attributes, rows: "3" });
      else input = h("input", { ...attributes, type: f.type || "text" });
      if (f.type === "checkbox") input.checked = Boolean(f.value);
      else if (!f.options && f.value) input.value = f.value;
      inputs[f.name] = input;
      const label = h("label", { for: id }, f.label);
      const hint = f.hint ? h("p", { class: "hint", id: id + "-hint" }, f.hint) : null;
      return f.type === "checkbox" ? h("div", { class: "field check" }, h("div", {}, input, label), hint) : h("div", { class: "field" }, label, input, hint);
    });
    let word = null;
    if (typed) {
      word = h("input", { id: "field-typed", type: "text", autocomplete: "off", spellcheck: "false", autocapitalize: "off", oninput: () => (go.disabled = word.value !== typed) });
      rows.push(h("div", { class: "field" }, h("label", { for: "field-typed" }, "Type ", h("strong", { class: "mono" }, typed), " to confirm"), word));
    }
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: Boolean(typed) }, button);
    const cancel = h("button", { type: "button", autofocus: !fields.length && !typed, onclick: () => close(null) }, "Cancel");
    let busy = false;
    const submit = async (e) => {
      e.preventDefault();
      if (busy || (typed && word.value !== typed)) return;
      busy = true;
      go.setAttribute("aria-busy", "true");
      say(error, "");
      const values = {};
      for (const f of fields) values[f.name] = f.type === "checkbox" ? inputs[f.name].checked : inputs[f.name].value.trim();
      try {
        const answer = await act(values);
        close(answer === undefined ? true : answer);
      } catch (e) {
        say(error, e.message);
      } finally {
        busy = false;
        go.removeAttribute("aria-busy");
      }
    };
    return h("form", { onsubmit: submit, method: "dialog" },
      [text].flat().map((t) => (t instanceof Node ? t : h("p", {}, t))), rows, error,
      h("div", { class: "buttons" }, cancel, go));
  });
}

// tell shows something until it is closed.
export const tell = (title, ...children) =>
  open(title, (close) => h("div", {}, children, h("div", { class: "buttons" }, h("button", { type: "button", class: "primary", onclick: () => close(true) }, "Done"))), { wide: true });

// toast says what has been done, at the edge, for a while.
export function toast(text, tone = "good") {
  let box = document.querySelector("#toasts");
  if (!box) document.body.append((box = h("div", { id: "toasts" })));
  const e = h("div", { class: "toast", "data-tone": tone }, text);
  box.append(e);
  while (box.childElementCount > 3) box.firstChild.remove();
  announce(text);
  setTimeout(() => e.remove(), 6000);
}
