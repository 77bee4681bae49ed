package private

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

func TestPreface(t *testing.T) {
	const sign = "\r\n\r\n\x00\r\nQUIT\n"
	for _, tt := range []struct {
		version         int
		datagram        bool
		visitor, target string
		want            string
	}{
		{1, false, "192.0.2.7:40000", "10.0.0.5:5432", "PROXY TCP4 192.0.2.7 10.0.0.5 40000 5432\r\n"},
		{1, false, "[2001:db8::7]:40000", "[fd00::5]:5432", "PROXY TCP6 2001:db8::7 fd00::5 40000 5432\r\n"},
		{1, false, "[2001:db8::7]:40000", "10.0.0.5:5432", "PROXY TCP6 2001:db8::7 ::ffff:10.0.0.5 40000 5432\r\n"},
		{1, false, "192.0.2.7:40000", "", "PROXY TCP4 192.0.2.7 0.0.0.0 40000 0\r\n"}, // to a unix socket
		{1, false, "", "10.0.0.5:5432", "PROXY UNKNOWN\r\n"},
		{2, false, "192.0.2.7:40000", "10.0.0.5:5432", sign + "\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x05\x9c\x40\x15\x38"},
		{2, false, "", "10.0.0.5:5432", sign + "\x20\x00\x00\x00"},
		{2, true, "192.0.2.7:40000", "10.0.0.5:514", sign + "\x21\x12\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x05\x9c\x40\x02\x02"},
	} {
		var visitor, target netip.AddrPort
		if tt.visitor != "" {
			visitor = netip.MustParseAddrPort(tt.visitor)
		}
		if tt.target != "" {
			target = netip.MustParseAddrPort(tt.target)
		}
		got := appendPreface([]byte("x"), tt.version, tt.datagram, visitor, target)
		if string(got) != "x"+tt.want {
			t.Errorf("version %d from %q to %q: %q, want %q", tt.version, tt.visitor, tt.target, got[1:], tt.want)
		}
		if _, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(got[1:]))); err != nil {
			t.Errorf("%q: %v", got[1:], err)
		}
	}
}

// A target that asks for it hears who the visitor is before anything else, if anything else comes or not.
func TestPrefaceOfTarget(t *testing.T) {
	ln := upper(t, "tcp", "127.0.0.1:0")
	for version, want := range map[int]string{
		1: fmt.Sprintf("PROXY TCP4 192.0.2.7 127.0.0.1 40000 %d\r\nHELLO", ln.Addr().(*net.TCPAddr).Port),
		2: "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", // capitals of the rest make no sense
	} {
		svc := tcpService(t, "db", "tcp://"+ln.Addr().String())
		svc.ProxyProtocol = version
		v := newSite(t, svc).visit("db")
		v.write("hello")
		v.closeWrite()
		got, err := io.ReadAll(v.r)
		if !strings.HasPrefix(string(got), want) || !strings.HasSuffix(string(got), "HELLO") || err != nil {
			t.Errorf("version %d: the target got %q, %v, want %q", version, got, err, want)
		}
	}
}

func TestProxyProtocolOfService(t *testing.T) {
	for _, tt := range []struct {
		publish, target string
		version         int
		want            string
	}{
		{"tcp://:1", "tcp://10.0.0.5:5432", 1, ""},
		{"tcp://:1", "unix:///run/db", 2, ""},
		{"", "tcp://10.0.0.5:5432", 2, ""},
		{"udp://:1", "udp://10.0.0.5:514", 2, ""},
		{"udp://:1", "udp://10.0.0.5:514", 1, "knows no datagrams"},
		{"tcp://:1", "tcp://10.0.0.5:5432", 3, "proxy_protocol 3: want 1 or 2"},
		{"tcp://:1", "tcp://10.0.0.5:5432", -1, "want 1 or 2"},
		{"https://a.example.com", "http://10.0.0.5", 2, "X-Forwarded-For"},
		{"https://a.example.com", "unix:///run/app", 2, "X-Forwarded-For"},
		{"", "http://10.0.0.5", 2, "X-Forwarded-For"},
	} {
		s := tcpService(t, "one", tt.target)
		s.ProxyProtocol = tt.version
		if err := s.Publish.UnmarshalText([]byte(tt.publish)); err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt, err, tt.want)
		}
	}
}
