package rest

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// TestPageInBrowser reads the document in a browser, and calls methods there.
func TestPageInBrowser(t *testing.T) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: .ci/tools installs it", err)
	}
	s, _ := newServer(t)
	addr := onLoop(t, s)
	allocator, end := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
	)...)
	defer end()
	var mu sync.Mutex
	var problems, asked []string
	tab, end := chromedp.NewContext(allocator, chromedp.WithListener(func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			problems = append(problems, e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			if e.Entry.Source != "network" { // that an answer was 400 is what it is for
				problems = append(problems, e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			asked = append(asked, e.Request.URL)
		}
	}))
	defer end()
	ctx, cancel := context.WithTimeout(tab, 2*time.Minute)
	defer cancel()
	if err := chromedp.Do(tab); err != nil { // starts it
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(ctx, chromedp.Navigate("http://"+addr+"/api/docs")); err != nil {
		t.Fatal(err)
	}
	wait := func(expression string) {
		t.Helper()
		for {
			ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
			if err != nil {
				text, _ := chromedp.Run(tab, chromedp.Evaluate[string]("document.body.innerText.slice(0, 2000)"))
				t.Fatalf("%s: %v\n%s", expression, err, text)
			}
			if ok {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	// call fills in the fields of an operation, presses its button, and waits for an answer.
	call := func(operation, want string, fields ...string) {
		t.Helper()
		wait(fmt.Sprintf("document.getElementById(%q)", operation))
		js := fmt.Sprintf("{ const d = document.getElementById(%q); d.open = true; d.querySelector('pre:last-child').textContent = '';", operation)
		for i := 0; i < len(fields); i += 2 {
			js += fmt.Sprintf("d.querySelector('[aria-label=%s]').value = %q;", fields[i], fields[i+1])
		}
		js += "d.querySelector('button').click(); true }"
		if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](js)); err != nil {
			t.Fatal(err)
		}
		wait(fmt.Sprintf("document.getElementById(%q).querySelector('pre:last-child').textContent.includes(%q)", operation, want))
	}
	wait("document.title === 'test'")
	call("calc_Sum", `"result": 7.32`, "a", "3.12", "b", "4.2")
	call("calc_Sum_get", `"result": 3`, "a", "1", "b", "2")
	call("calc_Sum_get", `want a number`, "a", "x", "b", "2")
	call("calc_Sum", `This is no JSON`, "a", "x", "b", "2")
	call("calc_Set", `"id": 17`, "id", "17", "note", "n")
	call("calc_Get", `"result": "a/b"`, "name", "a/b")
	call("calc_Every", `"list": [`, "int", "1", "uint", "1", "float", "1", "text", "t", "bool", "true", "list", `["a","b"]`)
	call("calc_Count_get", "0\n1\n2\n", "to", "3")
	call("calc_Page", "<h1>page</h1>") // as text
	wait("![...document.querySelectorAll('details')].some((d) => d.hidden)")
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`{ const s = document.getElementById("search"); s.value = "adds two"; s.dispatchEvent(new Event("input")); true }`)); err != nil {
		t.Fatal(err)
	}
	wait("[...document.querySelectorAll('details')].filter((d) => !d.hidden).map((d) => d.id).join() === 'calc_Sum_get,calc_Sum'")
	mu.Lock()
	defer mu.Unlock()
	for _, p := range problems {
		t.Errorf("the page complains: %s", p)
	}
	for _, u := range asked {
		if !strings.HasPrefix(u, "http://"+addr+"/") && !strings.HasPrefix(u, "data:") {
			t.Errorf("the page asks %s", u)
		}
	}
}
