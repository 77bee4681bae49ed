package public

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/link"
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

var errStrangers = errors.New("too many connections that have not said who they are")

// quicListener takes links in over QUIC. Its socket stays with their connections until
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
	q := &quicListener{relay: r, from: make(map[netip.Addr]int)}
	q.transport = &quic.Transport{
		Conn:                link.QUICSocket(pc),
		ConnectionIDLength:  8,
		StatelessResetKey:   (*quic.StatelessResetKey)(derive(secret, "culvert quic stateless reset")),
		TokenGeneratorKey:   (*quic.TokenGeneratorKey)(derive(secret, "culvert quic token")),
		VerifySourceAddress: q.doubts,
		ConnContext:         q.enter,
	}
	tlsConfig := r.TLS.Clone()
	tlsConfig.NextProtos = []string{link.ALPN}
	if q.Listener, err = q.transport.Listen(tlsConfig, link.QUICConfig()); err != nil {
		pc.Close()
		return err
	}
	if hint := link.BufferHint(pc); hint != "" {
		r.log.Warn("listener", "name", "quic", "hint", hint)
	}
	r.mu.Lock()
	r.listeners = append(r.listeners, &Listener{Name: "quic", Addr: pc.LocalAddr(), ln: q})
	r.mu.Unlock()
	l := r.loops[0]
	l.Post(func() { l.Spawn(q.accept) })
	return nil
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
				q.relay.listenerError("quic")(fmt.Errorf("no link over QUIC comes in any more until the relay is restarted: %w", err))
			}
			break
		}
		q.link(conn) // the one protocol that is offered
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
	from := conn.RemoteAddr().(*net.UDPAddr).AddrPort()
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
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
			q.known(conn.Context())
			r.greet(in, from, l)
		})
	}) {
		conn.CloseWithError(link.StatusAway, "")
	}
}

// stranger is one connection, in its context.
type stranger struct {
	addr  netip.Addr
	known bool
}

type strangerKey struct{}

// doubts reports whether an address has to be proved.
func (q *quicListener) doubts(addr net.Addr) bool {
	from := source(addr.(*net.UDPAddr).AddrPort().Addr())
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.strangers >= trustedStrangers || q.from[from] >= trustedFrom
}

// enter counts a connection that is about to be made, until it has ended.
func (q *quicListener) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	s := &stranger{addr: source(info.RemoteAddr.(*net.UDPAddr).AddrPort().Addr())}
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
		q.known(ctx)
		q.mu.Lock()
		q.conns--
		q.mu.Unlock()
	})
	return ctx, nil
}

// known ends the count of a connection as a stranger.
func (q *quicListener) known(ctx context.Context) {
	s := ctx.Value(strangerKey{}).(*stranger)
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
