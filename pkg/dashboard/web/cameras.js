// Looking for cameras on the network of a site.
import { h, mono, copyable } from "./dom.js";
import { ask, tell } from "./dialog.js";

const most = 64; // that are shown
const mostStreams = 8; // of each

export async function findCameras(api, site) {
  const found = await ask({
    title: `Look for cameras at ${site}?`, button: "Look",
    text: [h("p", {}, "Its private relay looks for ONVIF cameras on its network, which takes some seconds. The site allows it with ", h("code", {}, "discovery = true"), " in its ", h("code", {}, "private.toml"), ".")],
    fields: [
      { name: "user", label: "User", hint: "For cameras that tell only users what they show. It may be empty." },
      { name: "password", label: "Password", type: "password" },
    ],
    act: ({ user, password }) => api.call("sites/Cameras", user ? { site, user, password } : { site }),
  });
  if (!found) return;
  const devices = [found.devices || []].flat();
  const device = (d) => h("li", {},
    h("h3", {}, d.name || d.hardware || d.address, " ", mono(d.address)),
    h("p", { class: "hint" }, [d.hardware, d.location].filter(Boolean).join(", ")),
    d.problem ? h("p", { class: "error" }, d.problem) : null,
    (d.streams || []).slice(0, mostStreams).map((s) => [
      h("p", {}, [s.profile, s.codec, s.width && `${s.width} × ${s.height}`].filter(Boolean).join(", ")),
      copyable(s.url, `the URL of ${s.profile || "this stream"} of ${d.name || d.address}`),
    ]));
  await tell(`Cameras at ${site}`, devices.length
    ? [h("p", {}, "A service of the site with one of these URLs as its ", h("code", {}, "target"), " publishes it."), h("ul", { class: "devices" }, devices.slice(0, most).map(device)), devices.length > most ? h("p", {}, `And ${devices.length - most} more.`) : null]
    : h("p", {}, "None has answered."));
}
