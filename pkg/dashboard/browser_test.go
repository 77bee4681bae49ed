package dashboard

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/auth"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"go.uber.org/goleak"
)

// pictures is a folder for pictures of all pages, for whoever changes their looks:
//
//	go test ./pkg/dashboard -run TestPictures -pictures /tmp/dashboard
var pictures = flag.String("pictures", "", "folder for pictures of the pages, which TestPictures takes")

// chromium is the browser of all tests of the package: they have a profile each, in it.
var chromium struct {
	once sync.Once
	dir  string
	ctx  context.Context
	end  []context.CancelFunc
	err  error
}

// program is what runs the tests, and ends the browser.
type program struct{ m *testing.M }

func (p program) Run() int {
	code := p.m.Run()
	for i := len(chromium.end) - 1; i >= 0; i-- {
		chromium.end[i]()
	}
	os.RemoveAll(chromium.dir)
	return code
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(program{m}) }

func startChromium() {
	c := &chromium
	path, err := exec.LookPath("chromium")
	if err != nil {
		c.err = fmt.Errorf("the dashboard is tested in a browser: %w: .ci/tools installs it", err)
		return
	}
	if c.dir, c.err = os.MkdirTemp("", "dashboard-"); c.err != nil {
		return
	}
	allocator, end := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(c.dir), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("js-flags", "--expose-gc"),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"),
	)...)
	c.end = append(c.end, end)
	ctx, end := chromedp.NewContext(allocator)
	c.end = append(c.end, end)
	c.ctx, c.err = ctx, chromedp.Do(ctx)
}

// limit is how long anything that comes by itself may take, on the slowest machine.
const limit = time.Minute

// tab is one tab, with a profile of its own. Its end fails the test if the page has complained about anything, or asked
// anybody but the relay for something.
type tab struct {
	t    *testing.T
	ctx  context.Context
	fake *fake

	mu       sync.Mutex
	problems []string
	asked    []string // URLs
}

func newTab(t *testing.T, f *fake) *tab {
	t.Helper()
	chromium.once.Do(startChromium)
	if chromium.err != nil {
		t.Fatal(chromium.err)
	}
	b := &tab{t: t, fake: f}
	ctx, end := chromedp.NewContext(chromium.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(b.hear))
	b.ctx = ctx
	t.Cleanup(func() {
		if t.Failed() {
			b.picture("failed")
		}
		end()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range b.problems {
			t.Errorf("the page complains: %s", p)
		}
		for _, u := range b.asked {
			if at, err := url.Parse(u); err != nil || at.Host != f.addr && at.Scheme != "blob" && at.Scheme != "data" {
				t.Errorf("the page asks %s for something", u)
			}
		}
	})
	b.must(chromedp.Do(ctx))
	b.call(chromedp.Call(ctx, network.Enable, network.EnableParams{}))
	b.call(chromedp.Call(ctx, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})) // several tabs at a time
	b.call(chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `document.addEventListener("securitypolicyviolation", (e) => console.error("policy", e.violatedDirective, e.blockedURI, e.sourceFile, e.lineNumber));`,
	}))
	b.size(1440, 900)
	return b
}

// hear is called with all events of the tab.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			var words []string
			for _, a := range e.Args {
				words = append(words, string(a.Value)+a.Description)
			}
			b.problems = append(b.problems, strings.Join(words, " "))
		}
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		b.problems = append(b.problems, text)
	case *log.EventEntryAdded:
		// That a relay was not there, or did not let somebody in, is said by the browser itself.
		if e.Entry.Source != "network" && (e.Entry.Level == "error" || e.Entry.Level == "warning") &&
			!strings.Contains(e.Entry.Text, "WebSocket connection to") {
			b.problems = append(b.problems, e.Entry.Text)
		}
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	case *network.EventWebSocketCreated:
		b.asked = append(b.asked, e.URL)
	}
}

func (b *tab) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// call fails the test if a command has. What it answers is not needed.
func (b *tab) call(_ any, err error) {
	b.t.Helper()
	b.must(err)
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, end := context.WithTimeout(b.ctx, limit)
	defer end()
	b.must(chromedp.Do(ctx, steps...))
}

// eval evaluates an expression in the page.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, end := context.WithTimeout(b.ctx, limit)
	defer end()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// await waits until an expression is something, and returns it. The page looks by itself: nothing is said in the meantime.
func await[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, end := context.WithTimeout(b.ctx, 2*limit) // what the page may take, and whoever runs it
	defer end()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[*T](fmt.Sprintf(`new Promise((done, failed) => {
		const end = Date.now() + %d;
		const look = () => {
			try {
				const v = %s;
				if (v || Date.now() > end) done(v || null);
				else setTimeout(look, 20);
			} catch (e) { failed(e); }
		};
		look();
	})`, limit.Milliseconds(), expression), chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	if v == nil {
		b.t.Fatalf("after %v it is not so that %s; the page says:\n%s", limit, expression, eval[string](b, "document.body.innerText.slice(0, 3000)"))
	}
	return *v
}

// wait waits until an expression is true.
func (b *tab) wait(expression string) {
	b.t.Helper()
	await[bool](b, "Boolean("+expression+")")
}

// sees waits until the main part of the page, or the dialog that is open, says something.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	b.wait(fmt.Sprintf(`((e) => e && %s.every((s) => e.innerText.includes(s)))(document.querySelector("dialog[open]") || document.querySelector("main"))`, asJS(texts)))
}

// click presses what a selector finds, waiting for it.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.hit(fmt.Sprintf(`document.querySelector(%s)`, asJS(selector)))
}

// press presses the button that has a text or a label.
func (b *tab) press(label string) {
	b.t.Helper()
	b.hit(fmt.Sprintf(`[...(document.querySelector("dialog[open]") || document).querySelectorAll("button, a.button")].find((x) => !x.disabled && x.getClientRects().length && (x.getAttribute("aria-label") === %[1]s || x.innerText.trim() === %[1]s))`, asJS(label)))
}

// hit presses an element with the mouse, once it is there and nothing covers its middle. What is live may move away before
// it is hit: then nothing else is, and it is tried again.
func (b *tab) hit(element string) {
	b.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		at := await[struct{ X, Y float64 }](b, `((e) => {
			if (!e) return null;
			e.scrollIntoView({ block: "center", behavior: "instant" });
			const r = e.getBoundingClientRect();
			const at = { x: r.x + r.width / 2, y: r.y + r.height / 2 };
			if (!e.contains(document.elementFromPoint(at.x, at.y))) return null;
			window.aim = e;
			window.wasHit = false;
			window.aiming ??= !addEventListener("click", (c) => {
				if (!aim) return;
				wasHit = aim.contains(c.target);
				aim = null;
				if (!wasHit) { c.preventDefault(); c.stopImmediatePropagation(); }
			}, true);
			return at;
		})(`+element+`)`)
		b.do(chromedp.MouseClickXY(at.X, at.Y))
		if eval[bool](b, `wasHit`) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("after %v it is not hit: %s", limit, element)
		}
	}
}

// focus gives the focus to what a selector finds.
func (b *tab) focus(selector string) {
	b.t.Helper()
	b.wait(fmt.Sprintf(`((e) => e && (e.focus(), document.activeElement === e))(document.querySelector(%s))`, asJS(selector)))
}

// keys types keys, wherever the focus is.
func (b *tab) keys(keys string, o ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, o...))
}

// strike presses one key as a person does: what it types depends on what the page makes of it.
func (b *tab) strike(key string) {
	b.t.Helper()
	for _, kind := range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
		p := input.DispatchKeyEventParams{Type: kind, Key: key}
		if kind == input.DispatchKeyEventTypeKeyDown {
			p.Text = key
		}
		b.call(chromedp.Call(b.ctx, input.DispatchKeyEvent, p))
	}
}

// focused says what has the focus.
func (b *tab) focused() string {
	b.t.Helper()
	return eval[string](b, `(() => { const e = document.activeElement; return e.getAttribute("aria-label") || e.innerText || e.id || e.tagName })()`)
}

// fill writes into a field in place of what is in it.
func (b *tab) fill(selector, text string) {
	b.t.Helper()
	b.focus(selector)
	eval[bool](b, `(document.activeElement.select?.(), true)`)
	b.call(chromedp.Call(b.ctx, input.InsertText, input.InsertTextParams{Text: text}))
}

// show goes to another page.
func (b *tab) show(hash, title string) {
	b.t.Helper()
	b.wait(fmt.Sprintf(`(location.hash === %[1]s || (location.hash = %[1]s), document.querySelector("main h1")?.innerText.trim() === %[2]s)`, asJS(hash), asJS(title)))
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	b.call(chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1}))
}

// scheme has the browser say that its user prefers light or dark.
func (b *tab) scheme(name string) {
	b.t.Helper()
	b.call(chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}, // no colour is half way to another one
	}}))
}

// picture keeps one, if that is wanted.
func (b *tab) picture(name string) {
	if *pictures == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		name = strings.ReplaceAll(b.t.Name(), "/", "-") + "-" + name + ".png"
		err = os.WriteFile(filepath.Join(*pictures, name), png, 0o644)
	}
	if err != nil {
		b.t.Log(err)
	}
}

// signIn opens the page and signs somebody in who has a role.
func (b *tab) signIn(role auth.Role) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.fake.url()))
	b.fill("#token", b.fake.token(role))
	b.keys("\r")
	b.wait(`document.querySelector(".state")?.innerText === "Live"`)
	b.sees("Sites and their links", "office")
}

// TestPictures takes pictures of all pages for people to look at. It tests nothing.
func TestPictures(t *testing.T) {
	if *pictures == "" {
		t.Skip("it is for people: -pictures FOLDER")
	}
	f := newFake(t)
	b := newTab(t, f)
	b.do(chromedp.Navigate(f.url()))
	b.sees("Sign in to")
	b.picture("sign-in")
	b.signIn(auth.Administer)
	time.Sleep(12 * time.Second)
	pages := []struct{ hash, title, name string }{
		{"#/overview", "Overview", "overview"}, {"#/services", "Services", "services"}, {"#/services/office/api", "office/api", "service"}, {"#/streams", "Streams", "streams"}, {"#/visitors", "Visitors", "visitors"},
		{"#/requests", "Requests", "requests"}, {"#/sites", "Sites", "sites"}, {"#/certificates", "Certificates", "certificates"}, {"#/alerts", "Alerts", "alerts"}, {"#/access", "Access", "access"}, {"#/log", "Log", "log"}, {"#/audit", "Audit", "audit"},
	}
	for _, look := range []struct {
		name          string
		width, height int64
		scheme        string
	}{{"light", 1440, 900, "light"}, {"dark", 1440, 900, "dark"}, {"phone", 360, 740, "light"}} {
		b.size(look.width, look.height)
		b.scheme(look.scheme)
		for _, p := range pages {
			b.show(p.hash, p.title)
			time.Sleep(1500 * time.Millisecond)
			b.picture(look.name + "-" + p.name)
		}
		b.show("#/requests/r1", "POST /v1/orders?token=%5Bredacted%5D")
		b.press("Replay")
		b.press("Send it again")
		b.sees("Replay 1")
		time.Sleep(time.Second)
		b.picture(look.name + "-inspector")
		b.show("#/sites", "Sites")
		b.press("Kick the stand-by session b81d22f0 on gw-2")
		time.Sleep(300 * time.Millisecond)
		b.picture(look.name + "-dialog")
		b.keys("\x1b")
	}
}
