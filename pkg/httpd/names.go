package httpd

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Names finds out what addresses are called, without anybody waiting for it, and remembers it. The zero value works. A
// host can call itself what it likes in the reverse DNS of its address: only names that lead back to the address count.
type Names struct {
	// Lookup finds the name of an address; "" if it has none. nil: the system's resolver is asked for the names of the
	// address, and for the addresses of the first of them.
	Lookup func(ctx context.Context, addr netip.Addr) (string, error)

	Keep     time.Duration // how long a name is good. 0: 10 min
	KeepNone time.Duration // how long that there is none, or that nobody answered, is. 0: 1 min
	Timeout  time.Duration // of a look-up. 0: 5 s
	Max      int           // addresses that are remembered; whatever is oldest is forgotten. 0: 4096
	Parallel int           // look-ups at once; what is asked for beyond is looked up when it is asked for again. 0: 8

	mu      sync.Mutex
	known   map[netip.Addr]*name
	order   []netip.Addr // of known, the oldest first
	running int
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	closed  bool
}

type name struct {
	text  string
	until time.Time // when it has to be looked up again
	busy  bool      // it is being looked up
}

// Name returns what addr is called, as far as that is known, and has it looked up otherwise.
func (n *Names) Name(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return ""
	}
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.known[addr]
	if e != nil && (e.busy || now.Before(e.until)) {
		return e.text
	}
	if n.closed || n.running >= orDefault(n.Parallel, 8) {
		if e != nil {
			return e.text
		}
		return ""
	}
	if e == nil {
		e = new(name)
		n.forgetLocked()
		if n.known == nil {
			n.known = make(map[netip.Addr]*name)
		}
		n.known[addr] = e
		n.order = append(n.order, addr)
	}
	if n.ctx == nil {
		n.ctx, n.cancel = context.WithCancel(context.Background())
	}
	e.busy = true
	n.running++
	n.wg.Add(1)
	go n.find(addr, e)
	return e.text
}

// forgetLocked makes room for one more.
func (n *Names) forgetLocked() {
	for len(n.order) >= orDefault(n.Max, 4096) {
		delete(n.known, n.order[0])
		n.order = n.order[1:]
	}
}

// find looks addr up. It ends by Timeout, or Close.
func (n *Names) find(addr netip.Addr, e *name) {
	defer n.wg.Done()
	ctx, cancel := context.WithTimeout(n.ctx, orDefault(n.Timeout, 5*time.Second))
	lookup := n.Lookup
	if lookup == nil {
		lookup = resolve
	}
	text, err := lookup(ctx, addr)
	cancel()
	keep := orDefault(n.Keep, 10*time.Minute)
	if err != nil || text == "" {
		text, keep = "", orDefault(n.KeepNone, time.Minute)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e.text, e.until, e.busy = text, time.Now().Add(keep), false
	n.running--
}

// resolve asks the system's resolver for a name of addr that leads back to it.
func resolve(ctx context.Context, addr netip.Addr) (string, error) {
	names, err := net.DefaultResolver.LookupAddr(ctx, addr.String())
	if err != nil || len(names) == 0 {
		return "", err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", names[0])
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if a.Unmap().WithZone("") == addr {
			return strings.TrimSuffix(names[0], "."), nil
		}
	}
	return "", nil
}

// Close ends all look-ups and waits for them. There are none afterwards.
func (n *Names) Close() {
	n.mu.Lock()
	n.closed = true
	if n.cancel != nil {
		n.cancel()
	}
	n.mu.Unlock()
	n.wg.Wait()
}
