package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// testAuthority is the PEM of a certificate.
func testAuthority(t testing.TB, isCA bool) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "visitors"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// testPolicy has something of everything.
func testPolicy(t testing.TB) *Policy {
	return &Policy{
		Allow:           []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Deny:            []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")},
		MaxConnections:  100,
		ConnectionRate:  Rate{20, time.Minute, 20},
		RequestRate:     Rate{100, time.Second, 500},
		Methods:         []string{"GET", "POST"},
		MaxBody:         10 << 20,
		NoRedirect:      true,
		HSTS:            &HSTS{MaxAge: 15552000, IncludeSubDomains: true},
		ClientCA:        testAuthority(t, true) + testAuthority(t, true),
		Users:           map[string]string{"alice": "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g", "bob": "$2y$10$x"},
		RequestHeaders:  HeaderRules{Set: map[string]string{"X-Env": "prod"}, Add: map[string]string{"Via": "culvert"}, Remove: []string{"Cookie"}},
		ResponseHeaders: HeaderRules{Set: map[string]string{"X-Frame-Options": "DENY"}, Remove: []string{"Server"}},
	}
}

func TestPolicy(t *testing.T) {
	p := testPolicy(t)
	if err := p.Validate("https"); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var got Policy
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, *p) || !got.Equal(p) {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	got.Users["bob"] = "$2y$11$x"
	if got.Equal(p) || (*Policy)(nil).Equal(p) || !(*Policy)(nil).Equal(nil) {
		t.Error("policies are equal that are not, or the other way round")
	}
	// The zero value is for everybody, and says nothing.
	if b, err := json.Marshal(Policy{}); err != nil || string(b) != "{}" {
		t.Errorf("the zero value is %s, %v", b, err)
	}
	for _, scheme := range []string{"", "https", "http", "wss", "ws", "rtsp", "rtsps", "tcp", "udp", "tls", "tftp"} {
		if err := (&Policy{}).Validate(scheme); err != nil {
			t.Errorf("%s: the zero value: %v", scheme, err)
		}
	}
	// A port has no requests.
	port := &Policy{Allow: p.Allow, Deny: p.Deny, MaxConnections: 1, ConnectionRate: p.ConnectionRate}
	for _, scheme := range []string{"tcp", "udp", "tls", "tftp"} {
		if err := port.Validate(scheme); err != nil {
			t.Errorf("%s: %v", scheme, err)
		}
	}
	// A camera has users, but no requests.
	camera := *port
	camera.Users = p.Users
	for _, scheme := range []string{"rtsp", "rtsps"} {
		if err := camera.Validate(scheme); err != nil {
			t.Errorf("%s: %v", scheme, err)
		}
	}
	camera.ClientCA = p.ClientCA
	if err := camera.Validate("rtsps"); err != nil {
		t.Error(err)
	}
	// What a relay does not know it cannot enforce.
	for _, text := range []string{`{"allowed":["10.0.0.0/8"]}`, `{"hsts":{"max_age":1,"preload":true}}`, `{"request_rate":"100"}`, `{"allow":["10.0.0.0"]}`, `[]`} {
		if _, err := DecodeAnnounce([]byte(`[{"name":"a","policy":` + text + `}]`)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	prefixes := func(n int) (list []netip.Prefix) {
		for i := range n {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
		}
		return list
	}
	many := make(map[string]string)
	for i := range 1025 {
		many[fmt.Sprint("u", i)] = "$2y$10$x"
	}
	for name, tt := range map[string]struct {
		scheme string // "": https
		spoil  func(*Policy)
		key    string
	}{
		"prefixes":        {"", func(p *Policy) { p.Allow = prefixes(1025) }, "allow"},
		"no prefix":       {"", func(p *Policy) { p.Deny = []netip.Prefix{{}} }, "deny"},
		"mapped":          {"", func(p *Policy) { p.Deny = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")} }, "deny"},
		"connections":     {"", func(p *Policy) { p.MaxConnections = -1 }, "max_connections"},
		"body":            {"", func(p *Policy) { p.MaxBody = -1 }, "max_body"},
		"rate":            {"", func(p *Policy) { p.RequestRate.Per = time.Millisecond }, "request_rate"},
		"burst":           {"", func(p *Policy) { p.ConnectionRate.Burst = MaxRate + 1 }, "connection_rate"},
		"method":          {"", func(p *Policy) { p.Methods = []string{"get"} }, "methods"},
		"hsts":            {"", func(p *Policy) { p.HSTS.MaxAge = -1 }, "hsts"},
		"hsts twice":      {"", func(p *Policy) { p.ResponseHeaders.Set = map[string]string{"strict-transport-security": "x"} }, "response_headers.set.Strict-Transport-Security"},
		"no certificate":  {"", func(p *Policy) { p.ClientCA = "x" }, "client_ca"},
		"no authority":    {"", func(p *Policy) { p.ClientCA = testAuthority(t, false) }, "client_ca"},
		"a key":           {"", func(p *Policy) { p.ClientCA += "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" }, "client_ca"},
		"long CA":         {"", func(p *Policy) { p.ClientCA += strings.Repeat("\n", MaxClientCA) }, "client_ca"},
		"users":           {"", func(p *Policy) { p.Users = many }, "users"},
		"user":            {"", func(p *Policy) { p.Users = map[string]string{"a:b": "$2y$10$x"} }, "users.a:b"},
		"password":        {"", func(p *Policy) { p.Users = map[string]string{"alice": "secret"} }, "users.alice"},
		"framing":         {"", func(p *Policy) { p.ResponseHeaders.Set = map[string]string{"Content-Length": "0"} }, "response_headers.set.Content-Length"},
		"loose framing":   {"", func(p *Policy) { p.RequestHeaders.Remove = []string{"transfer_encoding"} }, "request_headers.remove"},
		"forwarding":      {"", func(p *Policy) { p.RequestHeaders.Add = map[string]string{"x-forwarded-for": "1.1.1.1"} }, "request_headers.add.x-forwarded-for"},
		"identity":        {"", func(p *Policy) { p.RequestHeaders.Set = map[string]string{"X-Client-Cert-Subject": "CN=a"} }, "request_headers.set.X-Client-Cert-Subject"},
		"user's name":     {"", func(p *Policy) { p.RequestHeaders.Set = map[string]string{"X-Remote_User": "a"} }, "request_headers.set.X-Remote_User"},
		"host":            {"", func(p *Policy) { p.RequestHeaders.Set = map[string]string{"Host": "a"} }, "request_headers.set.Host"},
		"name":            {"", func(p *Policy) { p.RequestHeaders.Set = map[string]string{"a b": "a"} }, "request_headers.set.a b"},
		"value":           {"", func(p *Policy) { p.RequestHeaders.Set = map[string]string{"a": "b\r\nc: d"} }, "request_headers.set.a"},
		"two cases":       {"", func(p *Policy) { p.RequestHeaders.Add = map[string]string{"a": "b", "A": "b"} }, "request_headers.add.a"},
		"rules":           {"", func(p *Policy) { p.RequestHeaders.Remove = make([]string, 65) }, "request_headers"},
		"in the clear":    {"http", func(p *Policy) { p.NoRedirect = false }, "hsts"},
		"operators alone": {"none", func(p *Policy) {}, "allow"},
		"port":            {"tcp", func(p *Policy) { *p = Policy{Methods: []string{"GET"}} }, "methods"},
		"camera":          {"rtsp", func(p *Policy) { *p = Policy{Methods: []string{"GET"}} }, "methods"},
		"clear camera":    {"rtsp", func(p *Policy) { *p = Policy{ClientCA: p.ClientCA} }, "client_ca"},
		"pass-through":    {"tls", func(p *Policy) { *p = Policy{ClientCA: p.ClientCA} }, "client_ca"},
		"files":           {"tftp", func(p *Policy) { *p = Policy{Users: p.Users} }, "users"},
		"writes":          {"tftp", func(p *Policy) { *p = Policy{MaxBody: 1} }, "max_body"},
		"datagrams":       {"udp", func(p *Policy) { *p = Policy{RequestRate: p.RequestRate} }, "request_rate"},
	} {
		p := testPolicy(t)
		tt.spoil(p)
		scheme := tt.scheme
		switch scheme {
		case "":
			scheme = "https"
		case "none":
			scheme = ""
		}
		err := p.Validate(scheme)
		e, ok := errors.AsType[*PolicyError](err)
		if !ok || e.Key != tt.key {
			t.Errorf("%s: %v, want a mistake at %s", name, err, tt.key)
		}
	}
	// The service's own check has it too, and names the service.
	s := Service{Name: "web", Publish: Publish{Scheme: "tcp", Port: 1}, Target: Target{Scheme: "tcp", Host: "a", Port: 1}, Policy: &Policy{MaxBody: 1}}
	if err := s.Validate(); err == nil || err.Error() != `service "web": max_body: is for http:// and https:// publishes, not tcp://` {
		t.Error(err)
	}
}

func TestRate(t *testing.T) {
	for s, want := range map[string]Rate{
		"100/s":             {100, time.Second, 100},
		"20/m burst 50":     {20, time.Minute, 50},
		"1000000/h":         {1000000, time.Hour, 1000000},
		"":                  {},
		"100":               {},
		"0/s":               {},
		"-1/s":              {},
		"+1/s":              {},
		"01/s":              {},
		"1/d":               {},
		"1/s burst":         {},
		"1/s burst 0":       {},
		"1/s burst 1000001": {},
		"1000001/s":         {},
		"1.5/s":             {},
	} {
		got, err := ParseRate(s)
		if got != want || (err == nil) != (want != Rate{}) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
		if err == nil && got.String() != s {
			t.Errorf("%q is written %q", s, got)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	b, _ := json.Marshal(testPolicy(f))
	f.Add(b)
	f.Add([]byte(`{"allow":[],"users":{},"request_headers":{"set":{}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Policy
		if json.Unmarshal(b, &p) != nil {
			return
		}
		err := p.Validate("https")
		again, e := json.Marshal(&p)
		if e != nil {
			if err == nil {
				t.Fatalf("%s is valid and cannot be encoded: %v", b, e)
			}
			return
		}
		var q Policy
		if e := json.Unmarshal(again, &q); e != nil {
			if err == nil {
				t.Fatalf("%s is valid and %s is not: %v", b, again, e)
			}
			return
		}
		if third, e := json.Marshal(&q); e != nil || !bytes.Equal(again, third) || !p.Equal(&q) {
			t.Fatalf("%s, then %s, then %s", b, again, third)
		}
	})
}
