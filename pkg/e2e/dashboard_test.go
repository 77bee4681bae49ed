//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// dashboardPage is the operators' page of a relay, in Chromium.
type dashboardPage struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex
	problems []string
}

// openDashboard opens it, and signs an operator in.
func openDashboard(t testing.TB, s *system) *dashboardPage {
	t.Helper()
	d := &dashboardPage{t: t}
	allocator, end := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(tool(t, "chromium", "chromium")), chromedp.UserDataDir(tempDir(t)), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
	)...)
	ctx, endTab := chromedp.NewContext(allocator, chromedp.WithListener(d.hear))
	t.Cleanup(func() {
		endTab()
		end()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range d.problems {
			t.Errorf("the page complains: %s", p)
		}
	})
	d.ctx = ctx
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1440, 900), chromedp.Navigate("http://"+s.admin+"/")); err != nil {
		t.Fatal(err)
	}
	d.fill("#token", s.token())
	d.press("Sign in")
	d.until(`document.querySelector(".state")?.innerText === "Live"`)
	return d
}

func (d *dashboardPage) hear(event any) {
	if e, ok := event.(*runtime.EventExceptionThrown); ok {
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		d.mu.Lock()
		d.problems = append(d.problems, text)
		d.mu.Unlock()
	}
}

// value evaluates an expression in a page.
func value[T any](d *dashboardPage, expression string) T {
	d.t.Helper()
	ctx, end := context.WithTimeout(d.ctx, waitLimit)
	defer end()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		d.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits until an expression is true.
func (d *dashboardPage) until(expression string) {
	d.t.Helper()
	deadline := time.Now().Add(2 * waitLimit)
	for !value[bool](d, "Boolean("+expression+")") {
		if time.Now().After(deadline) {
			d.t.Fatalf("the page never has %s; it says:\n%s", expression, value[string](d, `document.body.innerText.slice(0, 4000)`))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// sees waits for texts in the page, or the dialog that is open.
func (d *dashboardPage) sees(texts ...string) {
	d.t.Helper()
	for _, s := range texts {
		d.until(fmt.Sprintf(`(document.querySelector("dialog[open]") || document.querySelector("main"))?.innerText.includes(%q)`, s))
	}
}

// press presses the button whose text or label begins with something.
func (d *dashboardPage) press(label string) {
	d.t.Helper()
	at := fmt.Sprintf(`[...(document.querySelector("dialog[open]") || document).querySelectorAll("button")].find((x) => !x.disabled && x.getClientRects().length && ((x.getAttribute("aria-label") || x.innerText).trim() + " ").startsWith(%q))`, label+" ")
	d.until(at)
	value[bool](d, at+".click(), true")
}

func (d *dashboardPage) fill(selector, text string) {
	d.t.Helper()
	d.until(fmt.Sprintf(`document.querySelector(%q)`, selector))
	ctx, end := context.WithTimeout(d.ctx, waitLimit)
	defer end()
	if err := chromedp.Do(ctx, chromedp.SendKeys(chromedp.CSS(selector), text)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *dashboardPage) show(section string) {
	d.t.Helper()
	value[bool](d, fmt.Sprintf(`(location.hash = "#/%s", true)`, section))
	d.until(fmt.Sprintf(`document.querySelector("a[data-section=%s][aria-current]") && !document.querySelector("main .loading")`, strings.Split(section, "/")[0]))
}

// done waits until the dialog is gone.
func (d *dashboardPage) done() {
	d.t.Helper()
	d.until(`!document.querySelector("dialog")`)
}

// TestDashboard operates a relay from a browser: what visitors do is seen while they do it, and what is pressed is done.
func TestDashboard(t *testing.T) {
	t.Parallel()
	var orders atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"order":%d,"token":"s3cr3t"}`, orders.Add(1))
	}))
	t.Cleanup(api.Close)
	echo, _ := startEcho(t, nil)
	s := configure(t, nil, service{"api", "https://api.example.com", api.URL}, service{"echo", "tcp://:{port}", "tcp://" + echo})
	s.more = map[string]string{"api": "inspect = true\n"}
	s.startPublic()
	s.startPrivate()
	s.startSecond()
	d := openDashboard(t, s)

	// Both private relays are there with their links.
	d.sees("Sites and their links", "office", "connected", "Active", "Stand-by", "WSS")
	d.until(`document.querySelectorAll("[data-site=office] .session .link-chip").length >= 2`)

	// A visitor's connection is seen, and ended.
	c := s.mustVisit("echo")
	d.show("streams")
	d.sees("office/echo", c.LocalAddr().String())
	d.press("Kick the stream of " + c.LocalAddr().String())
	d.press("Kick")
	d.done()
	awaitReset(t, c)
	d.until(`!document.querySelector("main").innerText.includes("` + c.LocalAddr().String() + `")`)

	// A request is seen with what was said, but for what nobody should see, and sent again.
	d.show("requests")
	s.curl("-H", "Authorization: Bearer visitors-secret", "-d", `{"n":1,"password":"visitors-secret"}`, "-H", "Content-Type: application/json", s.url("api", "/orders"))
	d.sees("api.example.com", "/orders", "POST")
	value[bool](d, `document.querySelector("tbody a[href^='#/requests/']").click(), true`)
	d.sees("Secrets are redacted", `"order": 1`, "[redacted]")
	if page := value[string](d, `document.documentElement.outerHTML`); strings.Contains(page, "visitors-secret") || strings.Contains(page, "s3cr3t") {
		t.Error("the page has a secret of a visitor's request")
	}
	d.press("Replay")
	d.press("Send it again")
	d.sees("Replay 1", "Answer before", "Answer now", "The same status", `"order": 2`)
	if n := orders.Load(); n != 2 {
		t.Errorf("the service was asked %d times, want 2", n)
	}

	// The stand-by takes over, then the active one is kicked, and comes back by itself.
	d.show("sites")
	d.until(`document.querySelectorAll("[data-site=office] .session").length === 2`)
	active := `document.querySelector("[data-site=office] .session").dataset.session`
	first := value[string](d, active)
	d.press("Promote the stand-by session")
	d.press("Promote")
	d.done()
	d.until(active + ` !== "` + first + `"`)
	second := value[string](d, active)
	c = s.mustVisit("echo")
	d.press("Kick the active session " + second[:8])
	d.sees("Connections that visitors have through it are reset at once")
	d.press("Kick")
	d.done()
	awaitReset(t, c)
	d.until(`((x) => x.length === 2 && x.every((e) => e.dataset.session !== "` + second + `"))([...document.querySelectorAll("[data-site=office] .session")])`)
	s.awaitVisit("echo")

	// A site is invited, joins with the token that the page shows, and is revoked.
	d.press("Invite a site")
	d.fill("#field-name", "pier")
	d.fill("#field-publish", "https://pier.example.com")
	d.press("Make the token")
	d.sees("shown this once")
	join := exec.Command(command(t, "relay-private"), "join", "--token-file", "-", "--ca", certFile("ca.pem"), "--dir", s.file("pier"))
	join.Stdin = strings.NewReader(value[string](d, `document.querySelector("dialog .copyable code").innerText`))
	join.Env = append(os.Environ(), "CULVERT_TOKEN=")
	run(t, join)
	d.press("Done")
	d.until(`document.querySelector("[data-site=pier] h3 .pill")?.innerText.trim() === "away"`)
	d.press("Revoke pier")
	d.fill("#field-typed", "pier")
	d.press("Revoke the site")
	d.done()
	d.until(`!document.querySelector("[data-site=pier]")`)

	// All of it was noted.
	d.show("audit")
	d.sees("streams/Kick", "requests/Replay", "sites/Promote", "sessions/Kick", "sites/Invite", "sites/Revoke")
	d.show("log")
	d.sees("INFO")
	config, err := os.ReadFile(s.file("public.toml"))
	if err != nil {
		t.Fatal(err)
	}
	d.show("maintenance")
	value[bool](d, fmt.Sprintf(`(document.querySelector("#config").value = %q, true)`, config))
	d.press("Check")
	d.sees("The relay can run with it")
	value[bool](d, `(document.querySelector("#config").value += "visitors = many", true)`)
	d.press("Check")
	d.sees("1 mistake", "public.toml")
	d.show("services/office/api")
	d.until(`document.querySelector("canvas.chart")?.getAttribute("aria-label").includes("To visitors: at most")`)
}
