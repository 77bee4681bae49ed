package public

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

func rateOf(t testing.TB, s string) relay.Rate {
	r, err := relay.ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLimiter(t *testing.T) {
	l := newLimiter(rateOf(t, "10/s burst 3"))
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := int64(0)
	for i := range 3 {
		if wait := l.allow(a, now); wait != 0 {
			t.Fatalf("%d has to wait for %v", i, wait)
		}
	}
	if wait := l.allow(a, now); wait != 100*time.Millisecond {
		t.Errorf("the fourth has to wait for %v", wait)
	}
	// Whoever was refused has lost nothing by asking, and another address has its own bucket.
	if wait := l.blocked(a, now); wait != 100*time.Millisecond {
		t.Errorf("then %v", wait)
	}
	if wait := l.allow(b, now); wait != 0 {
		t.Errorf("another address has to wait for %v", wait)
	}
	now += int64(100 * time.Millisecond)
	if wait := l.allow(a, now); wait != 0 {
		t.Errorf("after its time it has to wait for %v", wait)
	}
	if wait := l.allow(a, now); wait == 0 {
		t.Error("two come in the time of one")
	}
	// In the long run it is the rate.
	n := 0
	for range 10_000 {
		now += int64(time.Millisecond)
		if l.allow(a, now) == 0 {
			n++
		}
	}
	if n != 100 {
		t.Errorf("%d in 10 s", n)
	}
	// Half of an IPv6 address is the visitor's own.
	for i := range 4 {
		c := netip.MustParseAddr("2001:db8::1")
		for range i {
			c = c.Next()
		}
		if wait := l.allow(c, now); wait != 0 != (i == 3) {
			t.Errorf("%v has to wait for %v", c, wait)
		}
	}
	// No limit.
	if newLimiter(relay.Rate{}).allow(a, now) != 0 {
		t.Error("no limit limits")
	}
}

func TestLimiterFine(t *testing.T) {
	l := newLimiter(rateOf(t, "3/h"))
	a := netip.MustParseAddr("192.0.2.1")
	now := int64(time.Hour)
	for i := 1; i <= 3; i++ {
		if wait := l.blocked(a, now); wait != 0 {
			t.Fatalf("blocked for %v before the failure %d", wait, i)
		}
		if n := l.fine(a, now, 15*time.Minute); n != i {
			t.Fatalf("%d failures counted, want %d", n, i)
		}
	}
	if wait := l.blocked(a, now); wait != 15*time.Minute {
		t.Errorf("blocked for %v", wait)
	}
	now += int64(15 * time.Minute)
	if wait := l.blocked(a, now); wait != 0 {
		t.Errorf("after the time still blocked for %v", wait)
	}
	// The next failure blocks at once; those of an hour ago do not count.
	l.fine(a, now, 15*time.Minute)
	if l.blocked(a, now) == 0 {
		t.Error("a failure right after the time does not block")
	}
	now += int64(15*time.Minute + time.Hour)
	if n := l.fine(a, now, 15*time.Minute); n != 1 || l.blocked(a, now) != 0 {
		t.Errorf("%d failures counted after a quiet hour", n)
	}
}

// A flood of addresses takes no more memory than a limiter may have, and does not
// hide the one that hammers.
func TestLimiterBounded(t *testing.T) {
	l := newLimiter(rateOf(t, "1/m burst 100"))
	hammer := netip.MustParseAddr("192.0.2.1")
	for range 100 {
		l.allow(hammer, 1)
	}
	addr := netip.MustParseAddr("10.0.0.0")
	for range 10 * maxSlots {
		l.allow(addr, 1)
		addr = addr.Next()
	}
	if len(l.slots) > maxSlots {
		t.Errorf("%d slots", len(l.slots))
	}
	if l.allow(hammer, 1) == 0 {
		t.Error("the hammering address was forgotten")
	}
}

func BenchmarkLimiter(b *testing.B) {
	l := newLimiter(relay.Rate{N: 1000, Per: time.Second, Burst: 1000})
	addr := netip.MustParseAddr("192.0.2.1")
	now := int64(0)
	for b.Loop() {
		now += 1000
		l.allow(addr, now)
	}
}
