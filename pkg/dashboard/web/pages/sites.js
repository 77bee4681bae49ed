// Sites: their sessions and links, and what one can do to them.
import { h, link } from "../dom.js";
import { SiteList } from "../sitelist.js";
import { throughput } from "../throughput.js";
import { invite } from "../invite.js";

export function sites(scope) {
  const { api } = scope;
  const [only = ""] = scope.parts;
  const problem = scope.problem();
  let refresh = () => {};
  const list = new SiteList(scope, { manage: true, only, refresh: () => refresh() });
  refresh = scope.poll("sites/List", {}, 3, (all) => list.update(all || []), problem.set);
  scope.figures((live) => list.figures(live));
  const filter = scope.filter("Filter sites", "Filter by name, address", () => list.filter(filter.value));
  if (!only) list.filter(filter.value);
  return {
    title: only || "Sites",
    above: only ? h("div", { class: "crumb" }, link("#/sites", "Sites")) : null,
    actions: [only ? null : filter, api.may("admin") && !only ? h("button", { type: "button", class: "primary", onclick: () => invite(api, { done: refresh }) }, "Invite a site") : null],
    element: h("div", {}, problem.element, only ? h("section", { class: "card", "aria-labelledby": "traffic" }, throughput(scope, "traffic", "Traffic", { site: only })) : null, h("section", { "aria-labelledby": "list" }, h("h2", { id: "list", class: "unseen" }, only ? "Sessions and links" : "All sites"), list.element)),
  };
}
