// Sites, each with its sessions, and each session with its links.
import { h, say, swap, pill, link, path, mono, empty, copyable } from "./dom.js";
import { Spark } from "./chart.js";
import { plain, millis, rate, count, since, until, bytes, moment } from "./format.js";
import { ask, toast } from "./dialog.js";
import { invite } from "./invite.js";
import { findCameras } from "./cameras.js";

const most = 100; // sites that are shown at once

// short is as much of a session's ID or a key as one compares by eye.
export const short = (id) => String(id || "").slice(0, 8);

// machineOf is a machine as one says it: private relays have an identifier of it, seldom a name.
const machineOf = (s) => (/^[0-9a-f]{16,}$/.test(s.machine || "") ? `machine ${short(s.machine)}` : s.machine || "");

// noSites says how to have the first one.
export function noSites(api) {
  return empty("No site yet. A site is one closed network: invite it, and join it from within.",
    api.may("admin") ? h("p", {}, h("button", { type: "button", class: "primary", onclick: () => invite(api) }, "Invite a site")) : null,
    h("p", {}, "Or in a terminal, here:"), copyable("tunnelctl site add office --publish 'https://*.example.com'", "the command that invites a site"),
    h("p", {}, "and then on a machine of the closed network, with the token that this prints:"), copyable("relay-private join TOKEN --dir /etc/culvert", "the command that joins a site"),
    copyable("relay-private --config /etc/culvert/private.toml", "the command that runs a private relay"));
}

// SiteList shows sites and keeps their elements. manage: with what one can do to them.
export class SiteList {
  #cards = new Map(); // by name
  #scope;
  #manage;
  #sites = null;
  #filter = "";
  #blank = h("div", {}, h("p", { class: "loading" }, "Loading…"));
  #more = h("p", { class: "more", hidden: true });
  #list = h("div", { class: "sites" });

  constructor(scope, { manage, refresh = () => {}, only = "" }) {
    this.#scope = scope;
    this.#manage = manage;
    this.refresh = refresh;
    this.only = only;
    this.element = h("div", {}, this.#blank, this.#list, this.#more);
  }

  filter(text) {
    this.#filter = text.toLowerCase();
    if (this.#sites) this.update(this.#sites);
  }

  update(sites) {
    this.#sites = sites;
    if (sites.length === 0) {
      if (this.#blank.dataset.kind !== "none") swap(this.#blank, noSites(this.#scope.api));
      this.#blank.dataset.kind = "none";
    }
    let shown = sites.filter((s) => !this.only || s.name === this.only);
    if (this.#filter) shown = shown.filter((s) => [s.name, s.state, ...(s.publish || []), ...(s.sessions || []).map((x) => x.remote + " " + x.machine)].join("\n").toLowerCase().includes(this.#filter));
    if (sites.length > 0) {
      const kind = shown.length ? "" : this.only ? "gone" : "filtered";
      if (this.#blank.dataset.kind !== kind) swap(this.#blank, kind === "gone" ? empty(`There is no site ${this.only}.`, h("p", {}, link("#/sites", "All sites"))) : kind ? empty("No site matches the filter.") : null);
      this.#blank.dataset.kind = kind;
    }
    // Those that need somebody come first.
    const rank = { suspended: 0, leaving: 1, away: 2, connected: 3, invited: 4 };
    shown.sort((a, b) => (rank[a.state] ?? 2) - (rank[b.state] ?? 2) || (a.name < b.name ? -1 : 1));
    this.#more.hidden = shown.length <= most;
    say(this.#more, shown.length > most ? `${most} of ${count(shown.length)} sites are shown. Filter to find the others.` : "");
    shown = shown.slice(0, most);
    const names = new Set(shown.map((s) => s.name));
    for (const [name, card] of this.#cards) {
      if (names.has(name)) continue;
      card.element.remove();
      this.#cards.delete(name);
    }
    const stays = this.#list.contains(document.activeElement);
    let cursor = this.#list.firstChild;
    for (const site of shown) {
      let card = this.#cards.get(site.name);
      const isNew = !card;
      if (isNew) {
        card = new Card(this.#scope, this.#manage, this);
        this.#cards.set(site.name, card);
      }
      card.update(site);
      if (card.element === cursor) cursor = cursor.nextSibling;
      else if (isNew || !stays) this.#list.insertBefore(card.element, cursor);
    }
    this.figures(this.#scope.live);
  }

  // figures shows the newest rates.
  figures(live) {
    for (const [name, card] of this.#cards) {
      const kept = live.sites.get(name);
      if (kept) card.figures(kept);
    }
  }
}

const linkTone = (l) => (l.suspect ? "warn" : l.role ? "good" : "idle");

class Card {
  #scope;
  #manage;
  #list;
  #site = null;
  #key = "";

  constructor(scope, manage, list) {
    this.#scope = scope;
    this.#manage = manage;
    this.#list = list;
    this.state = pill("none");
    this.name = h("a", {});
    this.spark = new Spark("out", "in");
    this.number = {};
    const figure = (name, label) => h("div", { class: `figure figure-${name}` }, h("dt", {}, label), (this.number[name] = h("dd", {}, "–")));
    this.body = h("div", { class: "sessions" });
    this.actions = h("div", { class: "actions" });
    this.details = h("div", { class: "site-details" });
    this.element = h("article", { class: "card site" },
      h("div", { class: "site-head" },
        h("h3", {}, this.name, " ", this.state),
        h("dl", { class: "figures" }, figure("rtt", "RTT"), figure("streams", "Streams"), figure("out", "To visitors"), figure("in", "From visitors")),
        this.spark.element, this.actions),
      this.body, this.details);
  }

  update(site) {
    this.#site = site;
    if (this.element.dataset.site !== site.name) {
      this.element.dataset.site = site.name;
      this.name.href = path("sites", site.name);
      say(this.name, site.name);
    }
    this.state.set(site.state);
    say(this.number.rtt, site.rtt_ms ? millis(site.rtt_ms) : "–");
    say(this.number.streams, count(site.streams));
    const sessions = site.sessions || [];
    // Rows are built anew when there are other sessions or links, and not for each number.
    const key = JSON.stringify([site.state, site.invited_until, site.publish, site.keys, sessions.map((s) => [s.id, s.state, s.active, s.remote, s.offers, s.refused, (s.links || []).map((l) => [l.transport, l.role, l.remote, l.suspect, l.since])])]);
    if (key !== this.#key) {
      const focus = this.element.contains(document.activeElement) ? document.activeElement.dataset.act : null;
      this.#key = key;
      this.#build(site, sessions);
      if (focus) (this.element.querySelector(`[data-act="${CSS.escape(focus)}"]`) || this.name).focus();
    }
    for (const s of sessions) {
      const row = this.rows.get(s.id);
      say(row.rtt, s.rtt_ms ? millis(s.rtt_ms) : "–");
      say(row.streams, count(s.streams));
      say(row.since, since(s.connected_since));
      say(row.volume, `${bytes(s.received)} / ${bytes(s.sent)}`);
      (s.links || []).forEach((l, i) => say(row.links[i], l.rtt_ms ? millis(l.rtt_ms) : "–"));
    }
  }

  figures(kept) {
    const f = kept.figures;
    this.state.set(f.state);
    say(this.number.rtt, f.rtt_ms ? millis(f.rtt_ms) : "–");
    say(this.number.streams, count(f.streams));
    say(this.number.out, rate(f.out));
    say(this.number.in, rate(f.in));
    this.spark.set([kept.out.array(), kept.in.array()], 60);
  }

  #build(site, sessions) {
    const { api } = this.#scope;
    const act = (id, label, title, go, danger) => h("button", { type: "button", class: danger ? "small danger-text" : "small", "data-act": id, "aria-label": title, title, onclick: go }, label);
    const may = (role) => this.#manage && api.may(role);
    swap(this.actions, may("operator") && sessions.length ? act("cameras", "Find cameras", `Find cameras at ${site.name}`, () => findCameras(api, site.name)) : null, may("admin") ? [
      site.keys?.length && act("standby", "Add stand-by", `Add a stand-by to ${site.name}`, () => invite(api, { site: site.name, done: this.#list.refresh })),
      site.keys?.length && act("rotate", "Rotate key", `Rotate the key of ${site.name}`, () => this.#rotate()),
      act("revoke", "Revoke", `Revoke ${site.name}`, () => this.#revoke(), true),
    ] : null);
    this.rows = new Map();
    swap(this.body, sessions.length ? sessions.map((s) => this.#session(s, act, may)) : h("p", { class: "muted none" },
      site.state === "invited" ? [Date.parse(site.invited_until) < Date.now() ? "Its join token is good for nothing any more. With another one, on its machine: " : `Its join token ends ${until(site.invited_until)}. On its machine: `, h("code", {}, "relay-private join TOKEN --dir /etc/culvert")]
        : ["No private relay is connected. On its machine, look at ", h("code", {}, "journalctl -u relay-private"), " or run ", h("code", {}, "relay-private --config /etc/culvert/private.toml"), "."]));
    swap(this.details, this.#manage ? h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "May publish"), h("dd", {}, (site.publish || []).map((p) => h("div", {}, mono(p))))),
      h("div", { class: "keys-fact" }, h("dt", {}, "Keys"), h("dd", {}, (site.keys || []).length ? site.keys.map((k) => h("div", { class: "key" }, mono(k), may("admin") && site.keys.length > 1 ? act(`key-${k}`, "Revoke", `Revoke the key ${k} of ${site.name}`, () => this.#revoke(k), true) : null)) : "none yet")),
      site.invited_until ? h("div", {}, h("dt", {}, "Invited until"), h("dd", {}, moment(site.invited_until))) : null,
      h("div", {}, h("dt", {}, "See also"), h("dd", {}, link(`#/services?q=${encodeURIComponent(site.name)}`, "Its services"), ", ", link(`#/streams?q=${encodeURIComponent(site.name)}`, "its streams")))) : null);
  }

  #session(s, act, may) {
    const row = { rtt: h("span", { class: "num" }), streams: h("span", { class: "num" }), since: h("span", { class: "num" }), volume: h("span", { class: "num" }), links: [] };
    this.rows.set(s.id, row);
    const role = s.active ? "active" : "standby";
    const name = `${role === "active" ? "active" : "stand-by"} session ${short(s.id)}${s.machine ? ` on ${machineOf(s)}` : ""}`;
    const dropped = s.state !== "connected" && s.state !== "standby" ? [" ", pill(s.state)] : null;
    return h("div", { class: "session", "data-session": s.id },
      h("div", { class: "session-what" }, pill(role, s.active ? "Active" : "Stand-by"), dropped, " ", mono(short(s.id), s.id), " ", h("span", { class: /^machine /.test(machineOf(s)) ? "on" : "strong", title: plain(s.machine || "") }, machineOf(s)), " ", h("span", { class: "muted" }, [s.software, !(s.links || []).length && s.remote && `last from ${s.remote}`].filter(Boolean).join(", "))),
      h("dl", { class: "session-numbers" },
        h("div", {}, h("dt", {}, "Since"), h("dd", {}, row.since)), h("div", {}, h("dt", {}, "Streams"), h("dd", {}, row.streams)), h("div", {}, h("dt", {}, "RTT"), h("dd", {}, row.rtt)), h("div", {}, h("dt", {}, "From / to the site"), h("dd", {}, row.volume))),
      h("ul", { class: "links", "aria-label": `Links of the ${name}` }, (s.links || []).length ? s.links.map((l) => {
        const rtt = h("span", { class: "num" });
        row.links.push(rtt);
        return h("li", { class: "link-chip", title: `since ${moment(l.since)}` }, h("span", { class: "dot", "data-tone": linkTone(l), "aria-hidden": "true" }), h("b", {}, l.transport === "quic" ? "QUIC" : l.transport === "wss" ? "WSS" : l.transport), h("span", {}, l.suspect ? "suspect" : l.role || "draining"), rtt, h("span", { class: "muted mono" }, l.remote));
      }) : h("li", { class: "muted" }, s.suspended_since ? `no link for ${since(s.suspended_since)}; its streams are kept` : "no link")),
      may("operator") ? h("div", { class: "session-actions" },
        s.active ? null : act(`promote-${s.id}`, "Promote", `Promote the ${name}`, () => this.#promote(s, name)),
        act(`kick-${s.id}`, "Kick", `Kick the ${name}`, () => this.#kick(s, name), true)) : null,
      (s.refused || []).length ? h("p", { class: "refused" }, pill("failed", "Not published"), " ", s.refused.slice(0, 5).map((r, i) => [i ? "; " : "", h("b", {}, r.service), ": ", r.error])) : null);
  }

  async #kick(s, name) {
    const site = this.#site.name;
    const yes = await ask({
      title: `Kick the ${name}?`, button: `Kick ${short(s.id)}`, danger: true,
      text: [`Of the site ${site}. ${s.active ? "Connections that visitors have through it are reset at once." : "It carries no visitors now."} The private relay comes back by itself, in a new session.`],
      act: () => this.#scope.api.call("sessions/Kick", { id: s.id }),
    });
    if (yes) toast(`Kicked the ${name} of ${site}`);
    this.#list.refresh();
  }

  async #promote(s, name) {
    const site = this.#site.name;
    const yes = await ask({
      title: `Promote the ${name}?`, button: `Promote ${short(s.id)}`,
      text: [`Visitors of ${site} who come from now on go to it. What they have under way elsewhere goes on.`],
      fields: [{ name: "cut", type: "checkbox", label: "Reset what is under way elsewhere", hint: "after the relay's drain_timeout" }],
      act: ({ cut }) => this.#scope.api.call("sites/Promote", { name: site, session: s.id, cut }),
    });
    if (yes) toast(`The ${name} of ${site} is active now`);
    this.#list.refresh();
  }

  async #revoke(key) {
    const site = this.#site.name;
    const yes = await ask({
      title: key ? `Revoke a key of ${site}?` : `Revoke ${site}?`, button: key ? "Revoke the key" : "Revoke the site", danger: true, typed: site,
      text: key ? [`Private relays with the key ${short(key.replace(/^ed25519:/, ""))}… are cut off, and cannot come back.`] : ["All its keys and invitations are forgotten. Its private relays are cut off, its visitors with them, and it can only come back with a new invitation."],
      act: () => this.#scope.api.call("sites/Revoke", key ? { name: site, key } : { name: site }),
    });
    if (yes) toast(key ? `Revoked a key of ${site}` : `Revoked ${site}`);
    this.#list.refresh();
  }

  async #rotate() {
    const site = this.#site.name;
    const made = await ask({
      title: `Rotate the key of ${site}?`, button: "Make the token",
      text: ["You get a join token. The keys that the site has are good until it is used, and are forgotten then."],
      act: () => this.#scope.api.call("sites/Rotate", { name: site }),
    });
    if (made) await invite.show(made, `New key for ${site}`);
    this.#list.refresh();
  }
}
