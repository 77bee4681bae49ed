"use strict";

// The document is shown as text throughout: nothing of it is taken for markup.
let doc;

function el(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {})) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

function resolve(schema) {
  const ref = schema && schema.$ref;
  return ref ? doc.components.schemas[ref.split("/").pop()] : schema;
}

// type names a schema in a few words.
function type(schema) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(type).join(" or ");
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  const t = [].concat(schema.type || "any");
  return t.map((one) => {
    if (one === "array") {
      if (schema.prefixItems) return "[" + schema.prefixItems.map(type).join(", ") + "]";
      return "list of " + type(schema.items);
    }
    if (one === "object" && schema.additionalProperties) return "map of " + type(schema.additionalProperties);
    return schema.format && schema.format !== "double" ? one + " (" + schema.format + ")" : one;
  }).join(" or ");
}

function bounds(s) {
  const words = [];
  if (s.default !== undefined) words.push("default " + JSON.stringify(s.default));
  for (const [key, word] of [["minimum", "at least"], ["maximum", "at most"], ["minLength", "at least, long"], ["maxLength", "at most, long"], ["minItems", "at least, items"], ["maxItems", "at most, items"]]) {
    if (s[key] !== undefined && !(key === "minimum" && s[key] === 0)) words.push(word + " " + s[key]);
  }
  return words.join(", ");
}

// example is a value of a schema, for those who have to write one.
function example(schema, depth = 0) {
  schema = resolve(schema) || {};
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf[0], depth + 1);
  switch ([].concat(schema.type)[0]) {
    case "object": {
      const o = {};
      if (depth < 5) for (const [k, v] of Object.entries(schema.properties || {})) o[k] = example(v, depth + 1);
      return o;
    }
    case "array": return depth < 5 ? (schema.prefixItems || [schema.items]).map((s) => example(s, depth + 1)) : [];
    case "integer": case "number": return schema.minimum || 0;
    case "boolean": return false;
    case "string": return schema.format === "date-time" ? "2026-01-02T15:04:05Z" : "";
  }
  return null;
}

// fields lists the parameters of an operation, wherever they go.
function fields(op) {
  const list = (op.parameters || []).map((p) => ({
    name: p.name, where: p.in, required: p.required, doc: p.description,
    schema: p.schema || p.content["application/json"].schema,
  }));
  const body = op.requestBody && resolve(op.requestBody.content["application/json"].schema);
  if (body) {
    const required = body.required || [];
    for (const [name, schema] of Object.entries(body.properties || {})) {
      list.push({ name, where: "body", required: required.includes(name), doc: schema.description, schema });
    }
  }
  return list;
}

async function call(verb, path, list, inputs, out, feed) {
  const query = new URLSearchParams();
  const body = {};
  let has = false;
  try {
    for (const f of list) {
      const text = inputs.get(f.name).value;
      if (f.where === "path") { path = path.replace("{" + f.name + "}", encodeURIComponent(text)); continue; }
      if (text === "") continue;
      if (f.where === "query") { query.append(f.name, text); continue; }
      const s = resolve(f.schema) || {};
      has = true;
      body[f.name] = [].concat(s.type).includes("string") ? text : JSON.parse(text);
    }
  } catch (e) {
    out.textContent = "This is no JSON: " + e.message;
    return;
  }
  const options = { method: verb, headers: {} };
  if (has) { options.headers["Content-Type"] = "application/json"; options.body = JSON.stringify(body); }
  const token = document.getElementById("token").value;
  if (token) options.headers.Authorization = "Bearer " + token;
  const stop = new AbortController();
  options.signal = stop.signal;
  out.textContent = "…";
  try {
    const q = query.toString();
    const res = await fetch(path + (q ? "?" + q : ""), options);
    const head = res.status + " " + res.statusText + "\n" + (res.headers.get("Content-Type") || "") + "\n\n";
    if (feed && res.ok) { // the first events are enough
      const reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      while (text.length < 4000) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        out.textContent = head + text;
      }
      stop.abort();
      return;
    }
    let text = (await res.text()).slice(0, 200000);
    try { text = JSON.stringify(JSON.parse(text), null, 1); } catch { /* it is something else */ }
    out.textContent = head + text;
  } catch (e) {
    if (e.name !== "AbortError") out.textContent = "No answer: " + e.message;
  }
}

function operation(path, verb, op) {
  const list = fields(op);
  const inputs = new Map();
  const rows = list.map((f) => {
    const s = resolve(f.schema) || {};
    const big = ["object", "array"].includes([].concat(s.type)[0]);
    const input = el(big ? "textarea" : "input", { "aria-label": f.name, autocomplete: "off", spellcheck: "false" });
    if (big && f.required) input.value = JSON.stringify(example(f.schema));
    inputs.set(f.name, input);
    return el("tr", null,
      el("td", null, el("code", null, f.name), f.required ? " *" : ""),
      el("td", null, type(f.schema), el("div", { class: "dim" }, [f.where, bounds(f.schema)].filter(Boolean).join(", "))),
      el("td", null, f.doc || "", input));
  });
  const out = el("pre", { hidden: "" });
  const ok = op.responses["200"];
  const [media, content] = Object.entries(ok.content || {})[0] || ["", {}];
  const schema = content["x-event"] || content.schema;
  const feed = media === "application/x-ndjson";
  const button = el("button", { type: "button", onclick: () => { out.hidden = false; call(verb.toUpperCase(), path, list, inputs, out, feed); } }, "Call");
  const body = el("div", { class: "body" },
    op.description ? el("p", { class: "text" }, op.description) : null,
    rows.length ? el("table", null, el("tbody", null, ...rows)) : el("p", { class: "dim" }, "No parameters."),
    el("p", null, (feed ? "Events: " : "Answer: "), media, " ", schema ? type(schema) : ""),
    schema ? el("pre", null, JSON.stringify(example(schema), null, 1)) : null,
    button, out);
  const d = el("details", { id: op.operationId },
    el("summary", null, el("span", { class: "verb" }, verb.toUpperCase()), " ", el("code", null, path), " ", el("span", { class: "dim" }, op.summary || "")),
    body);
  d.dataset.text = (path + " " + (op.summary || "") + " " + (op.description || "")).toLowerCase();
  return d;
}

function show() {
  document.title = doc.info.title;
  document.getElementById("title").textContent = doc.info.title + " " + doc.info.version;
  document.getElementById("bearer").hidden = !doc.security;
  const services = document.getElementById("services");
  services.replaceChildren();
  for (const tag of doc.tags || []) {
    const section = el("section", null, el("h2", null, tag.name), tag.description ? el("p", { class: "text" }, tag.description) : null);
    for (const [path, verbs] of Object.entries(doc.paths)) {
      for (const [verb, op] of Object.entries(verbs)) {
        if (op.tags.includes(tag.name)) section.append(operation(path, verb, op));
      }
    }
    services.append(section);
  }
  if (location.hash) {
    const d = document.getElementById(location.hash.slice(1));
    if (d) { d.open = true; d.scrollIntoView(); }
  }
}

document.getElementById("bearer").addEventListener("submit", (e) => e.preventDefault());
document.getElementById("search").addEventListener("input", (e) => {
  const words = e.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const d of document.querySelectorAll("details")) d.hidden = !words.every((w) => d.dataset.text.includes(w));
});

fetch("openapi.json").then((r) => r.json()).then((d) => { doc = d; show(); }).catch((e) => {
  document.getElementById("services").textContent = "The document could not be read: " + e.message;
});
