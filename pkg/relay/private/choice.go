package private

import (
	"fmt"
	"strings"
	"time"

	"culvert.dev/pkg/relay"
)

const (
	// lossy is the loss from which on streams that share a TCP connection wait for each other noticeably, and
	// clean the one below which they do not. What lies between changes nothing.
	lossy = 0.003
	clean = 0.001

	// enoughToTell is how many bytes the WebSocket links must have sent between two looks.
	enoughToTell = 64 << 10

	// minDwell is how long a choice lasts at least, and goLooks and returnLooks are how many looks in a row
	// have to agree before it is another one.
	minDwell    = 30 * time.Second
	goLooks     = 2
	returnLooks = 12
)

// reading is what is known of the links at one look.
type reading struct {
	quic      bool          // there is a QUIC link
	wssRTT    time.Duration // under use; 0: not known
	quicRTT   time.Duration
	loss      float64 // share of what the WebSocket links have sent since the last look that was lost
	lossKnown bool    // they have sent enough to tell
}

// choice decides which transport carries what, where the configuration leaves it open. Streams that move much
// stay on the WebSocket links, which carry as much for a fraction of the work; QUIC carries the datagrams as
// soon as it is there, and the small streams while loss makes them wait for each other on the WebSocket link.
//
// The zero value has chosen the WebSocket.
type choice struct {
	quic  bool      // carries the small streams
	since time.Time // of quic; zero: from the start
	votes int       // looks in a row that speak for a change

	problem string    // why QUIC does not get through, or ""
	text    string    // what was chosen and why: at most relay.MaxChoice bytes of visible ASCII
	of      situation // that text is for
}

// situation is what an explanation depends on, but for the numbers in it.
type situation struct {
	linked, quic bool
	problem      string
}

// step takes one reading. It returns true if quic has changed.
func (c *choice) step(now time.Time, r reading) bool {
	if !r.quic {
		changed := c.quic
		c.quic, c.votes = false, 0
		if changed {
			c.since = now
		}
		return changed
	}
	var agree bool
	need := goLooks
	faster := r.quicRTT > 0 && r.wssRTT > r.quicRTT+max(r.quicRTT/5, 5*time.Millisecond)
	if c.quic {
		// The WebSocket's round trip is one beside bulk now, so it says little.
		agree = r.lossKnown && r.loss < clean || r.wssRTT > 0 && r.quicRTT > r.wssRTT+max(r.wssRTT/5, 5*time.Millisecond)
		need = returnLooks
	} else {
		agree = r.lossKnown && r.loss >= lossy && faster
	}
	if !agree {
		c.votes = 0
		return false
	}
	c.votes++
	if c.votes < need || !c.since.IsZero() && now.Sub(c.since) < minDwell {
		return false
	}
	c.quic, c.since, c.votes = !c.quic, now, 0
	return true
}

// explain makes the text. It returns true if there is something new to tell.
func (c *choice) explain(r reading) bool {
	now := situation{r.quic, c.quic, c.problem}
	if c.text != "" && c.of == now {
		return false
	}
	c.of = now
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	switch {
	case !r.quic && c.problem == "":
		c.text = "wss; quic is being tried"
	case !r.quic:
		c.text = printable("wss; quic does not get through: " + c.problem)
	case c.quic:
		c.text = fmt.Sprintf("quic for small streams and datagrams, wss for bulk: wss loses %.1f%% and takes %s, quic %s",
			100*r.loss, ms(r.wssRTT), ms(r.quicRTT))
	default:
		c.text = "wss for streams, quic for datagrams: loss does not hold the streams up"
	}
	return true
}

// printable makes s fit for a Hello.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), relay.MaxChoice)]
}
