// Numbers and times as people read them, each in one form, so that columns align.

const none = "–";

// scale writes n with three digits and a prefix.
function scale(n, unit) {
  const prefixes = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  while (n >= 999.5 && i < prefixes.length - 1) {
    n /= 1000;
    i++;
  }
  const digits = i === 0 || n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2;
  return `${n.toFixed(digits)} ${prefixes[i]}${unit}`;
}

export const bytes = (n) => (Number.isFinite(n) ? scale(Math.max(0, n), "B") : none);
export const rate = (n) => (Number.isFinite(n) ? scale(Math.max(0, n), "B/s") : none);
export const bits = (n) => (Number.isFinite(n) ? scale(Math.max(0, n), "bit/s") : none);

export const count = (n) => (Number.isFinite(n) ? Math.round(n).toLocaleString("en-GB") : none);

// many counts things by their name.
export const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

// part says how many of them are shown.
export const part = (n, all, one, more) => (n < all ? `${count(n)} of ` : "") + many(all, one, more);

// perSecond is for requests: small rates are what one looks for.
export function perSecond(n) {
  if (!Number.isFinite(n)) return none;
  if (n === 0) return "0";
  if (n < 0.1) return "<0.1";
  return n < 10 ? n.toFixed(1) : count(n);
}

export function millis(n) {
  if (!Number.isFinite(n) || n < 0) return none;
  if (n < 10) return `${n.toFixed(1)} ms`;
  if (n < 1000) return `${Math.round(n)} ms`;
  if (n < 60_000) return `${(n / 1000).toFixed(n < 10_000 ? 2 : 1)} s`;
  return span(n / 1000);
}

// span writes seconds in its two largest units.
export function span(s) {
  if (!Number.isFinite(s)) return none;
  s = Math.max(0, Math.round(s));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  if (s < 7 * 86_400) return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
  return `${Math.floor(s / 86_400).toLocaleString("en-GB")} d`;
}

// since is how long ago a time of the API was.
export const since = (t) => (t ? span((Date.now() - Date.parse(t)) / 1000) : none);

// until tells of a time to come, or how long ago it was.
export function until(t) {
  if (!t) return none;
  const s = (Date.parse(t) - Date.now()) / 1000;
  return s >= 0 ? `in ${span(s)}` : `${span(-s)} ago`;
}

const two = (n) => String(n).padStart(2, "0");

export function clock(t) {
  const d = new Date(t);
  return Number.isNaN(d.getTime()) ? none : `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

export function date(t) {
  const d = new Date(t);
  return !t || Number.isNaN(d.getTime()) ? none : `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
}

export const moment = (t) => (t ? `${date(t)} ${clock(t)}` : none);

// plain shows what a stranger has written as one line: no character of it can turn, hide or end the text around it.
export function plain(s) {
  // eslint-disable-next-line no-control-regex
  return String(s ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g, (c) =>
    c === "\t" ? " " : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
