// What the relay says of itself each second, and the last minutes of it.

const minutes = 300; // figures of the whole relay that are kept
const minute = 60; // of each site and each service

// Ring keeps the last values of something.
export class Ring {
  #values;
  #next = 0;
  length = 0;

  constructor(size) {
    this.#values = new Float32Array(size);
  }

  push(v) {
    this.#values[this.#next] = Number.isFinite(v) ? v : 0;
    this.#next = (this.#next + 1) % this.#values.length;
    this.length = Math.min(this.#values.length, this.length + 1);
  }

  // array has them, the oldest first.
  array() {
    const from = (this.#next - this.length + this.#values.length) % this.#values.length;
    return Array.from({ length: this.length }, (_, i) => this.#values[(from + i) % this.#values.length]);
  }
}

export const keyOf = (site, service) => `${site}\n${service}`;

// Live tells of new figures by the event "figures", of alerts by "alerts", and of a relay that begins to drain by "draining".
export class Live extends EventTarget {
  figures = null;
  total = { visitors: new Ring(minutes), streams: new Ring(minutes), requests: new Ring(minutes), in: new Ring(minutes), out: new Ring(minutes) };
  now = { in: NaN, out: NaN, requests: NaN };
  sites = new Map(); // by name: {in, out, figures}
  services = new Map(); // by keyOf: {in, out, figures}
  alerts = null; // those that are not resolved; null: not known
  draining = false; // as the relay has said last
  first = true; // the figures are the first since one looks: their rates are none
  #some = []; // requests per second, the last five
  #api;
  #stop = null;
  #timer = 0;

  constructor(api) {
    super();
    this.#api = api;
    document.addEventListener("visibilitychange", () => this.#switch());
    api.addEventListener("state", () => this.#switch());
    this.#switch();
  }

  // switch asks for figures while somebody is looking, and not else.
  #switch() {
    const want = !document.hidden && this.#api.state !== "signed-out" && this.#api.state !== "starting";
    if (want && !this.#stop) {
      this.#stop = this.#api.feed("status/Watch", { every_s: 1 }, (f) => this.#take(f), { began: () => { this.figures = null; this.#drains(false); } });
      this.#timer = setInterval(() => this.refreshAlerts(), 10_000);
      this.refreshAlerts();
    } else if (!want && this.#stop) {
      this.#stop();
      this.#stop = null;
      clearInterval(this.#timer);
      if (this.#api.state === "signed-out") this.#forget();
    } else if (want && this.#api.state === "online") this.refreshAlerts();
  }

  #forget() {
    this.figures = null;
    this.#some = [];
    this.alerts = null;
    this.draining = false;
    this.sites.clear();
    this.services.clear();
    for (const name of Object.keys(this.total)) this.total[name] = new Ring(minutes);
  }

  async refreshAlerts() {
    if (this.#api.state !== "online") return;
    try {
      this.setAlerts((await this.#api.call("alerts/List")) || []);
    } catch (e) {
      if (e.code === 404) this.setAlerts([]);
    }
  }

  // setAlerts is told what alerts there are, by whoever has asked.
  setAlerts(alerts) {
    this.alerts = alerts.filter((a) => !a.resolved);
    this.dispatchEvent(new Event("alerts"));
  }

  #drains(draining) {
    if (this.draining === draining) return;
    this.draining = draining;
    this.dispatchEvent(new Event("draining"));
  }

  #take(f) {
    const last = this.figures;
    f.sites ||= [];
    f.services ||= [];
    this.figures = f;
    this.#drains(Boolean(f.draining));
    const seconds = last ? (Date.parse(f.time) - Date.parse(last.time)) / 1000 : 0;
    let came = 0;
    let went = 0;
    for (const s of f.sites) {
      came += s.in;
      went += s.out;
    }
    this.now = { in: came, out: went, requests: NaN };
    if (seconds > 0 && f.requests >= last.requests) this.#some.push((f.requests - last.requests) / seconds);
    // A request every two seconds is not none, and then one.
    if (this.#some.length > 5) this.#some.shift();
    this.now.requests = this.#some.length ? this.#some.reduce((n, x) => n + x, 0) / this.#some.length : NaN;
    this.first = !last;
    if (!this.first) {
      this.total.visitors.push(f.visitors);
      this.total.streams.push(f.streams);
      this.total.requests.push(this.now.requests);
      this.total.in.push(came);
      this.total.out.push(went);
      if (this.total.in.length === 1) this.#remember();
    }
    this.#keep(this.sites, f.sites, (s) => s.name);
    this.#keep(this.services, f.services, (s) => keyOf(s.site, s.name));
    this.dispatchEvent(new Event("figures"));
  }

  // remember fills the minutes before somebody began to look, as far as the relay has them by the second.
  async #remember() {
    let past;
    try {
      past = await this.#api.call("history/Get", { span_s: minutes });
    } catch {
      return; // there is no past, then
    }
    if (past.step_s > 1.5) return;
    for (const name of ["in", "out", "visitors", "requests"]) {
      const seen = this.total[name].array();
      const all = new Ring(minutes);
      for (const v of [...(past[name] || []).slice(0, -seen.length || undefined), ...seen]) all.push(v);
      this.total[name] = all;
    }
  }

  #keep(map, list, key) {
    const there = new Set();
    for (const f of list) {
      const k = key(f);
      there.add(k);
      let kept = map.get(k);
      if (!kept) map.set(k, (kept = { in: new Ring(minute), out: new Ring(minute) }));
      kept.figures = f;
      if (this.first) continue;
      kept.in.push(f.in);
      kept.out.push(f.out);
    }
    for (const k of map.keys()) if (!there.has(k)) map.delete(k);
  }
}
