//go:build linux

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/diag"
)

// fakeClock is a server of NTP whose clock is ahead.
func fakeClock(t *testing.T, ahead time.Duration) string {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := time.Now().Add(ahead)
			at := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()+2208988800)<<32|uint64(now.Nanosecond())<<32/1e9)
			a := append([]byte{4<<3 | 4, 1, 6, 0xec, 0, 0, 0, 0, 0, 0, 0, 0, 'G', 'P', 'S', 0}, make([]byte, 8)...)
			a = append(append(append(a, b[40:48]...), at...), at...)
			c.WriteToUDPAddrPort(a, from)
		}
	}()
	return c.LocalAddr().String()
}

// TestDiag has an operator look after a site that has all kinds of trouble, by tunnelctl and by curl's way: the public relay
// carries it and reads none of it.
func TestDiag(t *testing.T) {
	s := configure(t, nil)

	// A web server with a certificate that ends in five days, one whose authority nobody knows, and a name server.
	dir := tempDir(t)
	openssl := tool(t, "openssl", "openssl")
	run(t, exec.Command(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "5", "-subj", "/CN=soon",
		"-addext", "subjectAltName=IP:127.0.0.1", "-keyout", dir+"/soon.key", "-out", dir+"/soon.pem"))
	secure := freeAddr(t)
	awaitPort(t, start(t, "openssl s_server", exec.Command(openssl, "s_server", "-accept", secure, "-cert", dir+"/soon.pem", "-key", dir+"/soon.key", "-www")), "tcp", secure)
	names := freeAddr(t)
	_, port, _ := strings.Cut(names, ":")
	awaitPort(t, start(t, "dnsmasq", exec.Command(tool(t, "dnsmasq", "dnsmasq-base", "/usr/sbin/dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-daemon",
		"--port="+port, "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=", "--user=", "--host-record=app.lan,10.0.0.5,fd00::5",
		"--txt-record=app.lan,hello there", "--srv-host=_sip._tcp.lan,sip.lan,5060,1,2", "--mx-host=app.lan,mail.lan,10")), "tcp", names)
	web := startSink(t)
	gone := freeAddr(t)
	clock := fakeClock(t, 100*time.Second)

	s.services = []service{
		{"web", "https://web.example.com", "http://" + web},
		{"gone", "", "tcp://" + gone},
		{"secure", "https://secure.example.com", "https://" + secure},
		{"folder", "https://folder.example.com", "file://" + dir},
	}
	s.more = map[string]string{"secure": fmt.Sprintf("ca = %q\n", dir+"/soon.pem")}
	s.startPublic()
	s.startPrivate()
	ctl := func(code int, args ...string) string {
		t.Helper()
		cmd := s.tunnelctl(args...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != code {
			t.Errorf("tunnelctl %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
		}
		return string(out)
	}
	// Nobody is told of a site that does not allow it.
	if out := ctl(4, "diag", "office"); !strings.Contains(out, "diagnostics = true") {
		t.Errorf("without diagnostics:\n%s", out)
	}

	// A reload is enough to allow it.
	s.options += fmt.Sprintf("diagnostics = true\ndiagnostics_targets = [\"services\", %q]\ndiagnostics_ntp = [%q]\n", names, clock)
	s.writePrivate()
	from := s.private.lines()
	s.private.signal(t, syscall.SIGHUP)
	s.private.await(t, from, `"msg":"reloaded"`)
	s.private.await(t, from, `"msg":"service up"`, `"service":"diagnostics"`)

	cmd := s.tunnelctl("diag", "office", "--json", "--target", web, "--target", "http://"+web+"/", "--target", "127.0.0.1:1", "--name", "localhost")
	out, _ := cmd.Output()
	if cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("exit code %d, want 6", cmd.ProcessState.ExitCode())
	}
	var r diag.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := func(words ...string) bool {
	next:
		for _, f := range r.Findings {
			line := f.Level + " " + f.Subject + ": " + f.Text + " " + f.Do
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return true
		}
		return false
	}
	for _, words := range [][]string{
		{"wrong", "service gone", "refused", "start the server"},
		{"warning", "service secure", "expires in 5 days", "renew it"},
		{"wrong", "clock", "is off: 1m", "NTP"},
		{"note", "target 127.0.0.1:1", "diagnostics_targets"},
	} {
		if !found(words...) {
			t.Errorf("no finding with %q", words)
		}
	}
	if found("service web") || found("service folder") {
		t.Error("something is wrong that is not")
	}
	if len(r.Relays) != 1 || !r.Relays[0].Linked || len(r.Relays[0].Links) == 0 || r.Site != "office" || len(r.Interfaces) == 0 || len(r.Targets) != 3 ||
		r.Targets[0].Connect == nil || !r.Targets[0].Connect.OK || r.Targets[1].HTTP == nil || r.Targets[1].HTTP.Status == 0 {
		t.Errorf("%s", out)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}

	// For people, the worst is first, and no line of a table is missing.
	text := ctl(6, "diag", "office")
	for _, want := range []string{"WRONG service gone", "WARNING service secure", "WRONG clock", "Links", "Services", "Interfaces", "wss"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the report:\n%s", want, text)
		}
	}
	if strings.Index(text, "WRONG") > strings.Index(text, "WARNING") {
		t.Errorf("a warning comes first:\n%s", text)
	}

	// Each method alone, over HTTP.
	ask := func(path string) string { return ctl(0, "http", "office/diagnostics", path) }
	dig := func(name, kind string) string {
		host, port, _ := strings.Cut(names, ":")
		return strings.TrimSpace(run(t, exec.Command(tool(t, "dig", "bind9-dnsutils"), "+short", "+time=5", "-p", port, "@"+host, name, kind)))
	}
	for _, q := range [][2]string{{"app.lan", "A"}, {"app.lan", "AAAA"}, {"app.lan", "MX"}, {"_sip._tcp.lan", "SRV"}} {
		var a diag.Answer
		if err := json.Unmarshal([]byte(ask("/site/Lookup?name="+q[0]+"&type="+q[1]+"&server="+names)), &a); err != nil || len(a.Records) != 1 || a.Records[0].Value != dig(q[0], q[1]) {
			t.Errorf("%s %s: %+v, %v; dig says %q", q[0], q[1], a, err, dig(q[0], q[1]))
		}
	}
	var h diag.Handshake
	if err := json.Unmarshal([]byte(ask("/site/Certificate?target="+secure)), &h); err != nil || !h.Verified || h.Left > 5.1 || h.Left < 4.5 || h.Chain[0].Subject != "CN=soon" {
		t.Errorf("%+v, %v", h, err)
	}
	if got := ctl(0, "http", "office/diagnostics", "/site/Connect?target=169.254.169.254:80", "-i"); !strings.Contains(got, " 403 ") {
		t.Errorf("the metadata service: %s", got)
	}
	if got := ctl(0, "http", "office/diagnostics", "/site/Wake?mac=00:11:22:33:44:55", "-i"); !strings.Contains(got, " 405 ") {
		t.Errorf("woken by a GET: %s", got)
	}
	if got := ask("/openapi.json"); !strings.Contains(got, "/site/Lookup") {
		t.Errorf("openapi.json: %.200s", got)
	}
	// Visitors reach none of it: it has no address.
	if got := ctl(0, "services"); !strings.Contains(got, "diagnostics") {
		t.Errorf("services:\n%s", got)
	}
}
