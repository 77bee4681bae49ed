package tftpd

import (
	"net/netip"
	"sync"
	"time"

	"culvert.dev/pkg/evloop"
)

// bucket bounds something by its rate. It is shared by loops.
type bucket struct {
	rate, burst int64 // a second, at once; immutable

	mu   sync.Mutex
	left int64 // billionths
	last time.Time
}

func (k *bucket) init(rate, burst int64, now time.Time) {
	k.rate, k.burst, k.last = rate, burst, now
	k.left = burst * int64(time.Second)
}

// take takes n, if it is there.
func (k *bucket) take(n int64, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := now.Sub(k.last); d > 0 { // each loop has its own idea of now
		k.last = now
		full := k.burst * int64(time.Second)
		if int64(d) > (full-k.left)/k.rate {
			k.left = full
		} else {
			k.left += int64(d) * k.rate
		}
	}
	if k.left < n*int64(time.Second) {
		return false
	}
	k.left -= n * int64(time.Second)
	return true
}

// source is who counts as one: an address, or a /64 of IPv6.
type source struct {
	addr     netip.Addr
	running  int
	bare     int // unproven reads without options
	unproven chain
}

// link is the place of a Transfer in a chain, which is a list from old to new.
type link struct{ older, newer *Transfer }

type chain struct {
	which          int // of Transfer.links
	n              int
	oldest, newest *Transfer
}

func (c *chain) add(t *Transfer) {
	l := &t.links[c.which]
	l.older = c.newest
	if c.newest != nil {
		c.newest.links[c.which].newer = t
	} else {
		c.oldest = t
	}
	c.newest = t
	c.n++
}

func (c *chain) remove(t *Transfer) {
	l := &t.links[c.which]
	if l.older != nil {
		l.older.links[c.which].newer = l.newer
	} else {
		c.oldest = l.newer
	}
	if l.newer != nil {
		l.newer.links[c.which].older = l.older
	} else {
		c.newest = l.older
	}
	*l = link{}
	c.n--
}

// gone are addresses whose transfer, or refusal, was over a short while ago: what still comes from there is nothing to complain
// about. Of a transfer that has made room, or was given up before the client was heard of, the request is kept: should the client be
// there, its first packet begins it again, even if that was lost a few times. If there are very many, the oldest are forgotten early.
type gone struct {
	of    map[evloop.PacketAddr]goneOne
	queue []evloop.PacketAddr // in the order of their end, of the transfers'; one that came again is there twice
}

type goneOne struct {
	until time.Time
	asked string // "": it is over
}

const (
	goneTime  = 5 * time.Second
	askedTime = 20 * time.Second // with a request: clients repeat their first packet every 5 or 6 seconds
	maxGone   = 8192
)

func (g *gone) add(a evloop.PacketAddr, asked string, now time.Time) {
	if g.of == nil {
		g.of = make(map[evloop.PacketAddr]goneOne)
	}
	n := 0
	for n < len(g.queue) && (len(g.queue)-n >= maxGone || !now.Before(g.of[g.queue[n]].until)) {
		delete(g.of, g.queue[n])
		n++
	}
	g.queue = append(g.queue[n:], a)
	wait := goneTime
	if asked != "" {
		wait = askedTime
	}
	g.of[a] = goneOne{now.Add(wait), asked}
}

// find returns what is known of a.
func (g *gone) find(a evloop.PacketAddr, now time.Time) (asked string, ok bool) {
	o := g.of[a]
	return o.asked, now.Before(o.until)
}
