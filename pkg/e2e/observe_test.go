//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// traffic is what has been seen of a service.
type traffic struct{ received, sent uint64 }

// What tunnelctl, the metrics and the access log tell of mixed traffic is the same, and what was moved.
func TestFigures(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Method == "GET" {
			w.Write(make([]byte, 100000))
		}
	}))
	defer app.Close()
	echo, _ := startEcho(t, nil)
	udp := startUDP(t, "127.0.0.1:0")
	s := configure(t, nil,
		service{"app", "https://app.example.com", app.URL},
		service{"echo", "tcp://:{port}", "tcp://" + echo},
		service{"dns", "udp://:{port}", "udp://" + udp.addr},
	)
	s.sites += "[access_log]\nfile = \"access.log\"\nquery = true\n"
	s.startPublic()
	s.startPrivate()

	body := s.file("body")
	writeFile(t, body, strings.Repeat("x", 300<<10))
	for _, version := range []string{"--http1.1", "--http2"} {
		var urls []string
		for i := range 20 {
			urls = append(urls, "--output", os.DevNull, s.url("app", fmt.Sprintf("/?i=%d", i)))
		}
		s.curl(append([]string{version}, urls...)...)
		s.curl(version, "--output", os.DevNull, "--data-binary", "@"+body, s.url("app", "/"))
	}
	c, err := net.Dial("tcp", s.port("echo"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(n int) {
		t.Helper()
		go io.Copy(c, bytes.NewReader(make([]byte, n)))
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	say(1 << 20)
	u, err := net.Dial("udp", s.port("dns"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	io.WriteString(u, "question")
	udp.next(t)
	u.SetReadDeadline(time.Now().Add(waitLimit))
	if _, err := u.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}

	type status struct {
		Name           string
		Received, Sent uint64
		Visitors       int
		Total          uint64 `json:"visitors_total"`
	}
	services := func() map[string]status {
		t.Helper()
		out, err := s.tunnelctl("services", "--json").Output()
		var list []status
		if err == nil {
			err = json.Unmarshal(out, &list)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		byName := make(map[string]status)
		for _, one := range list {
			byName[one.Name] = one
		}
		return byName
	}
	// A connection counts while it runs.
	if now := services()["echo"]; now.Received != 1<<20 || now.Sent != 1<<20 || now.Visitors != 1 {
		t.Errorf("while it runs: %+v", now)
	}
	say(1000)
	c.Close()
	now := services()
	for begin := time.Now(); now["echo"].Visitors+now["app"].Visitors > 0; now = services() {
		if time.Since(begin) > waitLimit {
			t.Fatalf("%+v", now)
		}
	}
	moved := traffic{2 * 300 << 10, 2 * 20 * 100000}
	if app := now["app"]; app.Received != moved.received || app.Sent < moved.sent || app.Sent > moved.sent+50*1000 {
		t.Errorf("app: %+v, want %+v and heads", app, moved)
	}

	figure := func(text, name, service string) uint64 {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + name + `\{service="` + service + `",site="office"\} (\S+)$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s of %s in\n%s", name, service, text)
		}
		f, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(f)
	}
	text := s.adminGet("/metrics")
	s.public.signal(t, syscall.SIGTERM)
	if code := s.public.wait(t, waitLimit); code != 0 {
		t.Errorf("exit code %d", code)
	}
	log, err := os.ReadFile(s.file("state/access.log"))
	if err != nil {
		t.Fatal(err)
	}
	logged := make(map[string]traffic)
	lines := make(map[string]uint64)
	for line := range bytes.Lines(log) {
		var l struct {
			Site, Service, Proto, Path, Query, Link string
			Status                                  int
			Received, Sent                          uint64
		}
		if err := json.Unmarshal(line, &l); err != nil || l.Site != "office" || l.Link == "" || l.Service == "app" && l.Status != 200 {
			t.Errorf("%v: %s", err, line)
		}
		sum := logged[l.Service]
		logged[l.Service] = traffic{sum.received + l.Received, sum.sent + l.Sent}
		lines[l.Service]++
		lines[l.Proto]++
	}
	for _, name := range []string{"app", "echo", "dns"} {
		told := traffic{now[name].Received, now[name].Sent}
		measured := traffic{figure(text, "culvert_service_received_bytes_total", name), figure(text, "culvert_service_sent_bytes_total", name)}
		if told != measured || told != logged[name] {
			t.Errorf("%s: tunnelctl tells %v, the metrics %v, the access log %v", name, told, measured, logged[name])
		}
		if n := figure(text, "culvert_service_visits_total", name); n != now[name].Total || n != lines[name] {
			t.Errorf("%s: tunnelctl tells of %d visits, the metrics of %d, the access log of %d", name, now[name].Total, n, lines[name])
		}
	}
	if lines["HTTP/1.1"] != 21 || lines["HTTP/2"] != 21 || lines["tcp"] != 1 || lines["udp"] != 1 {
		t.Errorf("lines: %v", lines)
	}
}
