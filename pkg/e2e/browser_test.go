//go:build linux

package e2e

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// page does in a browser what applications do, and reports how it went.
const page = `<!DOCTYPE html>
<title>behind the firewall</title>
<script>
const parts = 100, messages = 50, megabytes = 4
async function load() {
	await Promise.all(Array.from({length: parts}, (_, i) => new Promise(resolve => {
		const image = new Image()
		image.onload = image.onerror = resolve // it is none
		image.src = "/part?image=" + i
	})))
	const all = await Promise.all(Array.from({length: parts}, (_, i) => fetch("/part?" + i).then(r => r.text())))
	return all.every(text => text.length == 20000) ? "" : "a part is short"
}
function talk() {
	return new Promise(resolve => {
		const ws = new WebSocket("wss://" + location.host + "/talk")
		let got = 0
		ws.onopen = () => { for (let i = 0; i < messages; i++) ws.send("message " + i) }
		ws.onmessage = e => {
			if (e.data != "message " + got) resolve("WebSocket: " + e.data)
			if (++got == messages) ws.close(4001)
		}
		ws.onclose = e => resolve(e.code == 4001 ? "" : "WebSocket: closed with " + e.code + " after " + got)
	})
}
async function upload() {
	const sent = new Uint8Array(megabytes << 20).fill(120)
	const text = await (await fetch("/up", {method: "POST", body: sent})).text()
	return text.startsWith(sent.length + " ") ? "" : "upload: " + text
}
async function report() {
	const results = await Promise.all([load(), talk(), upload()].map(p => p.catch(e => "" + e)))
	const protocols = {}
	for (const e of [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")])
		protocols[e.nextHopProtocol] = (protocols[e.nextHopProtocol] || 0) + 1
	await fetch("/report", {method: "POST", body: JSON.stringify({wrong: results.filter(r => r), protocols})})
}
onload = report
</script>`

// pageReport is what the page says.
type pageReport struct {
	Wrong     []string
	Protocols map[string]int // requests by ALPN name
}

// startPage runs a web server with the page.
func startPage(t testing.TB) (addr string, reports <-chan pageReport) {
	t.Helper()
	c := make(chan pageReport, 10)
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, page)
	})
	mux.HandleFunc("/part", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Write(make([]byte, 20000))
	})
	mux.HandleFunc("/up", serveSink)
	mux.HandleFunc("/talk", func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		for {
			kind, b, err := ws.Read(r.Context())
			if err != nil || ws.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	mux.HandleFunc("/report", func(w http.ResponseWriter, r *http.Request) {
		var p pageReport
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			p.Wrong = append(p.Wrong, err.Error())
		}
		c <- p
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), c
}

// spki is how Chromium is told to trust the relay's certificate.
func spki(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(certFile("cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// chromium is a headless browser that looks at one page, and finds the hosts of example.com
// at 127.0.0.1.
func chromium(t testing.TB, url string, args ...string) *exec.Cmd {
	t.Helper()
	args = append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-extensions", "--remote-debugging-port=0",
		"--user-data-dir=" + tempDir(t), "--ignore-certificate-errors-spki-list=" + spki(t),
		"--host-resolver-rules=MAP *.example.com 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
	}, args...)
	return exec.Command(tool(t, "chromium", "chromium"), append(args, url)...)
}

// TestBrowser has Chromium use an application behind the tunnel.
func TestBrowser(t *testing.T) {
	t.Parallel()
	addr, reports := startPage(t)
	s := startSystem(t, service{"app", "https://app.example.com", "http://" + addr})
	_, port, _ := strings.Cut(s.https, ":")
	for _, tt := range []struct {
		protocol string
		args     []string
	}{
		{"http/1.1", []string{"--disable-http2", "--disable-quic"}},
		{"h2", []string{"--disable-quic"}},
		// Without force it takes QUIC, from Alt-Svc, only where a public authority vouches.
		{"h3", []string{"--origin-to-force-quic-on=app.example.com:" + port}},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			browser := start(t, "chromium", chromium(t, s.url("app", "/page"), tt.args...))
			browser.abrupt = true
			select {
			case r := <-reports:
				for _, w := range r.Wrong {
					t.Error(w)
				}
				if len(r.Protocols) != 1 || r.Protocols[tt.protocol] < 200 {
					t.Errorf("requests by protocol: %v, want all over %s", r.Protocols, tt.protocol)
				}
			case <-browser.done:
				t.Fatal(fmt.Errorf("chromium ended: %w", browser.err))
			case <-time.After(3 * waitLimit): // it starts a dozen processes
				t.Fatal("the page does not report")
			}
		})
	}
}
