// What a page has asked for, and what ends when one leaves it.
import { h } from "./dom.js";

export class Scope {
  #ends = [];
  ended = false;

  constructor(api, live, parts, query, moved) {
    this.api = api;
    this.live = live;
    this.parts = parts; // of the route, behind the section
    this.query = query;
    this.moved = moved; // is called when the address was changed
  }

  end() {
    this.ended = true;
    for (const f of this.#ends.splice(0)) f();
  }

  onEnd(f) {
    this.#ends.push(f);
  }

  // on listens for as long as the page is there.
  on(target, type, f) {
    target.addEventListener(type, f);
    this.onEnd(() => target.removeEventListener(type, f));
  }

  every(ms, f) {
    const timer = setInterval(f, ms);
    this.onEnd(() => clearInterval(timer));
  }

  feed(name, input, take, more) {
    const stop = this.api.feed(name, input, (e) => this.ended || take(e), more);
    this.onEnd(stop);
    return stop;
  }

  // remember makes a choice part of the address: who comes back, or opens a link, finds the page as it was.
  remember(name, value) {
    if (value) this.query.set(name, value);
    else this.query.delete(name);
    const query = this.query.toString();
    history.replaceState(null, "", location.hash.split("?")[0] + (query && `?${query}`));
    this.moved();
  }

  // filter is the field that narrows a list.
  filter(label, placeholder, draw) {
    const input = h("input", { type: "search", class: "filter", placeholder, "aria-label": label, value: this.query.get("q") || "", oninput: () => {
      this.remember("q", input.value);
      draw();
    } });
    return input;
  }

  // choice narrows it to one of some options, of which the first is all.
  choice(name, label, options, draw) {
    const select = h("select", { "aria-label": label, onchange: () => {
      this.remember(name, select.selectedIndex > 0 ? select.value : "");
      draw();
    } }, options.map(([value, text]) => h("option", { value }, text)));
    select.value = this.query.get(name) || options[0][0];
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    return select;
  }

  // figures calls f now and with each new figures, at most once a second.
  figures(f) {
    let last = 0;
    this.on(this.live, "figures", () => {
      if (Date.now() - last < 900) return;
      last = Date.now();
      f(this.live);
    });
    if (this.live.figures) f(this.live);
  }

  // poll calls a method now, after each cut, and every so many seconds while somebody looks. It returns a func that does
  // so at once. input may be a func. failed gets what the relay refuses; null, once it does not any more.
  poll(name, input, seconds, take, failed) {
    let busy = false;
    let again = false;
    const ask = async () => {
      if (this.ended || this.api.state !== "online") return;
      if (busy) {
        again = true;
        return;
      }
      busy = true;
      try {
        const answer = await this.api.call(name, typeof input === "function" ? input() : input);
        if (!this.ended) {
          if (failed) failed(null);
          take(answer);
        }
      } catch (e) {
        if (!this.ended && e.code !== 0 && failed) failed(e);
      } finally {
        busy = false;
        if (again) {
          again = false;
          ask();
        }
      }
    };
    ask();
    if (seconds) this.every(seconds * 1000, () => document.hidden || ask());
    this.on(this.api, "state", ask);
    return ask;
  }

  // problem is a line for what a poll cannot have, and the func that poll takes for it.
  problem() {
    const element = h("p", { class: "error", role: "alert", hidden: true });
    const set = (e) => {
      element.hidden = !e;
      const text = e ? e.message : "";
      if (element.textContent !== text) element.textContent = text;
    };
    return { element, set };
  }
}
