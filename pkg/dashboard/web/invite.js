// Inviting a site, or a stand-by of one.
import { h, copyable } from "./dom.js";
import { ask, tell } from "./dialog.js";
import { moment } from "./format.js";

const lives = [["3600", "1 hour"], ["86400", "24 hours"], ["604800", "7 days"], ["2592000", "30 days"]];

export async function invite(api, { site = "", done = () => {} } = {}) {
  const life = { name: "ttl", label: "The token is good for", options: lives, value: "86400" };
  const made = await ask(site ? {
    title: `Add a stand-by to ${site}`, button: "Make the token",
    text: ["One more private relay of the same site, on another machine: it takes over when the active one is gone. It may publish what the site may."],
    fields: [life],
    act: ({ ttl }) => api.call("sites/Invite", { name: site, standby: true, ttl_s: Number(ttl) }),
  } : {
    title: "Invite a site", button: "Make the token",
    fields: [
      { name: "name", label: "Name", required: true, placeholder: "office" },
      { name: "publish", label: "May publish", type: "textarea", required: true, placeholder: "https://*.example.com", hint: "One URL pattern a line, such as https://*.example.com, tcp://:15000-15999 or udp://:5514." },
      life,
    ],
    act: ({ name, publish, ttl }) => api.call("sites/Invite", { name, publish: publish.split(/[\s,]+/).filter(Boolean), ttl_s: Number(ttl) }),
  });
  if (made) await invite.show(made, site ? `Stand-by for ${site}` : `${made.site} is invited`);
  done();
}

// show shows a token, which the relay tells once.
invite.show = (made, title) => tell(title,
  h("p", {}, h("strong", {}, "The token is shown this once. "), `It is good for one private relay, until ${moment(made.expires)}.`),
  copyable(made.token, "the token"),
  h("h3", {}, "On a machine of the closed network"),
  h("p", {}, "Give the command the token when it asks, or in CULVERT_TOKEN:"),
  copyable("relay-private join --dir /etc/culvert", "the command that joins"),
  copyable("relay-private --config /etc/culvert/private.toml", "the command that runs it"));
