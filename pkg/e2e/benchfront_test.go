//go:build linux

package e2e

import (
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// handshakes makes new TLS connections with a request each. X25519 is what both sides of
// the comparison can do; the hybrid with ML-KEM, which Go's clients and browsers prefer, is
// work that the chain's OpenSSL does not do.
func (t *bench) handshakes(resume, hybrid bool) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := t.measure(b, func(p path) job {
			return job{Kind: "handshake", Addr: p.https, TLS: true, Resume: resume, Hybrid: hybrid, Conns: 16}
		})
		budget := 0.7
		if hybrid {
			budget = 0
		}
		t.add(cell{row: row, figure: "TLS 1.3, request, close", unit: "/s", budget: budget}, m, opsPerSecond)
		delete(m, "direct")
		t.add(cell{row: row, figure: "CPU of the public side", unit: "us each"}, m, func(o outcome) float64 { return o.CPU["public"] / float64(o.Ops) * 1e6 })
		t.add(cell{row: row, figure: "CPU of the private side", unit: "us each"}, m, func(o outcome) float64 { return o.CPU["private"] / float64(o.Ops) * 1e6 })
	}
}

// h2load measures requests over connections that stay, made by nghttp2's load generator.
func (t *bench) h2load(path string, args ...string) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := map[string][]outcome{}
		for range *benchRounds {
			for _, p := range t.paths {
				if p.name == "direct" {
					continue // the target is a server for HTTP/1.1 alone
				}
				m[p.name] = append(m[p.name], h2load(b, p.https, p.host+path, append([]string{"--warm-up-time", "500ms", "-D", benchWindow.String()}, args...)...))
			}
		}
		t.add(cell{row: row, figure: "h2load " + strings.Join(args, " "), unit: "req/s", budget: 0.7}, m, opsPerSecond)
	}
}

// asks measures requests of Go's clients: the one of x/net for HTTP/2, and for HTTP/3, which
// the chain has not, that of quic-go.
func (t *bench) asks(kind string) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := map[string][]outcome{}
		for range *benchRounds {
			for _, p := range t.paths {
				if p.name == "direct" || p.name == "chain" && kind == "h3" {
					continue
				}
				m[p.name] = append(m[p.name], load(b, p.from, job{Kind: kind, Addr: p.https, Host: p.host, TLS: true, Conns: 4,
					Warm: 500 * time.Millisecond, Window: *benchWindow, Pids: p.pids}))
			}
		}
		t.add(cell{row: row, figure: "Go's client, 4 connections, 64 requests at a time", unit: "req/s"}, m, opsPerSecond)
		t.add(cell{row: row, figure: "CPU of the public side", unit: "us each"}, m, func(o outcome) float64 { return o.CPU["public"] / float64(o.Ops) * 1e6 })
	}
}

var h2loadResult = regexp.MustCompile(`(?s)finished in [^,]*, ([0-9.]+) req/s, .*requests: (\d+) total, .* (\d+) failed, (\d+) errored, (\d+) timeout`)

// h2load runs nghttp2's load generator against addr for a URL without its scheme. A
// request that fails, fails the test.
func h2load(t testing.TB, addr, url string, args ...string) outcome {
	t.Helper()
	args = append([]string{"--connect-to", addr}, args...)
	out := run(t, exec.Command(tool(t, "h2load", "nghttp2-client"), append(args, "https://"+url)...))
	m := h2loadResult.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("h2load:\n%s", out)
	}
	rate, _ := strconv.ParseFloat(m[1], 64)
	total, _ := strconv.ParseInt(m[2], 10, 64)
	if rate == 0 || m[3] != "0" || m[4] != "0" || m[5] != "0" {
		t.Errorf("h2load %s:\n%s", url, out)
	}
	return outcome{Ops: total, Seconds: float64(total) / rate}
}
