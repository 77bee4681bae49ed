package public

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/http3"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
)

// Connections over QUIC whose owner is not known yet, in handshakes or before the
// Hello: in all, and from one address, or one /64 with IPv6. Each may keep some
// 400 KiB here for 20 s. Beyond the lower limits an address has to be proved first,
// which costs a round trip, so that nobody can use up what is another's.
const (
	maxStrangers     = 256
	maxStrangersFrom = 32
	trustedStrangers = 64
	trustedFrom      = 8
)

var altSvc = []string{"alt-svc"}

var errStrangers = errors.New("too many connections that have not said who they are")

// quicListener takes links and visitors in over QUIC, which it tells apart by the protocol
// that the handshake has agreed on. Its socket stays with their connections until
// the end of the Core; only new ones end with Close.
type quicListener struct {
	*quic.Listener
	relay     *Relay
	transport *quic.Transport
	next      int // loop, owned by accept

	mu        sync.Mutex
	conns     int // all
	strangers int
	from      map[netip.Addr]int // strangers
	visitors  map[*visitor3]struct{}
	closed    bool
}

// quicConfig is that of both kinds of connections, because quic-go wants it before it knows
// the kind. What is the smaller for one of them is seen to elsewhere: a link takes no second
// stream, and the window of a visitor grows at the expense of others.
func (r *Relay) quicConfig() *quic.Config {
	cfg := link.QUICConfig()
	cfg.MaxIncomingStreams = maxRequests3
	cfg.RequireStreamCreditRelease = true // or else cancelled requests do not count
	cfg.MaxIdleTimeout = idleTime         // a link has said less
	cfg.KeepAlivePeriod = 0               // private relays do; a phone may sleep
	cfg.AllowConnectionWindowIncrease = func(conn *quic.Conn, delta uint64) bool {
		return conn.Context().Value(strangerKey{}).(*stranger).grow(r.windows, int64(delta))
	}
	return cfg
}

// tlsConfig chooses what a handshake can agree on. There is no HTTP/3 for the relay's own name, where
// what there is, is upgrades of HTTP/1.1, nor for names whose TLS a site ends.
func (q *quicListener) tlsConfig() *tls.Config {
	r := q.relay
	own := r.tls.Clone()
	own.NextProtos = []string{link.ALPN}
	published := own.Clone()
	published.NextProtos = []string{http3.ALPN, link.ALPN}
	own.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok := serverName(hello.ServerName)
		if !ok {
			return nil, alertIllegalParameter
		}
		ours := name == "" || r.own([]byte(name), []byte(relay.LinkPath))
		if !r.mayShake(addrPort(hello.Conn.RemoteAddr()).Addr(), ours) {
			r.loops[0].Post(func() { r.loops[0].counters.HandshakesLimited++ })
			return nil, errHandshakes
		}
		routes := r.routes.Load()
		if ours || routes.passed([]byte(name)) != nil || routes.passedAway(name) {
			return nil, nil
		}
		if cfg := routes.asks.find([]byte(name)); cfg != nil {
			cfg = cfg.Clone()
			cfg.NextProtos = published.NextProtos
			return cfg, nil
		}
		return published, nil
	}
	return own
}

// Close takes in nobody any more, and tells visitors to go.
func (q *quicListener) Close() error {
	err := q.Listener.Close()
	q.mu.Lock()
	q.closed = true
	visitors := slices.Collect(maps.Keys(q.visitors))
	q.mu.Unlock()
	q.relay.loops[0].Post(func() {
		for _, v := range visitors {
			v.drain()
		}
	})
	return err
}

// enlist has a visitor hear of Close.
func (q *quicListener) enlist(v *visitor3) {
	q.mu.Lock()
	q.visitors[v] = struct{}{}
	closed := q.closed
	q.mu.Unlock()
	if closed {
		v.drain()
	}
}

func (q *quicListener) delist(v *visitor3) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.visitors, v)
}

// listenQUIC opens the listener for QUIC.
func (r *Relay) listenQUIC() error {
	pc, err := r.bindQUIC()
	if err != nil {
		return err
	}
	secret := r.QUICSecret
	if secret == nil {
		secret = make([]byte, 32)
		rand.Read(secret)
	}
	q := &quicListener{relay: r, from: make(map[netip.Addr]int), visitors: make(map[*visitor3]struct{})}
	q.transport = &quic.Transport{
		Conn:                link.QUICSocket(pc),
		ConnectionIDLength:  8,
		StatelessResetKey:   (*quic.StatelessResetKey)(derive(secret, "culvert quic stateless reset")),
		TokenGeneratorKey:   (*quic.TokenGeneratorKey)(derive(secret, "culvert quic token")),
		VerifySourceAddress: q.doubts,
		ConnContext:         q.enter,
	}
	if q.Listener, err = q.transport.Listen(q.tlsConfig(), r.quicConfig()); err != nil {
		pc.Close()
		return err
	}
	if hint := link.BufferHint(pc); hint != "" {
		r.log.Warn("listener", "name", "quic", "hint", hint)
	}
	r.altSvc.Store(&http1.Field{Name: []byte("Alt-Svc"), Value: fmt.Appendf(nil, `h3=":%d"; ma=86400`, addrPort(pc.LocalAddr()).Port())})
	r.mu.Lock()
	r.listeners = append(r.listeners, &Listener{Name: "quic", Addr: pc.LocalAddr(), ln: q})
	r.mu.Unlock()
	l := r.loops[0]
	l.Post(func() { l.Spawn(q.accept) })
	return nil
}

// advertise has a response over TLS say that there is HTTP/3 (rfc7838#section-3). What the server says of
// the kind is about ports of its own, which are not ours.
func (r *Relay) advertise(res *http1.Response) {
	if f := r.altSvc.Load(); f != nil {
		res.Fields = append(http1.Remove(res.Fields, altSvc), *f)
	}
}

// derive makes a key from a secret.
func derive(secret []byte, what string) *[32]byte {
	key, err := hkdf.Key(sha256.New, secret, nil, what, 32)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return (*[32]byte)(key)
}

// bindQUIC opens the socket. If any port will do, it is that of the https listener if
// possible: private relays know of one.
func (r *Relay) bindQUIC() (*net.UDPConn, error) {
	if files := r.inherited("quic", "udp", r.QUIC); len(files) > 0 {
		pc, err := net.FilePacketConn(files[0])
		if err != nil {
			return nil, err
		}
		udp, ok := pc.(*net.UDPConn)
		if !ok {
			pc.Close()
			return nil, errors.New("the inherited socket is not a UDP one")
		}
		return udp, nil
	}
	addr, err := net.ResolveUDPAddr("udp", r.QUIC)
	if err != nil {
		return nil, err
	}
	if suffix, ok := r.httpsPort(); ok && addr.Port == 0 && suffix != "" {
		same := *addr
		same.Port, _ = strconv.Atoi(suffix[1:])
		if pc, err := net.ListenUDP("udp", &same); err == nil {
			return pc, nil
		}
	}
	return net.ListenUDP("udp", addr)
}

// accept takes connections until Close, and then waits for the end of the Core.
func (q *quicListener) accept(ctx context.Context) {
	for {
		conn, err := q.Accept(ctx)
		if err != nil {
			if !errors.Is(err, quic.ErrServerClosed) && ctx.Err() == nil { // the socket is broken
				q.relay.listenerError("quic")(fmt.Errorf("nobody comes in over QUIC any more until the relay is restarted: %w", err))
			}
			break
		}
		if conn.ConnectionState().TLS.NegotiatedProtocol == http3.ALPN {
			q.visit(conn)
		} else {
			q.link(conn)
		}
	}
	<-ctx.Done()
	for deadline := time.Now().Add(time.Second); q.connected() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond) // they say goodbye
	}
	q.transport.Close()
	q.transport.Conn.Close()
}

// link takes the connection of a private relay.
func (q *quicListener) link(conn *quic.Conn) {
	r := q.relay
	from := addrPort(conn.RemoteAddr())
	l := r.loops[q.next%len(r.loops)]
	q.next++
	if !l.Post(func() {
		link.AcceptQUIC(l.Loop, conn, func(in *link.Incoming, err error) {
			if err == nil {
				err = r.authenticate(in)
			}
			if err != nil {
				r.refused(in, from, err)
				return
			}
			q.known(conn.Context(), math.MaxInt64/2, math.MaxInt64/2)
			r.greet(in, from, l)
		})
	}) {
		conn.CloseWithError(link.StatusAway, "")
	}
}

// stranger is one connection, in its context.
type stranger struct {
	addr   netip.Addr
	known  bool         // guarded by quicListener.mu
	window atomic.Int64 // by which that of the connection may still grow
	free   atomic.Int64 // what of it costs nothing
	taken  atomic.Int64 // from Relay.windows
}

// grow reports whether the window of the connection may grow by n. It is called once at a time.
func (s *stranger) grow(windows *http2.Budget, n int64) bool {
	more := max(0, n-s.free.Load())
	if n > s.window.Load() || more > 0 && !windows.Take(more) {
		return false
	}
	s.window.Add(-n)
	s.free.Add(more - n)
	s.taken.Add(more)
	return true
}

type strangerKey struct{}

// doubts reports whether an address has to be proved.
func (q *quicListener) doubts(addr net.Addr) bool {
	from := relay.Source(addr.(*net.UDPAddr).AddrPort().Addr())
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.strangers >= trustedStrangers || q.from[from] >= trustedFrom
}

// enter counts a connection that is about to be made, until it has ended.
func (q *quicListener) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	s := &stranger{addr: relay.Source(info.RemoteAddr.(*net.UDPAddr).AddrPort().Addr())}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.strangers >= maxStrangers || q.from[s.addr] >= maxStrangersFrom {
		return nil, errStrangers
	}
	q.conns++
	q.strangers++
	q.from[s.addr]++
	ctx = context.WithValue(ctx, strangerKey{}, s)
	context.AfterFunc(ctx, func() {
		q.known(ctx, 0, 0)
		q.relay.windows.Give(s.taken.Swap(0))
		q.mu.Lock()
		q.conns--
		q.mu.Unlock()
	})
	return ctx, nil
}

// known ends the count of a connection as a stranger, and lets its window grow, at nobody's expense by free.
func (q *quicListener) known(ctx context.Context, window, free int64) {
	s := ctx.Value(strangerKey{}).(*stranger)
	s.free.Add(free)
	s.window.Add(window)
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.known {
		return
	}
	s.known = true
	q.strangers--
	if q.from[s.addr]--; q.from[s.addr] == 0 {
		delete(q.from, s.addr)
	}
}

// connected is the number of connections.
func (q *quicListener) connected() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.conns
}
