package private

import (
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

// The small streams move to QUIC while loss makes the WebSocket link slow, and back when it is over; neither for a
// moment, and not to and fro.
func TestChoice(t *testing.T) {
	const ms = time.Millisecond
	calm := reading{quic: true, wssRTT: 50 * ms, quicRTT: 50 * ms, lossKnown: true}
	bad := reading{quic: true, wssRTT: 180 * ms, quicRTT: 52 * ms, loss: 0.012, lossKnown: true}
	gone := reading{wssRTT: 180 * ms, loss: 0.012, lossKnown: true}
	quiet := reading{quic: true, wssRTT: 50 * ms, quicRTT: 50 * ms}
	lossyOnly := reading{quic: true, wssRTT: 52 * ms, quicRTT: 51 * ms, loss: 0.012, lossKnown: true}
	slowQUIC := reading{quic: true, wssRTT: 50 * ms, quicRTT: 90 * ms, loss: 0.012, lossKnown: true}

	var c choice
	now := time.Now()
	// looks takes the same reading for a while, and returns how often the choice has changed.
	looks := func(r reading, d time.Duration) (changes int) {
		for ; d > 0; d -= lookInterval {
			now = now.Add(lookInterval)
			if c.step(now, r) {
				changes++
			}
		}
		return changes
	}
	for i, tt := range []struct {
		r       reading
		d       time.Duration
		changes int
		quic    bool
	}{
		{calm, time.Hour, 0, false},
		{bad, lookInterval, 0, false}, // a moment
		{calm, lookInterval, 0, false},
		{lossyOnly, time.Hour, 0, false}, // nobody has to wait
		{quiet, time.Minute, 0, false},
		{bad, 10 * time.Second, 1, true},
		{quiet, time.Hour, 0, true}, // nothing is known, nothing changes
		{calm, 20 * time.Second, 0, true},
		{bad, lookInterval, 0, true},
		{calm, 2 * time.Minute, 1, false},
		{bad, time.Minute, 1, true},
		{lossyOnly, 2 * time.Minute, 0, true},
		{slowQUIC, 2 * time.Minute, 1, false},
		{bad, time.Minute, 1, true},
		{gone, lookInterval, 1, false}, // at once
		{bad, 25 * time.Second, 0, false},
		{bad, 10 * time.Second, 1, true},
	} {
		if n := looks(tt.r, tt.d); n != tt.changes || c.quic != tt.quic {
			t.Fatalf("step %d: %d changes, quic %v", i, n, c.quic)
		}
	}

	// Whatever comes, a choice lasts.
	last := now
	for i := range 1000 {
		now = now.Add(lookInterval)
		if c.step(now, []reading{bad, bad, calm, slowQUIC, slowQUIC, quiet}[i*7/10%6]) {
			if now.Sub(last) < minDwell {
				t.Fatalf("changed after %v", now.Sub(last))
			}
			last = now
		}
	}
}

// What is chosen is explained once, in a sentence that fits into a Hello.
func TestExplain(t *testing.T) {
	var c choice
	up := reading{quic: true, wssRTT: 181 * time.Millisecond, quicRTT: 52 * time.Millisecond, loss: 0.0124}
	for _, tt := range []struct {
		r       reading
		quic    bool
		problem string
		want    string // "": nothing new
	}{
		{reading{}, false, "", "wss; quic is being tried"},
		{reading{}, false, "", ""},
		{reading{}, false, "no answer within 10s", "wss; quic does not get through: no answer within 10s"},
		{up, false, "", "wss for streams, quic for datagrams: loss does not hold the streams up"},
		{up, true, "", "quic for small streams and datagrams, wss for bulk: wss loses 1.2% and takes 181 ms, quic 52 ms"},
		{reading{quic: true, wssRTT: 200 * time.Millisecond}, true, "", ""},
		{reading{}, false, "grüße\n" + strings.Repeat("x", 300), "wss; quic does not get through: gr??e?" + strings.Repeat("x", 162)},
	} {
		c.quic, c.problem = tt.quic, tt.problem
		if c.explain(tt.r) != (tt.want != "") || tt.want != "" && c.text != tt.want {
			t.Errorf("%q, want %q", c.text, tt.want)
		}
		if len(c.text) > relay.MaxChoice {
			t.Errorf("%d bytes", len(c.text))
		}
	}
}
