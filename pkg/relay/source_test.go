package relay

import (
	"net/netip"
	"testing"
)

// TestSources counts a /64 as one.
func TestSources(t *testing.T) {
	for _, test := range []struct{ addr, source string }{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8::1:2:3:4", "2001:db8::"},
		{"fe80::1%lo", "fe80::"},
	} {
		if got := Source(netip.MustParseAddr(test.addr)); got.String() != test.source {
			t.Errorf("%s counts as %s, want %s", test.addr, got, test.source)
		}
	}
}
