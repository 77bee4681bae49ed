package dashboard

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/memory"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// all are the pages, with their titles, as an admin has them.
var all = []struct{ hash, title string }{
	{"#/overview", "Overview"}, {"#/services", "Services"}, {"#/services/office/api", "office/api"}, {"#/streams", "Streams"}, {"#/visitors", "Visitors"},
	{"#/requests", "Requests"}, {"#/requests/r1", "POST /v1/orders?token=%5Bredacted%5D"}, {"#/sites", "Sites"}, {"#/sites/office", "office"}, {"#/certificates", "Certificates"},
	{"#/alerts", "Alerts"}, {"#/access", "Access"}, {"#/log", "Log"}, {"#/audit", "Audit"}, {"#/maintenance", "Maintenance"},
}

// loaded waits until a page has what it has asked for.
func (b *tab) loaded() {
	b.t.Helper()
	b.wait(`!document.querySelector("main .loading")`)
}

// wants fails unless these changes, and no others, were asked for.
func (b *tab) wants(changes ...string) {
	b.t.Helper()
	if got := b.fake.called(); !slices.Equal(got, changes) {
		b.t.Fatalf("the page has asked for %q, want %q", got, changes)
	}
}

// TestOverview follows a relay on its first page while things happen there.
func TestOverview(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.do(chromedp.Navigate(f.url()))
	b.fill("#token", "cvo_wrong")
	b.press("Sign in")
	b.wait(`document.body.innerText.includes("does not know this token")`)
	b.signIn(auth.Viewer)

	b.sees("office", "warehouse", "lab", "harbour", "relay.example.com", "gw-1", "gw-2", "Stand-by", "3f2a9c01", "QUIC", "suspect",
		"tcp://:9100 is not one of the patterns", "1,843,201", "7 attempts to renew it have failed", "relay-private join TOKEN")
	b.wait(`document.querySelector("#tile-streams .value").innerText === "7"`)
	b.wait(`document.querySelectorAll("[data-site=office] .session").length === 2 && document.querySelectorAll("[data-site=office] .link-chip").length === 4`)
	// Rates are those of the feed: what all services have, give or take the waves.
	b.wait(`/^[0-9.]+ MB\/s$/.test(document.querySelector("#tile-out .value").innerText)`)
	b.wait(`document.querySelector(".chart-text").innerText.includes("To visitors: at most")`)
	b.wait(`document.querySelector(".badge").innerText === "2"`)
	first := eval[string](b, `document.querySelector("[data-site]").dataset.site`)
	if first != "lab" {
		t.Errorf("the first site is %s, want the one that is away", first)
	}

	f.with(func() {
		f.streams = append(f.streams, admin.Stream{ID: "s8", Site: "office", Service: "api", Remote: "203.0.113.99:1", Since: ago(0)})
		f.status.Sites[0].State = admin.StateSuspended
		f.status.Sites[0].Sessions[0].Links = f.status.Sites[0].Sessions[0].Links[:1]
	})
	b.wait(`document.querySelector("#tile-streams .value").innerText === "8"`)
	b.wait(`document.querySelector("[data-site=office] h3 .pill").innerText.trim() === "suspended"`)
	b.wait(`document.querySelectorAll("[data-site=office] .link-chip").length === 2`)

	// Without a site the page says how to have one.
	f.with(func() { f.status.Sites, f.status.Services = nil, nil })
	b.sees("No site yet", "tunnelctl site add office --publish", "relay-private join TOKEN --dir /etc/culvert")
}

// TestServices looks at throughput, of all and of one.
func TestServices(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Viewer)
	b.show("#/services", "Services")
	b.sees("office/files", "warehouse/gate", "https://api.example.com", "tcp://:15432")
	// The busiest are first, and another order is a press away.
	b.wait(`document.querySelector("tbody tr a").innerText === "office/files"`)
	b.press("Service")
	b.wait(`document.querySelector("th[aria-sort=ascending]").innerText === "Service" && document.querySelector("tbody tr a").innerText === "office/api"`)
	b.wait(`/^[0-9.]+ MB\/s$/.test([...document.querySelectorAll("tbody tr")].find((r) => r.innerText.includes("office/files")).querySelector(".rate").innerText)`)
	if links := eval[[]string](b, `[...document.querySelectorAll("tbody a[href^='http']")].map((a) => a.href + " " + a.rel)`); !slices.Contains(links, "https://api.example.com/ noopener noreferrer") || len(links) != 4 {
		t.Errorf("links to published URLs are %q", links)
	}
	b.fill("input.filter", "wareh")
	b.wait(`document.querySelectorAll("tbody tr").length === 2`)
	// The filter is part of the address: it is there when one comes back, and not when one begins anew.
	b.click("tbody a[href^='#/services/']")
	b.wait(`document.querySelector("#tile-out")`)
	eval[bool](b, `(history.back(), true)`)
	b.wait(`document.querySelector("input.filter")?.value === "wareh" && document.querySelectorAll("tbody tr").length === 2`)
	b.click("a[data-section=services]")
	b.wait(`document.querySelector("input.filter").value === "" && document.querySelectorAll("tbody tr").length === 8`)
	b.sees("operators only") // where ssh is published
	b.fill("input.filter", "nothing")
	b.sees("No service matches the filter")

	b.show("#/services/office/api", "office/api")
	b.sees("4 target-refused", "h2c://", "912,044")
	b.wait(`/[kM]B\/s/.test(document.querySelector("#tile-out .value").innerText)`)
	// What is drawn is what is said, also to who does not see it, and by the keys.
	b.wait(`document.querySelector("canvas.chart").getAttribute("aria-label").startsWith("Throughput of office/api. To visitors: at most")`)
	b.focus("canvas.chart")
	b.keys(kb.ArrowLeft)
	b.wait(`document.querySelector(".tip").innerText.includes("To visitors")`)
	b.press("24 h")
	b.press("Requests")
	b.wait(`document.querySelector(".legend").innerText.includes("Errors per second")`)
	b.wait(`((c) => {
		const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", { willReadFrequently: true });
		copy.drawImage(c, 0, 0);
		return copy.getImageData(0, 0, c.width, c.height).data.filter((x, i) => i % 4 === 3 && x > 0).length >= 500;
	})(document.querySelector("canvas.chart"))`)
}

// TestStreams sees them come and go, and ends one.
func TestStreams(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Operate)
	b.show("#/streams", "Streams")
	b.wait(`document.querySelectorAll("tbody tr").length === 7`)
	b.sees("maria", "198.51.100.77:61002", "half-closed")
	f.with(func() {
		f.streams = append(f.streams[1:], admin.Stream{ID: "s9", Site: "office", Service: "intranet", Scheme: "https", Host: "intranet.example.com", Remote: "203.0.113.222:999", Since: ago(0), State: "open"})
	})
	b.sees("203.0.113.222:999")
	b.wait(`!document.querySelector("main").innerText.includes("203.0.113.50:51344")`)

	kick := "Kick the stream of maria to office/ssh"
	b.press(kick)
	b.sees("Kick this stream?", "The forward of maria to office/ssh is reset")
	b.keys(kb.Escape)
	b.wait(`!document.querySelector("dialog") && document.activeElement.getAttribute("aria-label") === "` + kick + `"`)
	b.wants()
	b.press(kick)
	f.with(func() { f.refuse = rest.Errorf(http.StatusConflict, "the stream is ending by itself") })
	b.press("Kick")
	b.sees("the stream is ending by itself") // in the dialog, which stays
	b.wants("kick stream s5")
	b.press("Kick")
	b.wait(`!document.querySelector("dialog") && document.querySelectorAll("tbody tr").length === 6`)
	b.wants("kick stream s5")
	b.wait(`document.activeElement !== document.body`)

	b.fill("input.filter", "database")
	b.wait(`document.querySelectorAll("tbody tr").length === 1 && document.querySelector("#stream-count").innerText === "1 of 6 streams"`)
	b.show("#/visitors", "Visitors")
	b.sees("203.0.113.51", "warehouse/stock")
	b.wait(`[...document.querySelectorAll("tbody tr")].find((r) => r.innerText.includes("203.0.113.51")).querySelector("td.num").innerText === "2"`)
	f.with(func() { f.streams = nil })
	b.sees("No visitor just now")
	b.show("#/streams", "Streams")
	b.sees("Nobody is connected just now")
}

// TestSites does what an admin does: invites, promotes, kicks, rotates, revokes.
func TestSites(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Administer)
	b.show("#/sites", "Sites")
	b.sees("https://*.wh.example.com")

	// Which session is meant is said by the button, the dialog and the call.
	b.press("Kick the stand-by session b81d22f0 on gw-2")
	b.sees("Kick the stand-by session b81d22f0 on gw-2?", "It carries no visitors now")
	b.press("Kick b81d22f0")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("kick session b81d22f05577ac90")
	b.press("Kick the active session 3f2a9c01 on gw-1")
	b.sees("Connections that visitors have through it are reset at once")
	b.press("Kick 3f2a9c01")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("kick session 3f2a9c01d4e8b7a6")

	b.press("Promote the stand-by session b81d22f0 on gw-2")
	b.sees("Visitors of office who come from now on go to it")
	b.click("#field-cut")
	b.press("Promote b81d22f0")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("promote office b81d22f05577ac90 cut=true")
	b.wait(`document.querySelector("[data-site=office] .session").innerText.includes("gw-2")`)
	b.wait(`[...document.querySelectorAll("[data-act^=promote]")].map((x) => x.getAttribute("aria-label")).join() === "Promote the stand-by session 3f2a9c01 on gw-1"`)

	// What cannot be undone has to be typed.
	b.press("Revoke warehouse")
	b.sees("Type warehouse to confirm")
	if !eval[bool](b, `document.querySelector("dialog button.danger").disabled`) {
		t.Error("the button to revoke works before the name is typed")
	}
	b.keys("ware\r")
	b.wants()
	b.keys("house")
	b.press("Revoke the site")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("revoke warehouse ")

	// A token is there while it is shown, and nowhere after.
	b.press("Invite a site")
	b.fill("#field-name", "pier")
	b.fill("#field-publish", "https://*.pier.example.com tcp://:16000")
	f.with(func() { f.refuse = rest.Errorf(http.StatusConflict, "site \"pier\" exists: revoke it first") })
	b.press("Make the token")
	b.sees("revoke it first")
	b.called("invite pier https://*.pier.example.com tcp://:16000 standby=false")
	b.press("Make the token")
	b.sees("cvj_J7kq2v9XbT4mN8wRzYc5LdHsPf3GaEu6", "shown this once", "relay-private join --dir /etc/culvert")
	b.called("invite pier https://*.pier.example.com tcp://:16000 standby=false")
	b.press("Done")
	b.wait(`!document.documentElement.outerHTML.includes("cvj_J7kq2v9XbT4mN8wRzYc5LdHsPf3GaEu6")`)
	b.press("Add a stand-by to office")
	b.press("Make the token")
	b.sees("cvj_J7kq2v9XbT4mN8wRzYc5LdHsPf3GaEu6")
	b.called("invite office  standby=true")
	b.press("Done")
	b.press("Rotate the key of office")
	b.press("Make the token")
	b.sees("cvj_rotate")
	b.called("rotate office")
	b.press("Done")

	b.press("Find cameras at office")
	b.fill("#field-user", "viewer")
	b.fill("#field-password", "sesame")
	b.press("Look")
	b.sees("Cameras at office", "<b data-evil>gate 192.168.7.20", "main, H264, 1920 × 1080", "rtsp://192.168.7.20/main", "it wants a user and a password")
	b.called("cameras office viewer:sesame")
	b.press("Done")

	b.show("#/sites/lab", "lab")
	b.wait(`!document.querySelector("[data-act=cameras]")`) // nobody is there who could look
	b.wait(`document.querySelectorAll("[data-site]").length === 1`)
	b.show("#/sites/nowhere", "nowhere")
	b.sees("There is no site nowhere")
}

// called is wants, for what is asked for on the way to something else.
func (b *tab) called(change string) {
	b.t.Helper()
	b.wants(change)
}

// TestCertificates renews one.
func TestCertificates(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Operate)
	b.show("#/certificates", "Certificates")
	b.sees("relay.example.com", "7 attempts failed", "in 5 d", "Being ordered", "connection refused", "Let's Encrypt E8", "Next attempt in")
	b.press("Renew api.example.com")
	b.sees("Renew api.example.com now?")
	b.press("Renew")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("renew api.example.com")
	b.wait(`document.querySelector(".toast").innerText === "Another certificate for api.example.com is ordered"`)
	f.with(func() { f.status.Certificates = nil })
	b.sees("The relay obtains no certificates by itself", "[acme]\nemail = \"ops@example.com\"")

	b.show("#/alerts", "Alerts")
	b.sees("lab", "Resolved", "ends in 5 days")
	b.press("Send a test")
	b.sees("Told", "ops@example.com", "Not told", "https://hooks.example.com/…", "answered 403")
	b.wants("test alerts")
	b.press("Done")
	f.with(func() { f.refuse = rest.Errorf(http.StatusConflict, "a test is under way") })
	b.press("Send a test")
	b.wait(`[...document.querySelectorAll(".toast")].some((e) => e.innerText === "a test is under way")`)
	b.wants("test alerts")
	f.with(func() { f.alerts = nil })
	b.sees("Nothing to look after")
	b.wait(`document.querySelector(".badge").hidden`)
}

// TestMaintenance checks a configuration, and stops the relay.
func TestMaintenance(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Administer)
	b.show("#/maintenance", "Maintenance")
	f.with(func() {
		f.report = &admin.ConfigReport{Mistakes: []string{"public.toml:3: unknown key \"dommain\"", "public.toml:9: limits.visitors: want a number"}}
	})
	b.fill("#config", "dommain = \"x\"")
	b.press("Check")
	b.sees("2 mistakes", `unknown key "dommain"`, "want a number")
	f.with(func() { f.report = &admin.ConfigReport{OK: true, Restart: []string{"[listen]", "[limits]"}} })
	// A file is read in the browser. What was found in another one is not said of it.
	eval[bool](b, `((e) => {
		const d = new DataTransfer();
		d.items.add(new File(["domain = \"relay.example.com\"\n"], "public.toml"));
		e.files = d.files;
		e.dispatchEvent(new Event("change"));
		return true;
	})(document.querySelector("#config-file"))`)
	b.wait(`document.querySelector("#config").value.startsWith("domain") && !document.querySelector(".result").innerText`)
	b.press("Check")
	b.sees("The relay can run with it", "It needs a restart: a reload does not change [listen], [limits].")
	f.with(func() {
		if f.config != "domain = \"relay.example.com\"\n" {
			t.Errorf("the relay was asked about %q", f.config)
		}
		f.report = &admin.ConfigReport{OK: true}
	})
	b.press("Check")
	b.sees("A reload is enough", "systemctl reload relay-public")
	// More than the relay takes is not sent: it would cut the WebSocket.
	eval[bool](b, `(document.querySelector("#config").value = "#".repeat(300_000), true)`)
	b.press("Check")
	b.sees("it is no configuration file")
	b.wants()

	b.sees("office/api 1 visitor", "warehouse/stock 1 visitor")
	b.press("Drain and stop")
	b.sees("Nobody new is let in", "Type stop to confirm")
	b.keys("sto\r")
	b.wants()
	f.with(func() { f.refuse = rest.Errorf(http.StatusConflict, "the relay has just begun") })
	b.keys("p\r")
	b.sees("the relay has just begun")
	b.wants("drain")
	b.keys("\r")
	b.wait(`!document.querySelector("dialog") && document.querySelector(".state").innerText === "Draining"`)
	b.wants("drain")
	b.sees("It drains: nobody new is let in")
	b.wait(`[...document.querySelectorAll("main button")].find((x) => x.innerText === "Drain and stop").disabled`)
	// It is seen on every page, and what is still open goes.
	f.with(func() { f.streams = f.streams[:1] })
	b.wait(`!document.querySelector("main").innerText.includes("warehouse/stock")`)
	b.show("#/streams", "Streams")
	b.wait(`document.querySelector(".state").innerText === "Draining"`)
	f.cut()
	f.with(func() { f.status.Draining = false }) // the next relay does not
	b.wait(`document.querySelector(".offline").innerText.includes("The relay was draining, and has stopped")`)
	f.start()
	b.wait(`document.querySelector(".state").innerText === "Live"`)
}

// TestRequests watches them come, looks into one, and sends it again.
func TestRequests(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Operate)
	b.show("#/requests", "Requests")
	b.wait(`document.querySelectorAll("tbody tr").length === 8`)
	b.sees("target-refused", "1 min 34 s", "/v1/orders/1843", "486 MB")
	n := 100
	one := func(path string, status int) {
		n++
		f.request(admin.Request{ID: fmt.Sprintf("r%d", n), Time: time.Now().UTC(), Site: "office", Service: "api", Remote: "203.0.113.1:2", Method: "GET", Host: "api.example.com", Path: path, Proto: "HTTP/1.1", Status: status, Wait: 1.5, Took: 2})
	}
	one("/first-live", 200)
	b.wait(`document.querySelector("tbody tr").innerText.includes("/first-live")`)
	b.press("Pause")
	one("/while-paused", 503)
	b.press("Go on (1 new)")
	b.wait(`document.querySelector("tbody tr").innerText.includes("/while-paused")`)
	eval[bool](b, `((s) => { s.value = "5"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("select[aria-label='Filter by status']"))`)
	b.wait(`document.querySelectorAll("tbody tr").length === 2`)
	b.fill("input.filter", "paused")
	b.wait(`document.querySelectorAll("tbody tr").length === 1`)
	one("/not-shown", 200)
	one("/paused-again", 500)
	b.wait(`document.querySelectorAll("tbody tr").length === 2`)
	// Those that are not kept lead nowhere.
	if links := eval[[]string](b, `[...document.querySelectorAll("tbody a[href^='#/requests/']")].map((a) => a.hash)`); len(links) != 0 {
		t.Errorf("links to what is not kept: %q", links)
	}

	b.show("#/requests/r1", "POST /v1/orders?token=%5Bredacted%5D")
	b.sees("[redacted]", "Secrets are redacted", `"sku": "bolt-m8"`, "the target does not answer", "api/1.8")
	b.press("Hex")
	b.sees("000000  7b 22 63 75 73 74 6f 6d  65 72 22 3a 22 63 2d 32  {\"customer\":\"c-2")
	b.press("Replay")
	b.sees("may change something there a second time") // a POST has to be confirmed
	b.press("Send it again")
	b.sees("Replay 1", "502 before, 200 now", "Answer before", "Answer now", `"state": "paid"`)
	b.wants("replay r1")
	if marks := eval[[]string](b, `[...document.querySelectorAll(".differs th")].map((x) => x.innerText)`); !slices.Equal(marks, []string{"Content-Type changed", "Server changed", "X-Request-Id new"}) {
		t.Errorf("headers that differ are %q", marks)
	}
	// The answers are beside each other.
	if !eval[bool](b, `((x) => x[0].top === x[1].top && x[0].right < x[1].left)([...document.querySelectorAll(".replays .half")].map((e) => e.getBoundingClientRect()))`) {
		t.Error("the two answers are not side by side")
	}

	b.show("#/requests/r2", "GET /v1/orders/1843")
	b.press("Replay") // a GET has not
	b.sees("Replay 1", "The same status")
	b.wants("replay r2")
	b.show("#/requests/r6", "GET /rack/14/label.png")
	b.wait(`document.querySelector("img.picture").naturalWidth === 1`)
	b.show("#/requests/gone", "Request")
	b.sees("is not kept, or not any more", "private.toml")
}

// TestAccess has an admin give somebody a token.
func TestAccess(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Administer)
	b.show("#/access", "Access")
	b.sees("anna", "this one", "the browser's")
	b.press("Add an operator")
	b.fill("#field-name", "maria")
	b.press("Add")
	b.sees("cvo_", "shown this once")
	b.press("Done")
	b.wait(`!document.documentElement.outerHTML.includes("cvo_") && document.querySelector("[aria-labelledby=operators]").innerText.includes("maria")`)
	b.press("Change the role of maria")
	eval[bool](b, `(document.querySelector("#field-role").value = "operator", true)`)
	b.press("Change")
	b.wait(`!document.querySelector("dialog")`)
	if list := f.operators.List(); len(list) != 2 || list[1].Name != "maria" || list[1].Role != auth.Operate {
		t.Errorf("operators are %+v", list)
	}
	b.press("Create a token")
	b.fill("#field-note", "laptop")
	b.press("Create")
	b.sees("cvo_")
	b.press("Done")
	b.press("Revoke the token laptop of anna")
	b.press("Revoke")
	b.wait(`!document.querySelector("dialog") && !document.querySelector("[aria-labelledby=tokens]").innerText.includes("laptop")`)
	b.press("Remove maria")
	b.keys("maria")
	b.press("Remove")
	b.wait(`!document.querySelector("dialog") && !document.querySelector("[aria-labelledby=operators]").innerText.includes("maria")`)

	b.show("#/audit", "Audit")
	b.sees("operators/Add", "tokens/Revoke", "anna")
	b.show("#/log", "Log")
	b.sees("no space left on device")
	f.say("WARN", "the disk is slow", map[string]string{"disk": "/dev/sda"})
	b.wait(`document.querySelector("tbody tr").innerText.includes("disk=/dev/sda")`)
	eval[bool](b, `((s) => { s.value = "3"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("main select"))`)
	b.wait(`document.querySelectorAll("tbody tr").length === 1`)

	// Another role is the end of what was opened with the one before, and so is no role.
	if err := f.operators.SetRole("anna", auth.Viewer); err != nil {
		t.Fatal(err)
	}
	b.wait(`document.body.innerText.includes("Sign in to")`)
	b.fill("#token", f.token(auth.Administer)) // as which anna was known
	b.keys("\r")
	b.wait(`document.querySelector(".role")?.innerText === "viewer" && !document.querySelector("a[data-section=audit]")`)
	if err := f.operators.Remove("anna"); err != nil {
		t.Fatal(err)
	}
	b.wait(`document.body.innerText.includes("Sign in to")`)
}

// TestRoles checks that nobody is offered what is not allowed.
func TestRoles(t *testing.T) {
	f := newFake(t)
	acts := `[...new Set([...document.querySelectorAll("main button")].map((b) => b.innerText.trim()).filter((x) => /^(Kick|Promote|Revoke|Invite a site|Rotate key|Add stand-by|Renew|Add an operator|Remove|Role|Find cameras|Send a test)$/.test(x)))].sort().join()`
	for _, role := range []struct {
		role              auth.Role
		sections          string
		sites, everything string
	}{
		{auth.Viewer, "overview,services,streams,visitors,requests,sites,certificates,alerts,access", "", ""},
		{auth.Operate, "overview,services,streams,visitors,requests,sites,certificates,alerts,access,log", "Find cameras,Kick,Promote", "Kick Renew Send a test"},
		{auth.Administer, "overview,services,streams,visitors,requests,sites,certificates,alerts,access,log,audit,maintenance", "Add stand-by,Find cameras,Invite a site,Kick,Promote,Revoke,Rotate key", "Kick Renew Send a test"},
	} {
		t.Run(role.role.String(), func(t *testing.T) {
			b := newTab(t, f)
			b.signIn(role.role)
			if got := eval[string](b, `[...document.querySelectorAll("nav a")].map((a) => a.dataset.section).join()`); got != role.sections {
				t.Errorf("sections are %s, want %s", got, role.sections)
			}
			b.show("#/sites", "Sites")
			b.sees("gw-2")
			if got := eval[string](b, acts); got != role.sites {
				t.Errorf("on sites there is %q, want %q", got, role.sites)
			}
			got := ""
			b.show("#/streams", "Streams")
			b.sees("maria")
			got += eval[string](b, acts) + " "
			b.show("#/certificates", "Certificates")
			b.sees("api.example.com")
			got += eval[string](b, acts) + " "
			b.show("#/alerts", "Alerts")
			b.sees("Resolved")
			got = strings.TrimSpace(got + eval[string](b, acts))
			if got != role.everything {
				t.Errorf("there is %q, want %q", got, role.everything)
			}
			if role.role == auth.Viewer {
				b.show("#/audit", "Audit")
				b.sees("This needs the role admin")
				b.show("#/maintenance", "Maintenance")
				b.sees("This needs the role admin")
				b.show("#/log", "Log")
				b.sees("This needs the role operator")
				b.show("#/requests/r1", "Request")
				b.sees("needs the role operator")
				b.show("#/requests", "Requests")
				b.wait(`document.querySelectorAll("tbody tr").length >= 8 && !document.querySelector("tbody a[href^='#/requests/']")`)
				b.show("#/access", "Access")
				b.sees("Your tokens")
				b.wait(`!document.querySelector("[aria-labelledby=operators]")`)
			}
			b.press("Sign out")
			b.wait(`document.body.innerText.includes("Sign in to")`)
			b.do(chromedp.Reload())
			b.wait(`document.body.innerText.includes("Sign in to")`)
		})
	}
}

// TestKeyboard does without a mouse.
func TestKeyboard(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Administer) // by keys
	b.keys(kb.Tab)
	if got := b.focused(); got != "Skip to content" {
		t.Errorf("the first stop is %q", got)
	}
	if !eval[bool](b, `((r) => r.top >= 0 && r.height > 20)(document.activeElement.getBoundingClientRect())`) {
		t.Error("the link past the sections is not to be seen")
	}
	b.keys("\r")
	b.wait(`document.activeElement.tagName === "H1"`)

	b.keys("?")
	b.sees("This list", "Another theme")
	for range 3 {
		b.keys(kb.Tab)
		b.wait(`document.querySelector("dialog").contains(document.activeElement)`)
	}
	b.keys("gs") // nothing goes on behind a dialog
	b.keys(kb.Escape)
	b.wait(`!document.querySelector("dialog") && location.hash !== "#/services"`)

	b.keys("gs")
	b.wait(`location.hash === "#/services" && document.activeElement.tagName === "H1"`)
	b.sees("office/files")
	b.strike("/")
	b.wait(`document.activeElement.matches("input.filter")`)
	b.keys("gi?t")
	if got := eval[string](b, `document.activeElement.value + location.hash`); got != "gi?t#/services?q=gi%3Ft" {
		t.Errorf("typed into the filter: %q", got)
	}
	b.keys(kb.Escape)
	b.wait(`document.activeElement.tagName === "H1"`)

	b.keys("gi")
	b.sees("gw-2")
	b.focus("[data-act^=promote]")
	b.keys("\r")
	b.sees("Promote the stand-by session b81d22f0 on gw-2?")
	b.wait(`document.activeElement.id === "field-cut"`)
	b.keys("?gs") // a checkbox has the focus
	if eval[int](b, `document.querySelectorAll("dialog").length`) != 1 || eval[string](b, "location.hash") != "#/sites" {
		t.Error("keys do something while a checkbox has the focus")
	}
	b.keys(" ")
	// Around the dialog, both ways.
	for _, want := range []string{"Cancel", "Promote b81d22f0", "field-cut"} {
		b.keys(kb.Tab)
		if got := b.focused(); got != want {
			t.Errorf("the focus is on %q, want %q", got, want)
		}
	}
	b.keys(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift))
	if got := b.focused(); got != "Promote b81d22f0" {
		t.Errorf("the focus is on %q before the first", got)
	}
	b.keys("\r")
	b.wait(`!document.querySelector("dialog")`)
	b.wants("promote office b81d22f05577ac90 cut=true")

	// Another theme stays.
	before := eval[string](b, `getComputedStyle(document.body).backgroundColor`)
	b.focus("main h1")
	b.keys("t")
	b.keys("t")
	b.wait(`document.documentElement.dataset.theme === "dark"`)
	b.do(chromedp.Reload())
	b.wait(`document.querySelector(".state")?.innerText === "Live"`)
	if after := eval[string](b, `getComputedStyle(document.body).backgroundColor`); after == before {
		t.Errorf("the ground is %s in both themes", after)
	}

	// Everything that can be pressed is reached by Tab, in the order of the page, and is seen to have the focus.
	for _, p := range all {
		b.show(p.hash, p.title)
		b.loaded()
		// Who gets the focus is noted in the page. What is around it is the same everywhere.
		in := "document.querySelector('main')"
		if p == all[0] {
			in = "document"
		}
		want := eval[int](b, `(() => {
			if (!window.stops) {
				window.stops = new Set();
				document.addEventListener("focusin", ({ target: e }) => {
					stops.add(e);
					const s = getComputedStyle(e);
					if (s.outlineStyle === "none" || parseFloat(s.outlineWidth) < 2) unseen ||= e.outerHTML.slice(0, 200);
				});
			}
			document.querySelector("main h1").focus();
			if (`+in+` === document) document.querySelector(".skip").focus();
			window.unseen = "";
			window.stops = new Set(`+in+` === document ? [document.activeElement] : []);
			return [...`+in+`.querySelectorAll("a[href], button, input, select, canvas[tabindex], pre[tabindex]")].filter((e) => !e.disabled && e.getClientRects().length && e.tabIndex >= 0).length;
		})()`)
		b.keys(strings.Repeat(kb.Tab, want))
		for range 20 {
			if eval[int](b, `stops.size`) >= want {
				break
			}
			b.keys(kb.Tab)
		}
		if bad := eval[string](b, `unseen`); bad != "" {
			t.Fatalf("%s: it is not seen that the focus is on %s", p.hash, bad)
		}
		// Live pages may have had rows that went.
		if got := eval[int](b, `window.stops.size`); got < want*9/10 {
			t.Errorf("%s: %d of %d are reached by Tab", p.hash, got, want)
		}
	}
}

// TestReading checks what a screen reader lives on, the contrast of all text in both themes, and that nothing is wider
// than a phone.
func TestReading(t *testing.T) {
	f := newFake(t)
	f.with(func() {
		f.status.Sites[0].Publish = append(f.status.Sites[0].Publish, "https://"+strings.Repeat("a-very-long-name.", 8)+"example.com")
		f.streams[0].Host = strings.Repeat("long", 40)
		f.requests[0].Path += strings.Repeat("/segment", 60)
	})
	b := newTab(t, f)
	b.signIn(auth.Administer)
	for _, p := range all {
		b.show(p.hash, p.title)
		b.loaded()
		for _, scheme := range []string{"light", "dark"} {
			b.scheme(scheme)
			if bad := eval[[]string](b, contrast); len(bad) > 0 {
				t.Errorf("%s, %s: too little contrast: %s", p.hash, scheme, strings.Join(bad, "; "))
			}
		}
		if bad := eval[[]string](b, sane); len(bad) > 0 {
			t.Errorf("%s: %s", p.hash, strings.Join(bad, "; "))
		}
		for _, width := range []int64{1280, 1024, 768, 320} {
			b.size(width, 640)
			if bad := eval[[]string](b, wide); len(bad) > 0 {
				t.Errorf("%s on %d px: %s", p.hash, width, strings.Join(bad, "; "))
			}
		}
		b.size(1440, 900)
	}
	b.size(320, 640)
	// Heads of tables are not there, but for who comes to them by keys.
	b.show("#/services", "Services")
	b.wait(`document.querySelector("thead")?.getBoundingClientRect().height === 1`)
	b.focus(".sort")
	b.wait(`document.querySelector("thead").getBoundingClientRect().height > 20`)
	b.press("Menu")
	b.keys(kb.Escape)
	b.wait(`!document.querySelector("nav.open") && document.activeElement.matches(".menu")`)
	b.press("Menu")
	b.click("a[data-section=alerts]")
	b.wait(`document.querySelector("main h1").innerText === "Alerts" && !document.querySelector("nav.open")`)
	b.press("Menu")
	b.click(".foot button:nth-of-type(2)")
	b.sees("Another theme")
	if bad := eval[[]string](b, wide); len(bad) > 0 {
		t.Errorf("a dialog is wider than 320 px: %s", strings.Join(bad, "; "))
	}
	b.keys(kb.Escape)
}

// contrast lists texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3).
const contrast = `(() => {
	const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
	const known = (f, all = new Map()) => (x) => { if (!all.has(x)) all.set(x, f(x)); return all.get(x); };
	const rgba = known((c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; });
	const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
	const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((n, v, i) => n + v * [0.2126, 0.7152, 0.0722][i], 0);
	const ground = known((e) => e ? over(rgba(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255, 1]);
	const bad = new Set();
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walker.nextNode()) {
		const e = walker.currentNode.parentElement;
		if (!walker.currentNode.data.trim() || !e.getClientRects().length || e.closest(".unseen, .skip, noscript, :disabled")) continue;
		const text = over(rgba(getComputedStyle(e).color), ground(e));
		const [a, b] = [light(text), light(ground(e))].sort((x, y) => y - x);
		const ratio = (a + 0.05) / (b + 0.05);
		if (ratio < 4.5) bad.add(ratio.toFixed(2) + " " + e.className + " " + walker.currentNode.data.trim().slice(0, 30));
	}
	return [...bad];
})()`

// sane lists what a screen reader would stumble over.
const sane = `(() => {
	const bad = [];
	const all = (s) => [...document.querySelectorAll(s)].filter((e) => e.getClientRects().length);
	if (all("main").length !== 1 || all("h1").length !== 1 || all("nav[aria-label]").length !== 1 || all("header").length !== 1) bad.push("landmarks");
	if (!document.title.endsWith("Culvert") || !document.documentElement.lang) bad.push("title or language");
	const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
	if (new Set(ids).size !== ids.length) bad.push("two elements have one ID: " + ids.filter((x, i) => ids.indexOf(x) !== i));
	for (const e of all("button, a[href]")) if (!(e.getAttribute("aria-label") || e.innerText).trim()) bad.push("no name: " + e.outerHTML.slice(0, 120));
	for (const e of all("input, select, textarea")) if (!e.getAttribute("aria-label") && !e.labels.length) bad.push("no label: " + e.outerHTML.slice(0, 120));
	for (const e of all("canvas")) if (!e.getAttribute("aria-label") && e.getAttribute("aria-hidden") !== "true") bad.push("no text: " + e.className);
	for (const e of all("img")) if (!e.hasAttribute("alt")) bad.push("no alt: " + e.src);
	for (const e of all("table")) if (!e.caption) bad.push("a table without a caption");
	for (const e of all("th")) if (!e.scope && !e.innerText.trim()) bad.push("an empty head");
	let level = 1;
	for (const e of all("main h1, main h2, main h3, main h4")) { const n = Number(e.tagName[1]); if (n > level + 1) bad.push("a level of headings is left out at " + e.innerText); level = n; }
	for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-controls]")) for (const a of ["aria-labelledby", "aria-describedby", "aria-controls"]) for (const id of (e.getAttribute(a) || "").split(" ")) if (id && !document.getElementById(id)) bad.push(a + " of nothing: " + id);
	if (!document.querySelector("[aria-live=polite]")) bad.push("nothing tells of changes");
	return bad;
})()`

// wide lists what sticks out of the window, but for what scrolls by itself, or has no room.
const wide = `(() => {
	const bad = [];
	const w = document.documentElement.clientWidth;
	if (document.documentElement.scrollWidth > w) bad.push("the page scrolls sideways, to " + document.documentElement.scrollWidth);
	const ends = (e) => { const td = e.parentElement.closest("td.grow"); return td && getComputedStyle(td).whiteSpace === "nowrap"; }; // with an ellipsis
	for (const e of document.querySelectorAll("body *")) {
		const r = e.getBoundingClientRect();
		if (r.width && r.right > w + 1 && !e.closest("pre, .unseen, .skip, thead, svg") && !ends(e)) bad.push(e.tagName + "." + e.className + " to " + Math.round(r.right) + ": " + e.textContent.slice(0, 40));
	}
	for (const e of document.querySelectorAll(".table")) {
		if (e.scrollWidth > e.clientWidth) bad.push("a table is cut off: " + e.scrollWidth + " of " + e.clientWidth);
		const over = [...e.querySelectorAll("td")].find((c) => getComputedStyle(c).display === "block" && c.scrollWidth > c.clientWidth);
		if (over) bad.push("it lies over what is beside it: " + over.textContent.slice(0, 40));
		const narrow = [...e.querySelectorAll("td.grow")].find((c) => c.getClientRects().length && c.clientWidth < 80);
		if (narrow) bad.push("no room for " + narrow.textContent.slice(0, 40) + ": " + narrow.clientWidth);
	}
	return bad.slice(0, 5);
})()`

// TestReconnect cuts the network, and restarts the relay.
func TestReconnect(t *testing.T) {
	f := newFake(t)
	b := newTab(t, f)
	b.signIn(auth.Administer)
	b.show("#/log", "Log")
	b.sees("no space left on device")
	f.cut()
	b.wait(`document.querySelector(".state").innerText === "Offline" && document.querySelector(".offline").innerText.includes("The relay is not reached")`)
	b.sees("no space left on device") // what was there is there
	f.say("WARN", "said during the cut", nil)
	f.start()
	b.wait(`document.querySelector(".state").innerText === "Live" && document.querySelector(".offline").hidden`)
	b.sees("said during the cut")
	f.say("WARN", "said after the cut", nil)
	b.sees("said after the cut")
	if n := eval[int](b, `[...document.querySelectorAll("tbody tr")].filter((r) => r.innerText.includes("no space left on device")).length`); n != 1 {
		t.Errorf("a line from before the cut is there %d times", n)
	}
	f.feeds(b, 0, 1)
	b.show("#/requests", "Requests")
	f.feeds(b, 1, 0)
	b.show("#/overview", "Overview")
	f.feeds(b, 0, 0) // what a page has asked for ends with it
	b.wait(`document.querySelector("#tile-streams .value").innerText === "7"`)
	f.cut()
	b.wait(`document.querySelector(".state").innerText === "Offline"`)
	f.with(func() { f.streams = f.streams[:3] })
	f.start()
	b.wait(`document.querySelector("#tile-streams .value").innerText === "3"`)

	// A relay that was restarted does not know its browsers any more: they are asked for the token, and are back where they were.
	b.show("#/streams", "Streams")
	f.stop()
	f.start()
	b.sees("You were signed out", "the relay was restarted")
	if eval[bool](b, `document.documentElement.matches(".is-offline")`) {
		t.Error("who signs in sees the page of a relay that is not reached")
	}
	b.fill("#token", f.token(auth.Administer))
	b.keys("\r")
	b.wait(`document.querySelector("main h1")?.innerText === "Streams"`)
	b.wait(`document.querySelectorAll("tbody tr").length === 3`)
	f.cut()
	b.wait(`document.querySelector("#announce").textContent.includes("The connection to the relay was lost")`) // it is read aloud, too
	f.start()
	b.wait(`document.querySelector("#announce").textContent.includes("Connected to the relay")`)
	b.press("Sign out")
	b.sees("Sign in to")
	b.wait(`!document.querySelector(".notice")`) // one knows why
}

// feeds waits until so many feeds of requests and of the log go on.
func (f *fake) feeds(b *tab, requests, logs int) {
	b.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		f.mu.Lock()
		r, l := len(f.followers), len(f.readers)
		f.mu.Unlock()
		if r == requests && l == logs {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("there are %d feeds of requests and %d of the log, want %d and %d", r, l, requests, logs)
		}
	}
}

// TestHostile shows what strangers may have written, everywhere. None of it may be anything but text.
func TestHostile(t *testing.T) {
	f := newFake(t)
	evil := `<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>"'><b data-evil>` + "\u202e\u0007\x1b[31m\n&lt;"
	shown := `<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>"'><b data-evil>\u202e\u0007\u001b[31m\u000a&lt;`
	f.with(func() {
		s := &f.status
		s.Domain, s.Version = evil, evil
		s.Listeners[0].Name = evil
		s.Sites[0].Name, s.Sites[0].Publish = evil, []string{evil, "javascript:alert(1)"}
		s.Sites[0].Sessions[0].Machine, s.Sites[0].Sessions[0].Software = evil, evil
		s.Sites[0].Sessions[0].Links[0].Remote, s.Sites[0].Sessions[0].Links[0].Transport = evil, evil
		s.Sites[1].Sessions[0].Refused[0] = admin.Refused{Service: evil, Error: evil}
		s.Services[0] = admin.Service{Site: evil, Name: evil, Publish: "javascript:window.hacked=3", Target: evil, Errors: map[string]uint64{evil: 1}}
		s.Services[1].Publish = `https://x"onmouseover="window.hacked=4`
		s.Certificates[0].Name, s.Certificates[0].Issuer, s.Certificates[0].Error = evil, evil, evil
		f.streams[0] = admin.Stream{ID: evil, Site: evil, Service: evil, Scheme: evil, Host: evil, Remote: evil, Operator: evil, Since: ago(0), State: evil}
		f.requests[0] = admin.Request{ID: evil, Time: time.Now(), Site: evil, Service: evil, Remote: evil, Method: evil, Host: evil, Path: evil, Proto: evil, Status: 200, Word: evil, Inspectable: true}
		x := admin.Exchange{Request: f.requests[0], RequestHeader: []admin.HeaderField{{Name: evil, Value: evil}}, ResponseHeader: []admin.HeaderField{{Name: "Content-Type", Value: "image/svg+xml"}, {Name: evil, Value: evil}}}
		x.RequestBody = admin.Body{Text: evil, Size: 9}
		x.ResponseBody = admin.Body{Base64: []byte(`<svg xmlns="http://www.w3.org/2000/svg" onload="window.hacked=5"/>`), Size: 60}
		f.exchanges[evil] = x
		f.alerts[0] = admin.Alert{ID: evil, Kind: evil, Subject: evil, Text: evil, Since: ago(0)}
		f.logs = append(f.logs, admin.LogLine{Time: time.Now(), Level: evil, Message: evil, Attrs: map[string]string{evil: evil}})
	})
	b := newTab(t, f)
	b.do(chromedp.Navigate(f.url()))
	b.fill("#token", f.token(auth.Administer))
	b.keys("\r")
	b.wait(`document.querySelector(".state")?.innerText === "Live"`)
	id := eval[string](b, "encodeURIComponent("+asJS(evil)+")")
	for _, p := range []string{"overview", "services", "services/" + id + "/" + id, "streams", "visitors", "requests", "requests/" + id, "sites", "sites/" + id, "certificates", "alerts", "log", "audit", "access", "maintenance"} {
		eval[bool](b, `(location.hash = "#/`+p+`", true)`)
		b.loaded()
		switch p {
		case "audit", "access":
		default:
			b.wait(`document.querySelector("main").textContent.includes(` + asJS(shown) + `)`)
		}
		if got := eval[string](b, `[window.hacked || "", document.querySelectorAll("[data-evil], main script, main img[src=x], main a[href^='javascript']").length, [...document.querySelectorAll("a")].filter((a) => !/^https?:$/.test(a.protocol)).length].join()`); got != ",0,0" {
			t.Errorf("%s: what a stranger has written is more than text: %s", p, got)
		}
	}
	// What is about to be done names it, too.
	eval[bool](b, `(location.hash = "#/streams", true)`)
	b.wait(`document.querySelectorAll("tbody tr").length === 7`)
	eval[bool](b, `([...document.querySelectorAll("tbody button")].find((x) => x.getAttribute("aria-label").includes("onerror")).click(), true)`)
	b.wait(`document.querySelector("dialog")?.textContent.includes(` + asJS(shown) + `)`)
	b.press("Kick")
	b.wait(`!document.querySelector("dialog") && document.querySelector(".toast").textContent.includes("onerror")`)
	if got := eval[string](b, `String(window.hacked)`); got != "undefined" {
		t.Errorf("hacked: %s", got)
	}
}

// asJS is a text, or several, as a literal of JavaScript.
func asJS[E string | []string](s E) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestMany has thousands of everything: what is in the document is bounded, and so is what the page remembers.
func TestMany(t *testing.T) {
	f := newFake(t)
	f.with(func() {
		for i := range 200 {
			s := admin.Service{Site: "office", Name: fmt.Sprintf("many-%03d", i), Publish: fmt.Sprintf("https://m%d.example.com", i), Target: "http"}
			f.status.Services = append(f.status.Services, s)
			f.rates["office/"+s.Name] = [2]float64{float64(i), float64(i * 100)}
		}
		for i := range 5000 {
			f.streams = append(f.streams, admin.Stream{ID: fmt.Sprintf("m%d", i), Site: "office", Service: "api", Scheme: "https", Remote: fmt.Sprintf("10.%d.%d.7:80", i/250, i%250), Since: ago(time.Duration(i) * time.Second), State: "open"})
		}
		for i := range 150 {
			f.status.Sites = append(f.status.Sites, admin.Site{Name: fmt.Sprintf("site-%03d", i), State: admin.StateInvited, Publish: []string{}})
		}
	})
	b := newTab(t, f)
	b.signIn(auth.Administer)
	b.wait(`document.querySelectorAll("[data-site]").length === 100`)
	b.sees("100 of 154 sites are shown")
	b.show("#/services", "Services")
	b.wait(`document.querySelectorAll("tbody tr").length === 200`)
	b.press("Show 200 more")
	b.wait(`document.querySelectorAll("tbody tr").length === 208`)
	b.show("#/streams", "Streams")
	b.sees("200 of 2,000 are shown")
	for range 4 {
		b.press("Show 200 more")
	}
	b.sees("Filter to find the others")
	b.wait(`document.querySelectorAll("tbody tr").length === 1000`)
	b.show("#/requests", "Requests")
	many := make([]admin.Request, 3000)
	for i := range many {
		many[i] = admin.Request{ID: fmt.Sprintf("x%d", i), Time: time.Now(), Site: "office", Service: "api", Method: "GET", Host: "api.example.com", Path: fmt.Sprintf("/%d", i), Status: 200, Took: 1}
	}
	f.request(many...)
	b.wait(`document.querySelector("tbody tr").innerText.includes("/2999") && document.querySelectorAll("tbody tr").length === 200 && document.querySelector(".actions .num").innerText === "1,000 requests"`)

	// Going around leaves nothing behind.
	round := func() {
		for _, p := range all {
			b.show(p.hash, p.title)
			b.loaded()
		}
	}
	size := func() (heap float64, nodes, listeners int64) {
		b.show("#/alerts", "Alerts")
		b.loaded()
		for range 2 {
			b.call(chromedp.Call(b.ctx, heapprofiler.CollectGarbage, cdp.Empty{}))
		}
		h, err := chromedp.Call(b.ctx, runtime.GetHeapUsage, cdp.Empty{})
		b.must(err)
		c, err := chromedp.Call(b.ctx, memory.GetDOMCounters, cdp.Empty{})
		b.must(err)
		return h.UsedSize, c.Nodes, c.JsEventListeners
	}
	f.with(func() { f.streams = f.streams[:100] }) // pages full of services and sites are enough
	round()
	heap, nodes, listeners := size()
	round()
	round()
	heapAfter, nodesAfter, listenersAfter := size()
	t.Logf("heap %.1f to %.1f MB, nodes %d to %d, listeners %d to %d", heap/1e6, heapAfter/1e6, nodes, nodesAfter, listeners, listenersAfter)
	// A page of 200 services alone has 5,000 nodes and some hundred kilobytes.
	if heapAfter > heap+2e6 || nodesAfter > nodes+2000 || listenersAfter > listeners+200 {
		t.Errorf("twice around: heap %.1f to %.1f MB, nodes %d to %d, listeners %d to %d", heap/1e6, heapAfter/1e6, nodes, nodesAfter, listeners, listenersAfter)
	}
}
