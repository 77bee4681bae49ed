package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
)

var topTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// someFigures are those of so many sites and services.
func someFigures(sites, services int) admin.Figures {
	f := admin.Figures{Time: topTime, Visitors: 12, Streams: 34, Requests: 1000}
	for i := range sites {
		f.Sites = append(f.Sites, admin.SiteFigures{Name: fmt.Sprintf("site-%02d", i), State: admin.StateConnected, RTT: 12.3 * float64(i), Streams: i, In: 1e6 * float64(i), Out: 5e5, Sessions: 1, Links: 3})
	}
	for i := range services {
		f.Services = append(f.Services, admin.ServiceFigures{Site: "site-00", Name: fmt.Sprintf("service-%02d", i), Visitors: i, In: 1000 * float64(i), Out: 1e9 / float64(i+1), Requests: 12.5, Errors: float64(i % 2)})
	}
	return f
}

func someStreams(n int) (streams []admin.Stream) {
	for i := range n {
		streams = append(streams, admin.Stream{
			ID: fmt.Sprintf("s%d", i), Site: "site-00", Service: fmt.Sprintf("service-%02d", i%7), Scheme: "https", Host: "app.example.com",
			Remote: fmt.Sprintf("[2001:db8::%x]:5%04d", i, i), Since: topTime.Add(-time.Duration(i) * time.Minute), Received: uint64(i) * 1000, Sent: uint64(i) * 5000, Idle: float64(i),
		})
	}
	return streams
}

// checkFrame fails if a frame does not fit its terminal.
func checkFrame(t *testing.T, m *top) []string {
	t.Helper()
	lines := m.frame(topTime.Add(time.Minute))
	if len(lines) > m.height {
		t.Fatalf("%d lines in %dx%d:\n%s", len(lines), m.width, m.height, strings.Join(lines, "\n"))
	}
	for _, l := range lines {
		if plain := withoutStyles(l); cells(plain) > m.width {
			t.Fatalf("%d cells in %dx%d: %q", cells(plain), m.width, m.height, plain)
		}
		if strings.ContainsAny(l, "\n\r\t") {
			t.Fatalf("control characters: %q", l)
		}
	}
	return lines
}

func text(lines []string) string { return withoutStyles(strings.Join(lines, "\n")) }

// At 80x24 everything that matters is there, and nothing of it is cut.
func TestTopFrame(t *testing.T) {
	m := newTop(80, 24, false)
	m.meet(&admin.Status{Domain: "relay.example.com", Version: "v1.2.3", Uptime: 90061})
	if got := text(checkFrame(t, m)); !strings.Contains(got, "waiting") {
		t.Errorf("without figures:\n%s", got)
	}
	m.see(someFigures(2, 4))
	m.seeStreams(topTime, someStreams(3))
	next := someFigures(2, 4)
	next.Time, next.Requests = topTime.Add(2*time.Second), 1025
	m.see(next)
	streams := someStreams(3)
	streams[2].Sent += 4 << 20
	m.seeStreams(next.Time, streams)
	want := `relay.example.com  v1.2.3  up 1d1h                                          live
in 976.6 KiB/s  out 976.6 KiB/s  12/s requests  12 visitors  34 streams
2 of 2 sites connected

SITE▲    STATE          RTT  SESSIONS  LINKS  STREAMS           IN          OUT
site-00  connected        -         1      3        0            -  488.3 KiB/s
site-01  connected  12.3 ms         1      3        1  976.6 KiB/s  488.3 KiB/s

SERVICE             VISITORS  REQUESTS  ERRORS           IN         OUT▼
site-00/service-00         0      12/s       -            -  953.7 MiB/s
site-00/service-01         1      12/s   1.0/s     1000 B/s  476.8 MiB/s
site-00/service-02         2      12/s       -    2.0 KiB/s  317.9 MiB/s
site-00/service-03         3      12/s   1.0/s    2.9 KiB/s  238.4 MiB/s

STREAM OF           FROM                    AGE           IN         OUT▼
site-00/service-02  [2001:db8::2]:50002    2m2s            -    2.0 MiB/s
site-00/service-00  [2001:db8::0]:50000      2s            -            -
site-00/service-01  [2001:db8::1]:50001    1m2s            -            -





q quit  ? help  Tab sites  s sort site  r reverse  / filter  p pause`
	if got := text(checkFrame(t, m)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}

	// A relay that is away is said to be, and what was seen last stays.
	m.lose("nothing listens on 127.0.0.1:7070: is relay-public running here?", topTime.Add(30*time.Second))
	got := text(checkFrame(t, m))
	for _, s := range []string{"no answer for 30s", "nothing listens on", "site-01"} {
		if !strings.Contains(got, s) {
			t.Errorf("away, lacks %q:\n%s", s, got)
		}
	}
	m.see(next)
	if got := text(checkFrame(t, m)); !strings.Contains(got, " live\n") {
		t.Errorf("back again:\n%s", got)
	}
}

// Every size of a terminal is filled, and never left.
func TestTopSizes(t *testing.T) {
	for _, color := range []bool{false, true} {
		for _, n := range []int{0, 1, 50} {
			m := newTop(80, 24, color)
			m.meet(&admin.Status{Domain: strings.Repeat("relay.", 12) + "example.com", Version: "v1.2.3-44-gabcdef01-dirty", Uptime: 1e9})
			m.see(someFigures(n, n))
			m.seeStreams(topTime, someStreams(n))
			for _, width := range []int{0, 1, 2, 5, 11, 20, 40, 79, 80, 81, 132, 400} {
				for _, height := range []int{0, 1, 2, 3, 5, 6, 10, 24, 60} {
					m.width, m.height = width, height
					for _, keys := range []string{"", "1", "3", "0", "?", "?", "/site\r", "\x1b", "\x1b[F", "p", "p"} {
						for _, k := range parseKeys([]byte(keys)) {
							m.press(k)
						}
						lines := checkFrame(t, m)
						if width >= 80 && height >= 24 && n > 0 && keys == "0" {
							if got := text(lines); !strings.Contains(got, "in ") || !strings.Contains(got, "site-00") || !strings.Contains(got, "service-00") {
								t.Errorf("%dx%d:\n%s", width, height, got)
							}
						}
					}
					m.lose(strings.Repeat("a long story ", 20), topTime)
					checkFrame(t, m)
					m.see(m.figures)
				}
			}
		}
	}
}

// The head is whole at 80 columns even if numbers are large: what has no room goes to the next line.
func TestTopHead(t *testing.T) {
	m := newTop(80, 24, false)
	m.meet(&admin.Status{Domain: "a-relay-with-a-long-name.department.example.com", Version: "v1.2.3-44-gabcdef01", Uptime: 1e7})
	f := someFigures(1, 1)
	f.Sites[0].In, f.Sites[0].Out, f.Visitors, f.Streams = 999*(1<<20), 1023*(1<<20), 100_000, 123_456
	m.see(f)
	got := text(checkFrame(t, m))
	for _, s := range []string{"a-relay-with-a-long-name.department.example.com", "in 999.0 MiB/s", "out 1023.0 MiB/s", "100000 visitors", "123456 streams", "live"} {
		if !strings.Contains(got, s) {
			t.Errorf("lacks %q:\n%s", s, got)
		}
	}
	if strings.Contains(got, "…") {
		t.Errorf("something is cut:\n%s", got)
	}
}

func TestTopKeys(t *testing.T) {
	m := newTop(80, 24, false)
	m.see(someFigures(3, 40))
	m.seeStreams(topTime, someStreams(40))
	press := func(keys string) string {
		t.Helper()
		for _, k := range parseKeys([]byte(keys)) {
			if m.press(k) {
				return "quit"
			}
		}
		return text(checkFrame(t, m))
	}
	first := func(got, prefix string) string {
		for line := range strings.Lines(got) {
			if strings.HasPrefix(line, prefix) {
				return strings.TrimSpace(line)
			}
		}
		return ""
	}
	// Sites by their latency, the slowest first, and the other way round.
	if got := press("ss"); !strings.Contains(got, "RTT▼") || strings.Index(got, "site-02") > strings.Index(got, "site-01 ") {
		t.Errorf("by latency:\n%s", got)
	}
	if got := press("r"); !strings.Contains(got, "RTT▲") || strings.Index(got, "site-02") < strings.Index(got, "site-01 ") {
		t.Errorf("by latency, reversed:\n%s", got)
	}
	// Services alone, and to their end.
	got := press("2")
	if strings.Contains(got, "SITE") || strings.Contains(got, "STREAM OF") || !strings.Contains(got, "1 to 17 of 40 services") {
		t.Errorf("services alone:\n%s", got)
	}
	if got := press("\x1b[F"); !strings.Contains(got, "24 to 40 of 40 services") {
		t.Errorf("the last services:\n%s", got)
	}
	if got := press("gj"); !strings.Contains(got, "2 to 18 of 40 services") {
		t.Errorf("one further:\n%s", got)
	}
	// A filter is typed, can be corrected, and dropped.
	if got := press("/service-0x\x7f7"); !strings.Contains(got, "filter: service-07_") || first(got, "site-00/service-07") == "" || first(got, "site-00/service-08") != "" {
		t.Errorf("filter:\n%s", got)
	}
	if got := press("\rq"); got != "quit" {
		t.Errorf("q after the filter:\n%s", got)
	}
	if got := press("/zzz\r"); !strings.Contains(got, "no services match the filter") {
		t.Errorf("filter without matches:\n%s", got)
	}
	if got := press("\x1b"); strings.Contains(got, "filter zzz") || strings.Contains(got, "no services") {
		t.Errorf("filter dropped:\n%s", got)
	}
	// What is paused does not change.
	press("p")
	m.see(someFigures(1, 1))
	if got := press(""); !strings.Contains(got, "paused at") || !strings.Contains(got, "site-02") {
		t.Errorf("paused:\n%s", got)
	}
	press(" ")
	m.see(someFigures(1, 1))
	if got := press(""); strings.Contains(got, "site-02") {
		t.Errorf("goes on:\n%s", got)
	}
	// q is a letter of a filter, and a key of the help.
	if got := press("/q\r"); got == "quit" {
		t.Error("a letter of the filter has ended it")
	}
	if got := press("?"); !strings.Contains(got, "quit") || !strings.Contains(got, "any key") {
		t.Errorf("help:\n%s", got)
	}
	if got := press("x"); strings.Contains(got, "any key") {
		t.Errorf("help does not go:\n%s", got)
	}
	if press("\x03") != "quit" {
		t.Error("Ctrl-C does not end it")
	}
}

// What a site or a visitor says cannot steer the terminal.
func TestTopPrintable(t *testing.T) {
	m := newTop(100, 24, true)
	evil := "\x1b]0;owned\a\x1b[2Jx\r\n\u202ey漢字"
	m.meet(&admin.Status{Domain: evil, Version: evil})
	m.see(admin.Figures{Time: topTime, Sites: []admin.SiteFigures{{Name: evil, State: evil}}, Services: []admin.ServiceFigures{{Site: evil, Name: evil}}})
	m.seeStreams(topTime, []admin.Stream{{ID: evil, Site: evil, Service: evil, Remote: evil, Operator: evil}})
	m.lose(evil, topTime)
	m.filter = ""
	for _, l := range checkFrame(t, m) {
		for i := strings.Index(l, "\x1b"); i >= 0; i = strings.Index(l, "\x1b") {
			l = l[i+1:]
			if !strings.HasPrefix(l, "[") || strings.IndexByte(l, 'm') > 3 || strings.IndexByte(l, 'm') < 0 {
				t.Fatalf("a sequence that is not ours: %q", l)
			}
		}
		if strings.ContainsAny(l, "\a\u202e") {
			t.Errorf("%q", l)
		}
	}
}

func TestCells(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "漢字": 4, "e\u0301": 1, "…": 1, "▲": 1} {
		if got := cells(s); got != want {
			t.Errorf("%q has %d cells, want %d", s, got, want)
		}
	}
	for _, test := range []struct {
		in   string
		n    int
		want string
	}{{"abcdef", 6, "abcdef"}, {"abcdef", 4, "abc…"}, {"漢字漢字", 4, "漢…"}, {"abc", 1, "…"}, {"abc", 0, ""}} {
		if got := cut(test.in, test.n); got != test.want {
			t.Errorf("%q in %d: %q, want %q", test.in, test.n, got, test.want)
		}
	}
}

// A table shrinks what may be cut, then leaves columns out.
func TestTableWidth(t *testing.T) {
	tab := newTable("NAME~5", ">BYTES", "PATH~6")
	tab.columns[1].drop = 1
	tab.add("a-long-name", 12345, "/a/long/path")
	for width, want := range map[int]string{
		0:  "NAME         BYTES  PATH\na-long-name  12345  /a/long/path",
		26: "NAME      BYTES  PATH\na-long-…  12345  /a/long/…",
		20: "NAME   BYTES  PATH\na-lo…  12345  /a/lo…",
		13: "NAME   PATH\na-lo…  /a/lo…",
	} {
		if got := strings.Join(tab.lines(width, false, false), "\n"); got != want {
			t.Errorf("%d:\n%s\nwant:\n%s", width, got, want)
		}
	}
	if got := strings.Join(tab.lines(20, true, true), "\n"); got != "NAME\tBYTES\tPATH\na-long-name\t12345\t/a/long/path" {
		t.Errorf("plain: %q", got)
	}
}
