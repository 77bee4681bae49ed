// One request: what was said, and saying it again.
import { h, say, swap, link, path, mono, pill, empty } from "../dom.js";
import { moment, millis, bytes, count, plain } from "../format.js";
import { statusMark, timing } from "./requests.js";
import { ask, toast } from "../dialog.js";

const pictures = { "image/png": 1, "image/jpeg": 1, "image/gif": 1, "image/webp": 1, "image/avif": 1 };
const mostText = 200_000; // characters that are shown of a body
const mostHex = 16_384; // bytes

const header = (fields, name) => (fields || []).find((f) => f.name.toLowerCase() === name)?.value || "";

function bytesOf(body) {
  if (body.base64) {
    try {
      return Uint8Array.from(atob(body.base64), (c) => c.charCodeAt(0));
    } catch {
      return new Uint8Array();
    }
  }
  return new TextEncoder().encode(body.text || "");
}

function hex(b) {
  const lines = [];
  for (let i = 0; i < Math.min(b.length, mostHex); i += 16) {
    const row = [...b.slice(i, i + 16)];
    const codes = row.map((x) => x.toString(16).padStart(2, "0"));
    lines.push(`${i.toString(16).padStart(6, "0")}  ${codes.slice(0, 8).join(" ").padEnd(23)}  ${codes.slice(8).join(" ").padEnd(23)}  ${row.map((x) => (x >= 32 && x < 127 ? String.fromCharCode(x) : ".")).join("")}`);
  }
  if (b.length > mostHex) lines.push(`… ${count(b.length - mostHex)} more bytes`);
  return lines.join("\n");
}

// lines is a text of several lines whose characters are all harmless.
const lines = (s) => s.slice(0, mostText).split(/\r?\n/).map((l) => plain(l.replaceAll("\t", "  "))).join("\n") + (s.length > mostText ? "\n…" : "");

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return null;
  }
}

// bodyOf shows a body in the forms that fit it.
function bodyOf(scope, body, type, what) {
  body = body || { size: 0 };
  const notes = [h("span", { class: "muted num" }, `${bytes(body.size)}${type ? `, ${type}` : ""}`)];
  if (body.redacted) notes.push(pill("suspended", "Secrets are redacted"));
  if (body.truncated) notes.push(pill("invited", "Only the beginning was kept"));
  if (!body.size && !body.text && !body.base64) return h("div", { class: "body" }, h("p", { class: "muted none" }, "No body."));
  const b = bytesOf(body);
  if (!b.length) return h("div", { class: "body" }, h("div", { class: "body-notes" }, notes), h("p", { class: "muted none" }, "It was not kept."));
  const text = body.base64 ? new TextDecoder().decode(b) : body.text;
  const media = type.split(";")[0].trim().toLowerCase();
  const forms = [];
  const nice = !body.base64 && pretty(text);
  const pre = (s) => h("pre", { tabindex: "0", "aria-label": what }, h("code", {}, lines(s)));
  // The pre's lines are made harmless line by line: said as they are.
  const shown = (s) => { const e = pre(""); e.firstChild.textContent = lines(s); return e; };
  if (pictures[media] && !body.truncated) {
    forms.push(["Picture", () => {
      const url = URL.createObjectURL(new Blob([b], { type: media }));
      scope.onEnd(() => URL.revokeObjectURL(url));
      return h("img", { class: "picture", src: url, alt: `the picture of ${what}` });
    }]);
  }
  if (nice) forms.push(["JSON", () => shown(nice)]);
  if (!body.base64) forms.push(["Text", () => shown(text)]);
  forms.push(["Hex", () => shown(hex(b))]);
  const place = h("div");
  const tabs = h("div", { class: "choice", role: "group", "aria-label": `Form of ${what}` }, forms.map(([name, make], i) => {
    const t = h("button", { type: "button", "aria-pressed": String(i === 0), onclick: () => {
      for (const o of tabs.children) o.setAttribute("aria-pressed", String(o === t));
      place.replaceChildren(make());
    } }, name);
    return t;
  }));
  place.append(forms[0][1]());
  return h("div", { class: "body" }, h("div", { class: "body-notes" }, tabs, notes), place);
}

// headers shows a head. Beside is another one: what differs is marked, with a word.
function headers(fields, what, beside) {
  if (!fields?.length) return h("p", { class: "muted none" }, "No headers were kept.");
  const others = beside && new Map();
  for (const f of beside || []) others.set(f.name.toLowerCase(), [...(others.get(f.name.toLowerCase()) || []), f.value]);
  return h("table", { class: "headers" }, h("caption", { class: "unseen" }, what), h("tbody", {}, fields.map((f) => {
    const other = others?.get(f.name.toLowerCase());
    const mark = !others ? null : !other ? "new" : other.includes(f.value) ? null : "changed";
    const redacted = /^\[?(redacted|•+|\*{3,}).*$/i.test(f.value) || f.value.includes("[redacted]");
    return h("tr", { class: mark ? "differs" : null }, h("th", { scope: "row" }, f.name, mark ? h("span", { class: "mark" }, ` ${mark}`) : null), h("td", {}, redacted ? h("span", { class: "redacted" }, f.value) : f.value));
  })));
}

const half = (title, ...content) => h("section", { class: "card half" }, h("h2", {}, title), content);

function head(r) {
  const mark = statusMark();
  mark.set(r);
  return h("p", { class: "line" }, mark, " ", h("span", { class: "muted" }, r.proto || ""), r.word ? [" ", h("span", { class: "word" }, r.word)] : null,
    h("span", { class: "num muted" }, ` waited ${millis(r.wait_ms)}, took ${millis(r.took_ms)}`));
}

// answerOf shows the answer of an exchange.
function answerOf(scope, x, title, beside) {
  return half(title, head(x), headers(x.response_header, `Headers of the ${title.toLowerCase()}`, beside?.response_header),
    bodyOf(scope, x.response_body, header(x.response_header, "content-type"), `the body of the ${title.toLowerCase()}`));
}

export function inspector(scope, id) {
  const { api } = scope;
  const above = h("div", { class: "crumb" }, link("#/requests", "Requests"));
  if (!api.may("operator")) return { title: "Request", above, element: h("p", {}, `What was said in a request needs the role operator. Yours is ${api.me.role}.`) };
  const problem = h("div");
  const title = h("span", {}, "Request");
  const content = h("div", {}, h("p", { class: "loading" }, "Loading…"));
  const replays = h("div", { class: "replays" });
  let exchange = null;
  let n = 0;

  const again = h("button", { type: "button", class: "primary", hidden: true, onclick: async () => {
    const r = exchange;
    const safe = ["GET", "HEAD", "OPTIONS"].includes(r.method);
    const run = () => api.call("requests/Replay", { id });
    let answer;
    if (safe) {
      again.setAttribute("aria-busy", "true");
      try {
        answer = await run();
      } catch (e) {
        toast(e.message, "bad");
      } finally {
        again.removeAttribute("aria-busy");
      }
    } else {
      answer = await ask({ title: `Send this ${r.method} again?`, button: "Send it again", danger: true, text: [`${r.method} ${r.host}${r.path} goes to ${r.site}/${r.service} once more, and may change something there a second time.`], act: run });
    }
    if (!answer || scope.ended) return;
    n++;
    const h2 = h("h2", { tabindex: "-1" }, `Replay ${n}`, h("span", { class: "muted" }, ` at ${moment(answer.time || Date.now())}`));
    const same = answer.status === r.status;
    swap(replays, h("div", { class: "section-head" }, h2, h("span", {}, same ? pill("ok", "The same status") : pill("failed", `${r.status} before, ${answer.status} now`))),
      h("div", { class: "halves" }, answerOf(scope, r, "Answer before"), answerOf(scope, answer, "Answer now", r)));
    h2.focus();
    h2.scrollIntoView({ block: "start" });
  } }, "Replay");

  scope.poll("requests/Get", { id }, 0, (x) => {
    if (exchange) return; // it does not change
    exchange = x;
    again.hidden = false;
    swap(title, h("span", { class: "method" }, x.method), " ", mono(x.path.length > 120 ? x.path.slice(0, 120) + "…" : x.path));
    document.title = `${x.method} ${plain(x.path.slice(0, 60))} · Culvert`;
    const bar = timing();
    bar.set(x, x.took_ms);
    const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
    swap(content,
      h("section", { class: "card", "aria-label": "Summary" }, h("dl", { class: "facts" },
        fact("URL", mono(x.host + x.path)), fact("Service", link(path("services", x.site, x.service), `${x.site}/${x.service}`)), fact("From", mono(x.remote)), fact("When", moment(x.time)),
        fact("Until the head", millis(x.wait_ms)), fact("Until the end", millis(x.took_ms), " ", bar), fact("Bytes", `${bytes(x.received)} from the visitor, ${bytes(x.sent)} to the visitor`))),
      h("div", { class: "halves" },
        half("Request", h("p", { class: "line" }, h("span", { class: "method" }, x.method), " ", mono(x.path), " ", h("span", { class: "muted" }, x.proto || "")), headers(x.request_header, "Headers of the request"),
          bodyOf(scope, x.request_body, header(x.request_header, "content-type"), "the body of the request")),
        answerOf(scope, x, "Answer")));
  }, (e) => {
    if (!e || exchange) return;
    swap(content, empty(e.message, e.code === 404 ? h("p", {}, "A service's requests are kept if its site says so: ", h("code", {}, "inspect = true"), " beside the service in ", h("code", {}, "private.toml"), ". They are kept in memory, and the oldest are forgotten first.") : null));
  });
  return { title, above, actions: again, element: h("div", {}, problem, content, replays) };
}
