package public

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/pkg/relay"
)

// admission counts the visitors that are connected, in total and per address,
// and decides who may come in. It is used from every loop.
type admission struct {
	total, perAddr int // immutable limits

	mu    sync.Mutex
	n     int                // admitted
	spare int                // let in above a limit to be told so
	addrs map[netip.Addr]int // both, by address
}

// verdict is what admission says about one connection.
type verdict uint8

const (
	turnedAway verdict = iota // close at once, say nothing
	sayFull                   // answer 503 to the first request, then close
	admitted
	uncounted // part of a connection that is counted itself
)

// maxSpare is how many connections above the limits are held at a time in order
// to answer them with 503 instead of a closed connection, each for as long as a
// request head may take.
const maxSpare = 256

// enter counts one connection from addr; of the zero one, which is not known yet,
// there may be any number within the total. Whoever gets something other than
// turnedAway calls leave when it ends.
func (a *admission) enter(addr netip.Addr) verdict {
	addr = relay.Source(addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	of := a.addrs[addr]
	switch {
	case a.n < a.total && (of < a.perAddr || !addr.IsValid()):
		a.n++
		a.addrs[addr] = of + 1
		return admitted
	case a.spare < maxSpare:
		a.spare++
		a.addrs[addr] = of + 1
		return sayFull
	}
	return turnedAway
}

// count counts one connection that is let in whatever the limits are.
func (a *admission) count(addr netip.Addr) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	a.addrs[relay.Source(addr)]++
	return admitted
}

// leave ends the count of one connection that entered with v.
func (a *admission) leave(addr netip.Addr, v verdict) {
	if v == uncounted {
		return
	}
	addr = relay.Source(addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if v == admitted {
		a.n--
	} else {
		a.spare--
	}
	if a.addrs[addr]--; a.addrs[addr] <= 0 {
		delete(a.addrs, addr)
	}
}

// connected is the number of admitted connections.
func (a *admission) connected() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// shakes bounds the TLS handshakes of each address. It is used from every loop, and
// from the goroutines of QUIC. Those for the relay's own name are counted apart, so that a
// crowd of visitors behind one address does not keep out a private relay which is there too.
type shakes struct {
	mu       sync.Mutex
	visitors *limiter
	own      *limiter
	told     rate[netip.Addr] // who has been logged
}

func (s *shakes) init(perMinute int) {
	r := relay.Rate{N: perMinute, Per: time.Minute, Burst: max(1, perMinute/5)}
	s.visitors, s.own = newLimiter(r), newLimiter(r)
	s.told = rate[netip.Addr]{most: 1, size: 16}
}

var errHandshakes = errors.New("too many TLS handshakes of one address")

// mayShake reports whether a TLS handshake of addr may begin, over TCP or QUIC, and counts it. own
// says that it is for the relay's own name. It may be called from any goroutine.
func (r *Relay) mayShake(addr netip.Addr, own bool) bool {
	now := time.Now()
	s := &r.shakes
	l := s.visitors
	if own {
		l = s.own
	}
	s.mu.Lock()
	wait := l.allow(addr, int64(now.Sub(r.began)))
	s.mu.Unlock()
	if wait == 0 {
		return true
	}
	if addr := relay.Source(addr); s.told.allow(addr, now) {
		r.log.Warn("TLS handshakes are refused, as one address makes too many; a proxy or a large network behind it needs a higher limits.handshakes_per_address",
			"address", addr, "per_minute", int(time.Minute/time.Duration(l.step)))
	}
	return false
}
