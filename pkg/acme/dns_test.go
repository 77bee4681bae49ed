package acme

import (
	"context"
	"encoding/base64"
	"fmt"
	"github.com/mholt/acmez/v3/acme"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// nameServer is the primary server of example.com, with dynamic updates.
type nameServer struct {
	addr    string
	mu      sync.Mutex
	txt     map[string][]string
	updates []string // network, and what was asked
	lie     func(m *dns.Msg, network string)
}

const (
	tsigName   = "culvert.key."
	tsigSecret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
)

func startNames(t testing.TB) *nameServer {
	t.Helper()
	n := &nameServer{txt: make(map[string][]string)}
	var pc net.PacketConn
	var ln net.Listener
	for try := 0; ; try++ { // the same port for both
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if ln, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	n.addr = pc.LocalAddr().String()
	var done sync.WaitGroup
	for _, s := range []*dns.Server{{PacketConn: pc, Net: "udp"}, {Listener: ln, Net: "tcp"}} {
		s.TsigSecret = map[string]string{tsigName: tsigSecret}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { n.serve(w, m, s.Net) })
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // updates too
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done.Go(func() { s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	t.Cleanup(func() { pc.Close(); ln.Close(); done.Wait() })
	return n
}

func (n *nameServer) serve(w dns.ResponseWriter, m *dns.Msg, network string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := new(dns.Msg)
	r.SetReply(m)
	r.Authoritative = true
	defer func() {
		if n.lie != nil {
			n.lie(r, network)
		}
		w.WriteMsg(r)
	}()
	name := strings.ToLower(m.Question[0].Name)
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1}, Ns: "ns.example.com.", Mbox: "ops.example.com.", Serial: 1, Minttl: 1}
	if m.Opcode == dns.OpcodeUpdate {
		tsig := m.IsTsig()
		if tsig == nil || w.TsigStatus() != nil {
			r.Rcode = dns.RcodeNotAuth
			return
		}
		r.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, time.Now().Unix())
		for _, rr := range m.Ns {
			txt, ok := rr.(*dns.TXT)
			if !ok {
				r.Rcode = dns.RcodeRefused
				return
			}
			key := strings.ToLower(txt.Hdr.Name)
			n.updates = append(n.updates, network+" "+key)
			value := strings.Join(txt.Txt, "")
			if txt.Hdr.Class == dns.ClassINET {
				n.txt[key] = append(n.txt[key], value)
			} else {
				n.txt[key] = slices.DeleteFunc(n.txt[key], func(v string) bool { return v == value })
			}
		}
		return
	}
	switch m.Question[0].Qtype {
	case dns.TypeSOA:
		if name == "example.com." {
			r.Answer = append(r.Answer, soa)
			return
		}
	case dns.TypeNS:
		if name == "example.com." {
			r.Answer = append(r.Answer, &dns.NS{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 1}, Ns: "ns.example.com."})
			return
		}
	case dns.TypeA:
		r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)})
		return
	case dns.TypeTXT:
		for _, v := range n.txt[name] {
			r.Answer = append(r.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{v}})
		}
	}
	if len(r.Answer) == 0 {
		r.Ns = append(r.Ns, soa)
	}
}

// left are the records that are still there.
func (n *nameServer) left() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.txt {
		list = append(list, v...)
	}
	return list
}

func (n *nameServer) updated(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.updates, what)
}

func (n *nameServer) lying(f func(m *dns.Msg, network string)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lie = f
}

// A wildcard, proved by dynamic updates; other names use it, and have their own where nobody may prove otherwise.
func TestWildcard(t *testing.T) {
	t.Parallel()
	names := startNames(t)
	p := startPebble(t, options{dns: names.addr})
	for _, algorithm := range []string{"", "hmac-sha512"} {
		t.Run("rfc2136 "+algorithm, func(t *testing.T) {
			p := p.in(t)
			s := p.site(func(c *Config) {
				c.Challenges = []string{DNS01}
				c.DNS = &DNS{Resolvers: []string{names.addr}, Provider: &RFC2136{Server: names.addr, KeyName: "culvert.key", KeyAlgorithm: algorithm, Secret: tsigSecret}}
			})
			p.prove(s)
			s.Manage([]string{"*.example.com", "app.example.com", "example.com"})
			s.certified(t, "example.com") // the record has the same name
			leaf, err := p.visit("app.example.com")
			if err != nil || leaf.DNSNames[0] != "*.example.com" {
				t.Errorf("a name below the wildcard: %v", err)
			}
			if list := names.left(); len(list) > 0 {
				t.Errorf("records that are left: %q", list)
			}
			if !names.updated("udp _acme-challenge.example.com.") {
				t.Error("no update was seen")
			}
		})
	}
}

// A wildcard, proved by a program that changes records, with a name server that knows of no zones.
func TestWildcardHook(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the program is a shell script")
	}
	t.Parallel()
	p := startPebble(t, options{})
	dir := t.TempDir()
	program := filepath.Join(dir, "hook")
	script := `#!/bin/sh
set -e
case $1 in
present) curl -sS -d "{\"host\":\"$2\",\"value\":\"$3\"}" ` + p.dnsAdmin + `/set-txt; echo "set a record for $CERTBOT_DOMAIN" >&2; touch ` + dir + `/"$3" ;;
cleanup) curl -sS -d "{\"host\":\"$2\"}" ` + p.dnsAdmin + `/clear-txt; rm ` + dir + `/"$3" ;;
esac
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	log := newLog(t)
	s := p.site(func(c *Config) {
		c.DNS = &DNS{Resolvers: []string{p.dns}, Hook: &Hook{Program: program, Env: os.Environ(), Log: log.Logger, Timeout: 30 * time.Second}}
	})
	p.prove(s)
	s.Manage([]string{"*.example.com"})
	s.certified(t, "*.example.com")
	if !strings.Contains(log.String(), "set a record for example.com") {
		t.Errorf("what the hook says is not in the log:\n%s", log.String())
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 { // the hook
		t.Errorf("records that are left: %v, %v", files, err)
	}
}

func TestRFC2136(t *testing.T) {
	n := startNames(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	rec := []libdns.Record{libdns.RR{Name: "_acme-challenge.app", Type: "TXT", Data: "value", TTL: time.Minute}}
	good := RFC2136{Server: n.addr, KeyName: tsigName, Secret: tsigSecret}
	try := func(p RFC2136) error {
		_, err := p.AppendRecords(ctx, "example.com", rec)
		return err
	}
	for _, tc := range []struct {
		name   string
		change func(p *RFC2136)
		lie    func(m *dns.Msg, network string)
		want   string
	}{
		{"good", nil, nil, ""},
		{"cut short", nil, func(m *dns.Msg, network string) { m.Truncated = network == "udp" }, ""},
		{"other secret", func(p *RFC2136) { p.Secret = base64.StdEncoding.EncodeToString([]byte("another")) }, nil, "has another secret"},
		{"no key", func(p *RFC2136) { p.KeyName = "" }, nil, "NOTAUTH"},
		{"refused", nil, func(m *dns.Msg, _ string) { m.Rcode = dns.RcodeRefused }, "the key may not change this name"},
		{"unsigned", nil, func(m *dns.Msg, _ string) { m.Extra = nil }, "the answer is not signed"},
		{"a query's answer", nil, func(m *dns.Msg, _ string) { m.Opcode = dns.OpcodeQuery }, "another question"},
		{"nobody", func(p *RFC2136) { p.Server = "127.0.0.1:1" }, nil, "connection refused"},
	} {
		p := good
		if tc.change != nil {
			tc.change(&p)
		}
		n.lying(tc.lie)
		err := try(p)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), p.Secret) {
			t.Errorf("%s: the error has the secret", tc.name)
		}
	}
	if !n.updated("tcp _acme-challenge.app.example.com.") {
		t.Error("an answer that was cut short was not asked for by TCP")
	}
	for text, p := range map[string]RFC2136{
		"HOST:PORT": {Server: "ns"}, "hmac-md5": {Server: "ns:53", KeyName: "k", KeyAlgorithm: "hmac-md5"}, "base64": {Server: "ns:53", KeyName: "k", Secret: "?"},
	} {
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v, want %q", p, err, text)
		}
	}
}

func TestHook(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the program is a shell script")
	}
	dir := t.TempDir()
	program := func(script string) *Hook {
		file := filepath.Join(dir, fmt.Sprintf("hook%d", len(script)))
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		return &Hook{Program: file, Timeout: time.Minute}
	}
	const name = "_acme-challenge.app.example.com."
	out := filepath.Join(dir, "out")
	h := program("echo \"$@ $CERTBOT_DOMAIN $CERTBOT_VALIDATION\" > " + out)
	if err := h.call(t.Context(), "cleanup", name, "value"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(out); string(b) != "cleanup _acme-challenge.app.example.com. value app.example.com value\n" {
		t.Errorf("called with %q", b)
	}
	for script, want := range map[string]string{
		"echo first >&2; echo no such zone >&2; exit 3": "exit status 3: no such zone",
		"exec sleep 30":             "has not ended in 800ms",
		"sleep 30 & exit 4 # child": "exit status 4",
	} {
		h := program(script)
		if strings.Contains(script, "sleep") {
			h.Timeout = 800 * time.Millisecond // less than is waited for a child
		}
		if err := h.call(t.Context(), "present", name, "value"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", script, err, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "-1": 0, "x": 0, "120": 2 * time.Minute, "0": 0,
		"99999999":                      maxPause,
		"99999999999999999999999999":    maxPause,
		"Fri, 02 Jan 2026 04:04:05 GMT": time.Hour,
		"Fri, 02 Jan 2027 04:04:05 GMT": maxPause,
		"Thu, 01 Jan 2026 04:04:05 GMT": 0,
	} {
		got, ok := retryAfter(value, now)
		if ok != (want > 0) || ok && got.Sub(now) != want {
			t.Errorf("%q: %v %v, want %v", value, got.Sub(now), ok, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "-1", "99999999999999999999", "Fri, 02 Jan 2026 04:04:05 GMT"} {
		f.Add(s)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := retryAfter(s, now); ok && (got.Before(now) || got.Sub(now) > maxPause) {
			t.Errorf("%q: %v", s, got)
		}
	})
}

// FuzzHTTPChallenge looks for paths that get an answer without a token that is out.
func FuzzHTTPChallenge(f *testing.F) {
	for _, s := range []string{"", "/", ChallengePath, ChallengePath + "token", ChallengePath + "../token", ChallengePath + "TOKEN", ChallengePath + "token/"} {
		f.Add("app.example.com", s)
	}
	m, err := New(Config{Store: openFiles(f, f.TempDir()), Directories: []Directory{{URL: "https://127.0.0.1:1/dir"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(m.Close)
	c := testChallenge("app.example.com", "token")
	if err := (httpSolver{&m.challenges}).Present(context.Background(), c); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, host, path string) {
		answer, ok := m.HTTPChallenge(host, path)
		if want := strings.EqualFold(host, "app.example.com") && path == ChallengePath+"token"; ok != want || ok && answer != c.KeyAuthorization {
			t.Errorf("%q %q: %q, %v", host, path, answer, ok)
		}
	})
}

// What failed is waited for longer and longer, but not beyond what the certificate has left.
func TestWaits(t *testing.T) {
	now := time.Now()
	var r record
	last := time.Duration(0)
	for i := range 12 {
		r.failed(now, []refusal{{CA: "a", Message: "no", reached: true}}, 0)
		wait := r.Next.Sub(now)
		if want := waits[min(i, len(waits)-1)]; wait < want || wait > want+want/5 {
			t.Errorf("failure %d: %v, want about %v", i+1, wait, want)
		}
		last = wait
	}
	if last > 15*time.Hour || r.Failures != 12 {
		t.Errorf("%v after %d failures", last, r.Failures)
	}
	r.failed(now, []refusal{{CA: "a", reached: true}}, 10*time.Hour)
	if wait := r.Next.Sub(now); wait > 72*time.Minute {
		t.Errorf("%v, while the certificate has ten hours", wait)
	}
	r.failed(now, []refusal{{CA: "a"}}, 0)
	if wait := r.Next.Sub(now); wait > maxUnreached+maxUnreached/5 {
		t.Errorf("%v, while nobody answers", wait)
	}
	// Of two authorities one asks for more time than the other.
	r = record{}
	r.failed(now, []refusal{{CA: "a", reached: true, Until: now.Add(48 * time.Hour)}, {CA: "b", reached: true, Until: now.Add(2 * time.Hour)}}, 0)
	if !r.Next.Equal(now.Add(2 * time.Hour)) {
		t.Errorf("next in %v, want when the first may be asked", r.Next.Sub(now))
	}
	r.failed(now, []refusal{{CA: "a", reached: true, Until: now.Add(48 * time.Hour)}, {CA: "b", reached: true}}, 0)
	if wait := r.Next.Sub(now); wait > time.Hour {
		t.Errorf("next in %v, though one authority has not asked for time", wait)
	}
}

func testChallenge(name, token string) acme.Challenge {
	return acme.Challenge{Type: HTTP01, Token: token, KeyAuthorization: token + ".thumb", Identifier: acme.Identifier{Type: "dns", Value: name}}
}
