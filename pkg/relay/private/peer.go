package private

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	dialTimeout = 10 * time.Second // of one try: look-up, connect, TLS, upgrade and handshake

	// The wait before the nth try in a row doubles from minWait, jittered down to its half. While streams
	// wait for a link, a visitor can tell how long it takes.
	minWait        = 200 * time.Millisecond
	maxWait        = 30 * time.Second
	maxWaitStreams = time.Second

	// stableLink is how long a link must have lived for the next try to be made at once.
	stableLink = 5 * time.Second
)

// peer is the session with one public relay, over the links that come and go.
//
// It is in one of these states, in which the named field is not nil:
//
//	dialling (dialCancel) ──► linked (link) ──► waiting (timer armed) ──► dialling
//	    └──────────────────── waiting ◄───────────┘
//	any ──► over (ended)
//
// The session is made by the first link, and again when the relay has forgotten it.
type peer struct {
	relay   *Relay       // immutable, as is the rest of this group
	address string       // host:port
	loop    *evloop.Loop // owns all of the following
	ended   chan<- error // gets one value, when the peer is over

	session    *tunnel.Session
	id, secret string // of the session, to resume it
	link       *link.Link
	since      time.Time // of the link
	dialCancel context.CancelFunc
	tries      int // failed ones in a row
	retry      evloop.Timer
	tick       evloop.Timer // the session's

	announcing *announcement // not answered yet, or nil
	stale      bool          // announce again after that
	draining   bool
	over       bool
	deadline   evloop.Timer // of the drain
	reason     string       // why there is no link, as last logged

	status atomic.Pointer[PeerStatus]
}

func (p *peer) start() { p.dial() }

func (p *peer) setStatus(f func(s *PeerStatus)) {
	s := PeerStatus{Address: p.address}
	if old := p.status.Load(); old != nil {
		s = *old
	}
	f(&s)
	p.status.Store(&s)
}
