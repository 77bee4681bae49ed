package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run gives in to a negotiation in pieces of that size.
func run(n *Negotiation, in []byte, size int) (out []byte, req *Request, rest []byte, err error) {
	var kept []byte
	for len(in) > 0 && req == nil && err == nil {
		m := min(size, len(in))
		kept = append(kept, in[:m]...)
		in = in[m:]
		var used int
		used, out, req, err = n.Receive(kept, out)
		kept = kept[used:]
	}
	return out, req, append(kept, in...), err
}

func TestNegotiation(t *testing.T) {
	known := func(user, password string) bool { return user == "site" && password == "s3cret" }
	for _, test := range []struct {
		name  string
		login bool
		in    string
		out   string
		req   string
		err   error
	}{
		{"IPv4", false, "\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x05\x01\xbb", "\x05\x00", "1 10.0.0.5 443", nil},
		{"IPv6", false, "\x05\x02\x02\x00\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x50", "\x05\x00", "1 fd00::5 80", nil},
		{"IPv4 in IPv6", false, "\x05\x01\x00\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\x00\x50", "\x05\x00", "1 127.0.0.1 80", nil},
		{"a name", false, "\x05\x01\x00\x05\x01\x00\x03\x07db.corp\x15\x38", "\x05\x00", "1 db.corp 5432", nil},
		{"an address as a name", false, "\x05\x01\x00\x05\x01\x00\x03\x09127.0.0.1\x00\x50", "\x05\x00", "1 127.0.0.1 80", nil},
		{"what follows", false, "\x05\x01\x00\x05\x01\x00\x03\x01a\x00\x50hello", "\x05\x00", "1 a 80", nil},
		{"BIND", false, "\x05\x01\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", "\x05\x00", "2 0.0.0.0 0", nil},
		{"UDP", false, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", "\x05\x00", "3 0.0.0.0 0", nil},
		{"a login", true, "\x05\x02\x00\x02\x01\x04site\x06s3cret\x05\x01\x00\x03\x01a\x00\x50", "\x05\x02\x01\x00", "1 a 80", nil},
		{"a wrong login", true, "\x05\x01\x02\x01\x04site\x05wrong\x05\x01\x00\x03\x01a\x00\x50", "\x05\x02\x01\x01", "", ErrLogin},
		{"an empty login", true, "\x05\x01\x02\x01\x00\x00", "\x05\x02\x01\x01", "", ErrLogin},
		{"no login where one is wanted", true, "\x05\x01\x00", "\x05\xff", "", ErrMethods},
		{"a login where none is wanted", false, "\x05\x01\x02", "\x05\xff", "", ErrMethods},
		{"no method", false, "\x05\x00", "\x05\xff", "", ErrMethods},
		{"a login of another version", true, "\x05\x01\x02\x05\x00\x00", "\x05\x02\x01\x01", "", ErrProtocol},
		{"SOCKS 4", false, "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "\x00\x5b\x00\x00\x00\x00\x00\x00", "", ErrSocks4},
		{"HTTP", false, "CONNECT a:80 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request", "", ErrHTTP},
		{"TLS", false, "\x16\x03\x01", "", "", ErrVersion},
		{"another version", false, "\x05\x01\x00\x04\x01\x00\x01", "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
		{"reserved", false, "\x05\x01\x00\x05\x01\x01\x01", "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
		{"a type that there is not", false, "\x05\x01\x00\x05\x01\x00\x02aa", "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
		{"an empty name", false, "\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
		{"a name with a line", false, "\x05\x01\x00\x05\x01\x00\x03\x03a\nb\x00\x50", "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
		{"port 0", false, "\x05\x01\x00\x05\x01\x00\x03\x01a\x00\x00", "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", "", ErrProtocol},
	} {
		for _, size := range []int{1, 2, 3, 1000} {
			n := new(Negotiation)
			if test.login {
				n.Login = known
			}
			out, req, rest, err := run(n, []byte(test.in), size)
			got := ""
			if req != nil {
				got = fmt.Sprint(req.Command, " ", req.Host, " ", req.Port)
			}
			if !strings.HasPrefix(string(out), test.out) || test.name != "HTTP" && len(out) != len(test.out) || got != test.req || !errors.Is(err, test.err) {
				t.Errorf("%s by %d: %q, %q, %v", test.name, size, out, got, err)
			}
			if test.name == "what follows" && string(rest) != "hello" {
				t.Errorf("left: %q", rest)
			}
		}
	}
}

// What comes of a negotiation does not depend on how it was cut, and nothing is waited for that is longer than it may be.
func FuzzNegotiation(f *testing.F) {
	for _, s := range []string{"\x05\x01\x00\x05\x01\x00\x03\x07db.corp\x15\x38x", "\x05\x02\x00\x02\x01\x04site\x06s3cret\x05\x01\x00\x01\x0a\x00\x00\x05\x01\xbb", "\x04\x01", "GET / HTTP/1.1\r\n"} {
		f.Add([]byte(s), false, 1)
		f.Add([]byte(s), true, 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, login bool, size int) {
		if size < 1 {
			size = 1
		}
		make := func() *Negotiation {
			n := new(Negotiation)
			if login {
				n.Login = func(user, password string) bool { return user == "site" }
			}
			return n
		}
		a, b := make(), make()
		out1, req1, rest1, err1 := run(a, in, len(in)+1)
		out2, req2, rest2, err2 := run(b, in, size)
		if !bytes.Equal(out1, out2) || fmt.Sprint(req1) != fmt.Sprint(req2) || fmt.Sprint(err1) != fmt.Sprint(err2) {
			t.Fatalf("%q %v %v; cut %q %v %v", out1, req1, err1, out2, req2, err2)
		}
		if req1 == nil && err1 == nil && (len(rest1) > 513 || len(rest2) > 513) {
			t.Fatalf("%d bytes are waited behind", len(rest1))
		}
		if req1 != nil && (req1.Host == "" || len(req1.Host) > 255 || strings.ContainsAny(req1.Host, " \r\n\x00")) {
			t.Fatalf("host %q", req1.Host)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x0a\x00\x00\x05\x00\x35question"))
	f.Add([]byte("\x00\x00\x00\x03\x02ns\x00\x35"))
	f.Add([]byte("\x00\x00\x01\x03\x02ns\x00\x35"))
	f.Fuzz(func(t *testing.T, in []byte) {
		host, port, payload, ok := ParseDatagram(in)
		if !ok {
			return
		}
		again := append(AppendDatagramHead(nil, host, port), payload...)
		host2, port2, payload2, ok := ParseDatagram(again)
		if !ok || host2 != host || port2 != port || !bytes.Equal(payload, payload2) {
			t.Fatalf("%q %d: %q %d %v", host, port, host2, port2, ok)
		}
	})
}

func rules(t *testing.T, list string) *Rules {
	t.Helper()
	r := new(Rules)
	for s := range strings.FieldsSeq(list) {
		rule, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		r.Allow = append(r.Allow, rule)
	}
	return r
}

func TestRules(t *testing.T) {
	names := map[string]string{
		"db.corp.example": "10.0.0.5", "www.corp.example": "192.0.2.1 10.0.0.6", "evil.corp.example": "127.0.0.1", "meta.corp.example": "169.254.169.254",
		"mixed.corp.example": "127.0.0.1 10.0.0.7 ::1", "six.corp.example": "fd00::5", "mapped.corp.example": "::ffff:127.0.0.1", "nat64.corp.example": "64:ff9b::7f00:1",
		"localhost": "::1 127.0.0.1", "zero.corp.example": "0.0.0.0", "other.example": "10.1.1.1", "public.example": "192.0.2.7", "corp.example": "10.9.9.9", "alibaba.example": "100.100.100.200",
	}
	looked := 0
	for _, test := range []struct {
		rules, address, want string // want: "" is forbidden
	}{
		{"10.0.0.0/8:*", "10.0.0.5:443", "10.0.0.5:443"},
		{"10.0.0.0/8:*", "11.0.0.5:443", ""},
		{"10.0.0.0/8:443", "10.0.0.5:80", ""},
		{"10.0.0.0/8:8000-8999", "10.0.0.5:8999", "10.0.0.5:8999"},
		{"10.0.0.0/8:8000-8999", "10.0.0.5:9000", ""},
		{"10.0.0.0/8:*", "db.corp.example:5432", "10.0.0.5:5432"},
		{"10.0.0.0/8:*", "www.corp.example:80", "10.0.0.6:80"},
		{"10.0.0.0/8:*", "DB.Corp.Example.:5432", "10.0.0.5:5432"},
		{"10.0.0.0/8:*", "[::ffff:10.0.0.5]:1", "10.0.0.5:1"},
		{"*.corp.example:443", "www.corp.example:443", "192.0.2.1:443 10.0.0.6:443"},
		{"*.corp.example:443", "corp.example:443", ""},
		{"*.corp.example:443", "notcorp.example:443", ""},
		{"*.corp.example:443", "10.0.0.5:443", ""},
		{"db.corp.example:5432", "db.corp.example:5432", "10.0.0.5:5432"},
		{"db.corp.example:5432", "10.0.0.5:5432", ""},
		{"[fd00::/8]:*", "six.corp.example:22", "[fd00::5]:22"},
		{"[fd00::]/8:*", "[fd00::5]:22", "[fd00::5]:22"},
		{"[fd00::5]:22", "[fd00::5]:22", "[fd00::5]:22"},
		{"*:*", "public.example:1", "192.0.2.7:1"},
		{"*:443", "public.example:80", ""},

		// What leads to the relay's own machine, or to the keys of a cloud.
		{"*:* 0.0.0.0/0:* [::/0]:* *.corp.example:* 126.0.0.0/7:*", "127.0.0.1:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:* *.corp.example:*", "evil.corp.example:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:* *.corp.example:*", "meta.corp.example:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:* *.corp.example:*", "mapped.corp.example:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:* [64:ff9b::/64]:*", "nat64.corp.example:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:* *.corp.example:*", "zero.corp.example:80", ""},
		{"*:* 0.0.0.0/0:* 100.64.0.0/10:*", "alibaba.example:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "[::127.0.0.1]:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "[::ffff:0:127.0.0.1]:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "localhost:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "[::1]:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "[fe80::1]:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "[fe80::1%eth0]:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "0.0.0.0:80", ""},
		{"*:* 0.0.0.0/0:* [::/0]:*", "224.0.0.1:80", ""},
		{"*:*", "mixed.corp.example:80", "10.0.0.7:80"},
		{"127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8080"},
		{"127.0.0.1:8080", "evil.corp.example:8080", "127.0.0.1:8080"},
		{"127.0.0.1:8080", "127.0.0.1:8081", ""},
		{"127.0.0.0/8:*", "127.0.0.2:8081", "127.0.0.2:8081"},
		{"localhost:80", "localhost:80", "[::1]:80 127.0.0.1:80"},
		{"localhost:80", "127.0.0.1:80", ""},
		{"169.254.169.254:80", "meta.corp.example:80", "169.254.169.254:80"},
		{"169.254.0.0/16:80", "169.254.169.254:80", "169.254.169.254:80"},
		{"", "10.0.0.5:443", ""},
	} {
		r := rules(t, test.rules)
		r.Lookup = func(_ context.Context, name string) (list []netip.Addr, err error) {
			looked++
			for a := range strings.FieldsSeq(names[name]) {
				list = append(list, netip.MustParseAddr(a))
			}
			return list, nil
		}
		addrs, err := r.Resolve(context.Background(), test.address)
		var got []string
		for _, a := range addrs {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != test.want || (test.want == "") != errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %s: %v, %v; want %q", test.rules, test.address, got, err, test.want)
		}
	}
	looked = 0
	r := rules(t, "*.corp.example:443 db.other:*")
	r.Lookup = func(context.Context, string) ([]netip.Addr, error) { looked++; return nil, errors.New("no such name") }
	for _, address := range []string{"a.example:443", "www.corp.example:80", "secret.attacker.example:443"} {
		if _, err := r.Resolve(context.Background(), address); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if looked > 0 {
		t.Error("names were looked up that no rule is about")
	}
	if _, err := r.Resolve(context.Background(), "www.corp.example:443"); err == nil || errors.Is(err, ErrForbidden) {
		t.Error(err)
	}
	for _, bad := range []string{"a", "a:", "a:0", "a:65536", ":80", "a b:80", "a\x00:80", "[::1:80", strings.Repeat("a", 64) + ":80", "-:x", "a..b:1"} {
		if _, err := r.Resolve(context.Background(), bad); err == nil {
			t.Errorf("%q is resolved", bad)
		}
	}
	for _, bad := range []string{"", "10.0.0.0/8", "10.0.0.1/8:*", "a", "a:0", "a:b", "a:2-1", "a:1-65536", "fd00::5:22", "[fd00::5", "[fd00::5]", "a*.b:1", "*.:1", "*.*:1", "a/b:1", "::ffff:0:0/96:1", "[fe80::1%eth0]:1", "a b:1", "http://a:1"} {
		if r, err := ParseRule(bad); err == nil {
			t.Errorf("%q is the rule %+v", bad, r)
		}
	}
}

// Whatever a rule says, loopback and the metadata service need one of their own.
func FuzzRules(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8:*", "*.corp.example:443", "[::/0]:*", "*:*", "127.0.0.1:80", "localhost:1-80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		if r.String() != s || r.first == 0 || r.last < r.first {
			t.Fatalf("%+v", r)
		}
		for _, address := range []string{"127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "64:ff9b::7f00:1", "fe80::1"} {
			a := netip.MustParseAddr(address)
			if r.allows("a.example", a, r.first) && !(r.prefix.IsValid() && r.prefix.Bits() >= 8 && r.prefix.Contains(a)) {
				t.Fatalf("%q allows %s", s, a)
			}
		}
	})
}
