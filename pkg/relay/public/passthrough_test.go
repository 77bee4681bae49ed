package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// siteTLS is what a site ends TLS with: its certificate is nowhere in the relay.
var siteTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: farOff, DNSNames: []string{"*.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"h2", "http/1.1", "acme-tls/1", "mail"},
	}
})

// tlsTarget echoes behind the TLS of the site, and says which name it was asked for.
func tlsTarget(t *testing.T) string {
	return target(t, func(c net.Conn, _ *bufio.Reader) {
		tc := tls.Server(c, siteTLS())
		if tc.Handshake() != nil {
			return
		}
		io.WriteString(tc, tc.ConnectionState().ServerName+"\n")
		io.Copy(tc, tc)
	})
}

// newPassing is a relay with two sites, the first of which may publish names by
// tls.
func newPassing(t *testing.T, portable bool, change func(*Relay)) *testRelay {
	t.Helper()
	r := newTestRelay(t, portable, change)
	r.Reload([]Site{
		{Name: "office", Keys: []string{"k"}, Publish: patterns("tls://*.test", "https://*.test", "http://*.test", "tls://relay.test")},
		{Name: "home", Keys: []string{"k"}, Publish: patterns("tls://*.test", "https://*.test")},
	})
	return r
}

// shake connects a visitor who asks for name, and returns who has answered: "site",
// "relay", or what went wrong.
func (r *testRelay) shake(name string, protocols ...string) (*tls.Conn, string) {
	r.t.Helper()
	tc := tls.Client(r.connection(), &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: protocols})
	if err := tc.Handshake(); err != nil {
		if alert, ok := errors.AsType[tls.AlertError](err); ok {
			return tc, alert.Error()
		}
		return tc, err.Error()
	}
	switch leaf := tc.ConnectionState().PeerCertificates[0].Raw; {
	case bytes.Equal(leaf, siteTLS().Certificates[0].Certificate[0]):
		return tc, "site"
	case bytes.Equal(leaf, testTLS().Certificates[0].Certificate[0]):
		return tc, "relay"
	}
	return tc, "somebody else"
}

// connection is one to the https listener, of which nothing is used.
func (r *testRelay) connection() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.https)
	if err != nil {
		r.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	r.t.Cleanup(func() { c.Close() })
	return c
}

const internalError = "remote error: tls: internal error"

// TestPassThrough shows whose TLS a visitor meets.
func TestPassThrough(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newPassing(t, portable, nil)
		site, web := tlsTarget(t), target(t, okTarget)
		r.connect("office", map[string]string{"mail": site, "any": site, "web": web}, "mail", "tls://mail.test", "web", "https://web.test")
		r.connect("home", map[string]string{"any": site}, "any", "tls://*.test")
		for _, tt := range []struct {
			name, want string
		}{
			{"mail.test", "site"},
			{"MAIL.test", "site"},
			{"other.test", "site"},    // by the wildcard
			{"web.test", "relay"},     // exact before it
			{"relay.test", "relay"},   // the relay's own, whatever somebody may publish
			{"a.b.test", "relay"},     // a wildcard stands for one label
			{"mail.example", "relay"}, // nobody's
			{"127.0.0.1", "relay"},    // which crypto/tls does not send
			{"", "relay"},
		} {
			tc, who := r.shake(tt.name)
			if who != tt.want {
				t.Errorf("%q meets %s, want %s", tt.name, who, tt.want)
			}
			if who == "site" {
				if line, _ := bufio.NewReader(tc).ReadString('\n'); line != tt.name+"\n" {
					t.Errorf("%q: the site hears of %q", tt.name, line)
				}
			}
			tc.Close()
		}
		// Whatever the protocol is, and the challenge of a certificate in particular.
		for _, protocol := range []string{"h2", "http/1.1", "acme-tls/1", "mail"} {
			tc, who := r.shake("mail.test", protocol)
			if got := tc.ConnectionState().NegotiatedProtocol; who != "site" || got != protocol {
				t.Errorf("%s meets %s and speaks %s", protocol, who, got)
			}
			tc.Close()
		}
		// A request cannot reach a name of tls:// over the connection of another name.
		c, _ := r.shake("web.test")
		v := &testVisitor{t, c, bufio.NewReader(c)}
		for _, host := range []string{"mail.test", "other.test"} {
			v.send("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
			if res, _ := v.response("GET"); res.StatusCode != 421 {
				t.Errorf("https request for %s: %s, want 421", host, res.Status)
			}
		}
		v.send(strings.Replace(get, "app", "web", 1))
		if res, body := v.response("GET"); res.StatusCode != 200 || body != "ok" {
			t.Errorf("and one for the https service: %s %q", res.Status, body)
		}
	})
}

// What a visitor and a site exchange comes to them byte by byte as it was sent, the ClientHello first.
func TestPassThroughBytes(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newPassing(t, portable, nil)
		echo := target(t, func(c net.Conn, _ *bufio.Reader) {
			io.Copy(c, c)
			io.WriteString(c, "bye")
		})
		var headers []relay.Header
		s := r.connect("office", map[string]string{"raw": echo}, "raw", "tls://raw.test")
		s.handle(func(_ *tunnel.Stream, h relay.Header) bool { headers = append(headers, h); return false })
		hello := helloOf("raw.test")
		records := func(size int) (b []byte) {
			for part := range slices.Chunk(hello[5:], size) {
				b = append(append(b, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
			}
			return b
		}
		for name, sent := range map[string][]byte{"as it is": hello, "in records of a byte": records(1), "in records of a hundred": records(100)} {
			for _, cut := range []int{1, 7, len(sent)} {
				if cut == 1 && name != "as it is" {
					continue // thousands of segments
				}
				c := r.connection()
				all := append(bytes.Clone(sent), make([]byte, 300_000)...)
				rand.Read(all[len(sent):])
				go func() {
					for part := range slices.Chunk(sent, cut) {
						c.Write(part)
					}
					c.Write(all[len(sent):])
					c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, append(all, "bye"...)) {
					t.Errorf("hello %s, cut every %d: %d of %d bytes came back, %v", name, cut, len(got), len(all)+3, err)
				}
				var header relay.Header
				onLoop(s.session.loop.Loop, func() { header = headers[len(headers)-1] })
				if header.Scheme != "tls" || header.Host != "raw.test" || header.Service != "raw" || header.Visitor.Addr() != c.LocalAddr().(*net.TCPAddr).AddrPort().Addr() || header.Visitor.Port() != uint16(c.LocalAddr().(*net.TCPAddr).Port) {
					t.Errorf("the stream's header: %+v", header)
				}
			}
		}
		var total, received, sent uint64
		waitFor(t, func() bool {
			svc := r.Status(context.Background()).Sessions[0].Services[0]
			total, received, sent = svc.Total, svc.Received, svc.Sent
			return svc.Visitors == 0
		})
		if total != 7 || received < 7*300_000 || sent != received+7*3 {
			t.Errorf("counted: %d visitors, %d bytes in, %d out", total, received, sent)
		}
	})
}

// helloOf is the first record of a client that asks for name.
func helloOf(name string) []byte {
	a, b := net.Pipe()
	go func() {
		tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	}()
	hello := make([]byte, 16<<10)
	n, _ := b.Read(hello)
	b.Close()
	return hello[:n]
}

// What is no ClientHello, or has a name that is none, gets an alert, and nobody's service.
func TestPassThroughRefused(t *testing.T) {
	r := newPassing(t, false, nil)
	site := tlsTarget(t)
	s := r.connect("office", map[string]string{"any": site}, "any", "tls://*.test")
	var streams int
	s.handle(func(*tunnel.Stream, relay.Header) bool { streams++; return false })
	hello := helloOf("mail.test")
	renamed := func(name string) []byte {
		return bytes.Replace(hello, []byte("mail.test"), []byte(name)[:9], 1)
	}
	for name, tt := range map[string]struct {
		send  []byte
		alert byte // 0: any
	}{
		"port in the name":        {renamed("a.test:44"), 47},
		"dot at the beginning":    {renamed(".ail.test"), 47},
		"two dots":                {renamed("mail..est"), 47},
		"a space":                 {renamed("ma l.test"), 47},
		"NUL":                     {renamed("ma\x00l.test"), 47},
		"a wildcard":              {renamed("*ail.test"), 47},
		"not ASCII":               {renamed("ma\xfc!.test"), 47},
		"dot at the end":          {renamed("mai.test."), 0},
		"HTTP":                    {[]byte(get), 10},
		"SSL 2":                   {[]byte("\x80\x2e\x01\x03\x01"), 70},
		"length beyond its end":   {append([]byte{22, 3, 1, 0, 6, 1, 0, 0, 2, 3}, 3), 0},
		"record that is too long": {[]byte{22, 3, 1, 0x7f, 0xff}, 22},
		"hello that is too long":  {[]byte{22, 3, 1, 0, 4, 1, 2, 0, 0}, 47},
	} {
		c := r.connection()
		c.Write(tt.send)
		got, err := io.ReadAll(c)
		if err != nil || len(got) != 7 || !bytes.Equal(got[:6], []byte{21, 3, 3, 0, 2, 2}) || tt.alert != 0 && got[6] != tt.alert {
			t.Errorf("%s: answer % x, %v; want alert %d", name, got, err, tt.alert)
		}
		c.Close()
	}
	onLoop(s.session.loop.Loop, func() {
		if streams > 0 {
			t.Errorf("%d streams were opened", streams)
		}
	})
}

// While a site is away its visitors get an alert, not the certificate of somebody else; and so do those who come
// when there are too many.
func TestPassThroughAway(t *testing.T) {
	r := newPassing(t, false, func(r *Relay) { r.MaxPerAddress = 2 })
	want := func(when, name, want string) {
		t.Helper()
		tc, who := r.shake(name)
		if tc.Close(); who != want {
			t.Errorf("%s %s meets %s, want %s", when, name, who, want)
		}
	}
	site, web := tlsTarget(t), target(t, okTarget)
	want("before any site has come", "mail.test", internalError)
	want("before any site has come", "a.b.test", "relay")
	home := r.connect("home", nil)
	office := r.connect("office", map[string]string{"mail": site, "any": site, "web": web}, "mail", "tls://mail.test", "web", "https://web.test")
	want("when it is there", "mail.test", "site")
	want("when all have said what they publish", "other.test", "relay")
	end := func(s *testSite) { onLoop(s.session.loop.Loop, func() { s.session.close(nil) }) }
	end(office)
	want("when it has gone", "mail.test", internalError)
	want("when it has gone", "web.test", "relay") // which says 503
	want("when it has gone", "other.test", internalError)
	end(home)
	home = r.connect("home", map[string]string{"any": web}, "any", "https://*.test", "mail", "https://mail.test")
	want("when another one has the name", "mail.test", "relay")
	end(home)
	r.connect("home", map[string]string{"any": web}, "any", "https://*.test")
	want("when another one has the wildcard", "mail.test", internalError)
	want("when another one has the wildcard", "other.test", "relay")
	r.connect("office", map[string]string{"mail": site}, "mail", "tls://mail.test")
	want("when it is back", "mail.test", "site")

	waitFor(t, func() bool { return r.admission.connected() == 0 })
	for range 2 {
		if tc, who := r.shake("mail.test"); who != "site" {
			t.Errorf("%s", who)
		} else {
			defer tc.Close()
		}
	}
	want("when there are too many", "mail.test", internalError)
}

// A relay that has just begun, and one whose site is about to be taken over, keeps the visitors until it is known
// who serves them.
func TestPassThroughHeld(t *testing.T) {
	r := newPassing(t, false, func(r *Relay) { r.Grace = 20 * time.Second })
	visit := func(name string) <-chan string {
		done := make(chan string, 1)
		go func() {
			tc, who := r.shake(name)
			tc.Close()
			done <- who
		}()
		waitFor(t, func() bool {
			isHeld := false
			for _, l := range r.loops {
				onLoop(l.Loop, func() { isHeld = isHeld || l.first != nil && l.first.phase == held })
			}
			return isHeld
		})
		return done
	}
	grace := visit("mail.test")
	site := map[string]string{"mail": tlsTarget(t)}
	a := r.connectAs(machine('a', '1'), site, "mail", "tls://mail.test")
	if who := <-grace; who != "site" {
		t.Errorf("who came before the site has met %s", who)
	}
	r.connectAs(machine('b', '1'), site, "mail", "tls://mail.test")
	onLoop(a.session.loop.Loop, a.cut)
	if who := <-visit("mail.test"); who != "site" {
		t.Errorf("who came before the takeover has met %s", who)
	}
	if standby := r.Status(context.Background()).Sessions[0]; standby.Active {
		t.Error("there was no takeover")
	}
}

// A host belongs to https:// or to tls://, of one site or of several.
func TestPassThroughConflicts(t *testing.T) {
	r := newPassing(t, false, nil)
	announce := func(s *testSite, publish ...string) (errs []string) {
		t.Helper()
		replies := make(chan []relay.AnnounceReply, 1)
		var list []relay.Announcement
		for _, url := range publish {
			list = append(list, relay.Announcement{Name: strings.NewReplacer("://", "-", "/", "-", "*", "any").Replace(url), Publish: url, TargetScheme: "http"})
		}
		onLoop(s.session.loop.Loop, func() { s.announce(list, replies) })
		for i, reply := range <-replies {
			if reply.Error == "" && !slices.Equal(reply.Addresses, []string{strings.Replace(publish[i], ".test", ".test:"+portOf(r.https), 1)}) {
				t.Errorf("%s is reached at %q", publish[i], reply.Addresses)
			}
			errs = append(errs, reply.Error)
		}
		return errs
	}
	check := func(errs []string, want ...string) {
		t.Helper()
		for i, err := range errs {
			if want[i] == "" && err != "" || !strings.Contains(err, want[i]) {
				t.Errorf("service %d: %q, want %q", i, err, want[i])
			}
		}
	}
	office, home := r.connect("office", nil), r.connect("home", nil)
	check(announce(office, "tls://a.test", "https://a.test", "wss://a.test/x", "https://b.test/x", "tls://b.test", "https://b.test/y", "tls://*.test", "tls://a.test/x"),
		"", `service "tls-a.test" has this host by tls://`, "can end in one place only", "", `service "https-b.test-x" has this host by https://`, "", "", "tls has no path")
	check(announce(home, "https://a.test", "tls://b.test", "https://*.test", "tls://c.test", "https://d.test"),
		"another site has this host by tls://", "another site has this host by https://", "another site has this host by tls://", "", "")
	// A stand-by hears the same.
	standby := r.connectAs(relay.Hello{Site: "home", Key: "k", Machine: strings.Repeat("b", 32), Process: strings.Repeat("b", 32)}, nil)
	check(announce(standby, "https://a.test", "tls://c.test", "https://c.test/"), "another site has this host by tls://", "", `service "tls-c.test" has`)
	// What is announced no more is free, for the other kind as well.
	check(announce(office, "https://a.test", "tls://b.test"), "", "")
	check(announce(home, "https://*.test", "tls://c.test"), "", "")
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// A request in the clear for a name of tls:// is sent to https, if there is a web server behind it.
func TestPassThroughRedirect(t *testing.T) {
	r := newPassing(t, false, nil)
	r.connect("home", nil)
	s := r.connect("office", nil)
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.session.loop.Loop, func() {
		s.announce([]relay.Announcement{{Name: "web", Publish: "tls://web.test", TargetScheme: "http"}, {Name: "mail", Publish: "tls://mail.test", TargetScheme: "tcp"}}, replies)
	})
	<-replies
	for host, want := range map[string]int{"web.test": 301, "mail.test": 404} {
		if got := r.status(false, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); got != want {
			t.Errorf("http://%s: %d, want %d", host, got, want)
		}
	}
}

// What a service demands, and what one address may do, holds before anything reaches the site.
func TestPassThroughLimited(t *testing.T) {
	site := map[string]string{"mail": tlsTarget(t)}
	t.Run("handshakes", func(t *testing.T) {
		r := newPassing(t, false, func(r *Relay) { r.HandshakesPerAddress = 10 }) // two at once
		r.connect("office", site, "mail", "tls://mail.test")
		for i := range 4 {
			tc, who := r.shake("mail.test")
			if tc.Close(); (who == "site") != (i < 2) {
				t.Errorf("handshake %d meets %s", i, who)
			}
		}
	})
	t.Run("policy", func(t *testing.T) {
		r := newPassing(t, false, nil)
		s := r.connect("office", site)
		var streams int
		s.handle(func(*tunnel.Stream, relay.Header) bool { streams++; return false })
		announce := func(p *relay.Policy) {
			replies := make(chan []relay.AnnounceReply, 1)
			onLoop(s.session.loop.Loop, func() {
				s.announce([]relay.Announcement{{Name: "mail", Publish: "tls://mail.test", TargetScheme: "tcp", Policy: p}}, replies)
			})
			if reply := (<-replies)[0]; reply.Error != "" {
				t.Error(reply.Error)
			}
		}
		for _, tt := range []struct {
			policy *relay.Policy
			want   string
		}{
			{&relay.Policy{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "remote error: tls: access denied"},
			{&relay.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, "remote error: tls: access denied"},
			{&relay.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "site"},
		} {
			announce(tt.policy)
			tc, who := r.shake("mail.test")
			if tc.Close(); who != tt.want {
				t.Errorf("%+v: meets %s, want %s", tt.policy, who, tt.want)
			}
		}
		onLoop(s.session.loop.Loop, func() {
			if streams != 1 {
				t.Errorf("%d streams were opened, want one", streams)
			}
		})
	})
}
