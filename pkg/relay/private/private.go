package private

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftpd"
)

// Relay is a private relay. The exported fields are set before Run and not changed afterwards.
type Relay struct {
	// Core runs the sessions, each on one of its loops, and everything that belongs to them.
	Core *evloop.Core

	// Relays are the public relays, host:port. The site has a session with each of them.
	Relays []string

	// Site is the name that the public relays know the site by; Key proves it.
	Site string
	Key  ed25519.PrivateKey

	// Transport is what carries the links: TransportAuto, TransportWSS or TransportQUIC. If empty,
	// TransportWSS.
	Transport string

	// Links is how many WebSocket links a session has, at most MaxLinks: the first for what people wait for,
	// the others for what moves much. 0: 1.
	Links int

	// Machine tells a restart of this relay from another relay of the site: 16 bytes in hex, the same after
	// each start. If empty, a public relay cannot tell, and the old session has to time out.
	Machine string

	// RootCAs verify the certificates of the public relays. If nil, the system's do.
	RootCAs *x509.CertPool

	// Services are what the site offers from the start; see Reload.
	Services []Service

	// MaxFlows bounds the flows of one session, each of which is a socket. The one that has been silent for
	// longest makes room. 0: 65536.
	MaxFlows int

	// DrainTimeout is how long streams may go on after Run's context has ended. 0: they are cut.
	DrainTimeout time.Duration

	// TFTP is the address, on UDP, at which the services with a tftp publish are served on the site's own network, as their
	// policies allow addresses, whether there is a link or not. If empty, they are not.
	TFTP string

	// TFTPPorts are the first and the last port of a range that transfers are answered from, each from one of its own. Zero: they are
	// all answered from that of TFTP.
	TFTPPorts [2]uint16

	// Inherited returns the sockets that the process was started with for a listener: its name ("tftp"), "udp", and its
	// address. They are used instead of new ones. If nil, there are none.
	Inherited func(name, network, address string) []*os.File

	// FFmpeg is the program that makes snapshots of cameras whose service has no Snapshot, out of a key frame. If empty,
	// they have none, unless they send MJPEG.
	FFmpeg string

	// Software is what the site tells the public relay it is, for operators to see.
	Software string

	// Log hears of links, sessions and targets when they change. If nil, nobody does.
	Log *slog.Logger

	// Names is called when the hosts have changed for which certificates can be obtained: those of services with
	// TLS.ACME that a public relay publishes, as long as visitors come here and not to another private relay of the
	// site. Run calls it. If nil, nobody is told.
	Names func(hosts []string)

	// Discover looks for the cameras on this network, for an operator, and returns them as a list in JSON. It is called
	// from a goroutine of its own, once at a time; its error is told as it is. If nil, nobody can have it done.
	Discover func(ctx context.Context, req relay.DiscoverRequest) ([]byte, error)

	// Operators are the public keys of those who may open connections by tunnelctl, which has to prove one of them to this
	// relay. SetOperators replaces them. If empty, whoever the public relay takes for an operator may; a key that is nil is nobody's.
	Operators []ed25519.PublicKey

	// Socks says where an address that an operator wants to reach is, network being "tcp" or "udp" and address HOST:PORT: it
	// looks the name up, if it is one and the site lets operators go there. They are tried in this order. It may block; an error
	// that is no *relay.OperateError is told as unreachable. If nil, operators reach services alone.
	Socks func(ctx context.Context, network, address string) ([]netip.AddrPort, error)

	// Announced is told what a public relay has answered of each service whenever services were announced: the addresses at
	// which visitors reach it, if it is published, or why it is not. An answer for services that were replaced meanwhile is not
	// told: there will be another one. It is called on a loop, and must not wait. If nil, the log alone says it.
	Announced func(relay, service string, addresses []string, problem string)

	// OnReady is called once, when the first public relay has answered what it publishes. If nil, nobody is.
	OnReady func()

	// Dial replaces the network on the way to a public relay. If nil, TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Proxied reports whether Dial reaches that public relay through a proxy, which carries TCP and no
	// UDP: QUIC is not tried there. If nil, there is no proxy.
	Proxied func(address string) bool

	dialCamera func(context.Context) (net.Conn, error) // replaces the network on the way to cameras; set by tests

	log         *slog.Logger // never nil while running
	process     string       // 16 bytes in hex, of this Run
	ready       sync.Once
	slowControl sync.Once // it has been logged that links cannot have the congestion control that they need
	services    atomic.Pointer[services]
	studio      *studio     // immutable while running
	discovering atomic.Bool // a search is under way
	secure      *tls.Config // of operators' streams; immutable while running
	operators   atomic.Pointer[map[string]bool]
	benches     atomic.Int32  // measurements under way
	renamed     chan struct{} // names has changed; immutable while running

	mu    sync.Mutex
	lan   *lan               // nil until Run, and if TFTP is empty; Run itself needs no lock to read it
	peers []*peer            // nil until Run
	over  bool               // Run has returned
	given []Service          // the Services of the last Reload, or of Run
	heard []*Listener        // of Listen, that are open
	names map[*peer][]string // what each adds to Names
}

// The values of Relay.Transport.
const (
	TransportAuto = "auto" // WebSockets, and QUIC where it gets through, for what it is better at
	TransportWSS  = "wss"  // WebSockets alone
	TransportQUIC = "quic" // one QUIC link alone
)

// MaxLinks bounds Relay.Links.
const MaxLinks = 8

// services are those of one configuration. It is immutable; a reload makes a new one.
type services struct {
	list   []*service
	byName map[string]*service
	passed map[string]*service // by host, those with a tls:// publish
	files  []*service          // with a tftp:// publish, the longest path first
}

func (r *Relay) makeServices(list []Service) (*services, error) {
	if r.studio == nil {
		r.studio = newStudio(r.FFmpeg, r.log)
	}
	made := &services{byName: make(map[string]*service, len(list)), passed: make(map[string]*service)}
	var errs []error
	for _, s := range list {
		svc, err := newService(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if svc.Publish.Scheme == "tftp" {
			if svc.store, err = r.newStore(s); err != nil {
				errs = append(errs, fmt.Errorf("service %q: target %q: %w", s.Name, s.Target, err))
				continue
			}
			made.files = append(made.files, svc)
		}
		if svc.Target.IsCamera() {
			svc.pictures = r.studio.server(svc)
		}
		for _, web := range []*httpd.Server{svc.files, svc.pictures} {
			if web == nil {
				continue
			}
			web.OnPanic = func(req *http.Request, value any, stack []byte) {
				r.log.Error("panic", "service", svc.Name, "path", req.URL.Path, "panic", value, "stack", string(stack))
			}
		}
		if made.byName[s.Name] != nil {
			errs = append(errs, fmt.Errorf("service %q is defined twice", s.Name))
		}
		made.list = append(made.list, svc)
		made.byName[s.Name] = svc
		if s.Publish.Scheme == "tls" {
			made.passed[s.Publish.Host] = svc
		}
		if s.TLS != nil {
			svc.terminate = s.TLS.config(svc, made)
		}
	}
	slices.SortStableFunc(made.files, func(a, b *service) int { return cmp.Compare(len(b.Publish.Path), len(a.Publish.Path)) })
	if n := len(relay.Encode(made.announcements())); n > relay.MaxAnnounce {
		errs = append(errs, fmt.Errorf("the services and their policies make %d bytes to announce, more than %d: shorten lists of users, addresses and certificates, or split the site", n, relay.MaxAnnounce))
	}
	return made, errors.Join(errs...)
}

// Run keeps the sessions with the public relays. It returns nil when ctx has ended and the streams have
// finished or the DrainTimeout is over. It returns an error that says what to do when no public relay is
// left that may take the site: each has refused for a reason that waiting does not heal.
func (r *Relay) Run(ctx context.Context) (err error) {
	r.log = r.Log
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	defer func() { r.closeListeners(err) }()
	r.mu.Lock()
	if r.given == nil {
		r.given = r.Services
	}
	list, err := r.makeServices(r.offeredLocked())
	if err == nil {
		r.services.Store(list)
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if r.Key != nil { // without one there are no links either
		if r.secure, err = auth.OperateServer(r.Key); err != nil {
			return err
		}
	}
	if r.operators.Load() == nil {
		r.SetOperators(r.Operators)
	}
	defer func() { r.services.Load().leave(nil) }()
	if r.TFTP != "" {
		if err := r.listenLAN(); err != nil {
			return err
		}
		defer r.lan.close()
	}

	var process [16]byte
	rand.Read(process[:])
	r.process = hex.EncodeToString(process[:])

	ended := make(chan error, len(r.Relays))
	r.renamed = make(chan struct{}, 1)
	r.mu.Lock()
	for i, address := range r.Relays {
		p := newPeer(r, address, r.Core.Loop(i%r.Core.NumLoops()), ended)
		r.peers = append(r.peers, p)
		p.loop.Post(p.start)
	}
	r.mu.Unlock()

	stop := context.AfterFunc(ctx, r.drain)
	defer stop()
	var errs []error
	for len(errs) < len(r.Relays) {
		select {
		case err := <-ended:
			errs = append(errs, err)
		case <-r.renamed:
			if r.Names != nil {
				r.Names(r.wanted())
			}
		}
	}
	if ctx.Err() != nil {
		if r.lan != nil {
			<-r.lan.ended
		}
		return nil // a refusal of one relay of several has been logged when it came
	}
	return errors.Join(errs...)
}

// drain tells every session to end with its last stream.
func (r *Relay) drain() {
	for _, p := range r.peers {
		p.loop.Post(p.drain)
	}
	if r.lan != nil {
		r.lan.loop.Post(r.lan.drain)
	}
}

// Reload replaces the services and announces the new ones. Streams that are open stay as they are, to the
// end. After an error, such as a folder that is not there, the old services stay. It may be called from any
// goroutine, before Run, too, which then returns the error.
func (r *Relay) Reload(list []Service) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.given
	r.given = append([]Service{}, list...)
	if r.services.Load() == nil { // Run announces them
		return nil
	}
	err := r.offerLocked()
	if err != nil {
		r.given = before
	}
	return err
}

// offeredLocked are the services of the configuration and those of Listen.
func (r *Relay) offeredLocked() []Service {
	list := slices.Clone(r.given)
	for _, l := range r.heard {
		list = append(list, l.service)
	}
	return list
}

// offerLocked replaces the services and announces them.
func (r *Relay) offerLocked() error {
	made, err := r.makeServices(r.offeredLocked())
	if err != nil {
		return err
	}
	r.services.Swap(made).leave(made)
	if r.lan != nil {
		r.lan.loop.Post(r.lan.reloaded)
	}
	for _, p := range r.peers {
		p.loop.Post(p.announce)
	}
	return nil
}

// Status is the state of a Relay at one moment.
type Status struct {
	Relays   []PeerStatus
	Services []ServiceStatus
	TFTP     *TFTPStatus // nil: nothing is served on the site's own network
}

// TFTPStatus is that of the listener on the site's own network.
type TFTPStatus struct {
	Address netip.AddrPort
	tftpd.Stats
}

// PeerStatus is the session with one public relay.
type PeerStatus struct {
	Address string
	Linked  bool   // a link is up
	Standby bool   // another private relay of the site gets its visitors
	Choice  string // which transports are used, and why
	Problem string // why no link is up, or ""
	Lines   []LineStatus
}

// LineStatus is one of the links that a session is to have.
type LineStatus struct {
	Transport string        // "wss" or "quic"
	Role      string        // "interactive", "bulk" or "datagram"
	State     string        // "linked", "suspect", "dialling", "waiting" for the next try or "idle" until another one is linked
	RTT       time.Duration // 0: not known
	Since     time.Time     // of the link; without one, of its loss
	Problem   string        // why there is no link, or ""
}

// ServiceStatus counts the streams of one service since it was last loaded.
type ServiceStatus struct {
	Name     string
	Open     int64
	Total    uint64
	Failed   uint64 // the target could not be reached
	Unshaken uint64 // the TLS handshake of the visitor failed here
	Dropped  uint64 // frames of a camera that were too late for the visitor
}

// Status may be called from any goroutine.
func (r *Relay) Status() Status {
	var s Status
	r.mu.Lock()
	for _, p := range r.peers {
		s.Relays = append(s.Relays, *p.status.Load())
	}
	lan := r.lan
	r.mu.Unlock()
	if list := r.services.Load(); list != nil {
		for _, svc := range list.list {
			s.Services = append(s.Services, ServiceStatus{svc.Name, svc.open.Load(), svc.total.Load(), svc.failed.Load(), svc.unshaken.Load(), svc.dropped.Load()})
		}
	}
	if lan != nil {
		s.TFTP = &TFTPStatus{lan.server.Addr(), lan.server.Stats()}
	}
	return s
}
