package tftpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Client gets files of TFTP servers and puts files there. The zero value works, on any loop; it may not change while it is in use.
type Client struct {
	// Options are asked for. Where they are zero, what suits is: blocks that the route carries in one piece, and windows of 16
	// of them, or fewer if that is more than 64 KiB. Size is asked for anyway, and what it says has no meaning.
	Options tftp.Options

	// Plain asks for no options at all: blocks of 512 bytes, one at a time.
	Plain bool

	// Mode is that of the bytes, which pass as they are.
	Mode tftp.Mode

	// Patience is how long a server may be silent before its first answer. 0: 10 s. What it may be later is the business of pkg/tftp.
	Patience time.Duration
}

const (
	clientWindow   = 16      // blocks that are asked for at once: more gain nothing where the server is near
	clientFlight   = 4 << 20 // bytes of the largest window: what a socket of ours buffers at best
	clientPatience = 10 * time.Second
	clientAddrs    = 3 // of one name that are tried, one after the other

	remoteHighMark = 256 << 10 // bytes that are written and not acknowledged; more if a window is
)

// ErrSilent says that nothing has answered a request.
var ErrSilent = errors.New("nothing answers there")

// Get asks server (host:port) for a file. done is called on l, once: with the file when the server has begun to send it, or with what
// prevents it. That is a *tftp.Error with Remote set if the server says so. After cancel it is not called. On l only.
func (c *Client) Get(l *evloop.Loop, server, name string, done func(*Remote, error)) (cancel func()) {
	return c.start(&Remote{loop: l, server: server, req: tftp.Request{Op: tftp.OpRead, Name: name}, size: -1, done: done})
}

// Put asks server to take a file of size bytes (-1: not known yet). It is like Get otherwise: the file is done when the server is ready to
// take it.
func (c *Client) Put(l *evloop.Loop, server, name string, size int64, done func(*Remote, error)) (cancel func()) {
	return c.start(&Remote{loop: l, server: server, req: tftp.Request{Op: tftp.OpWrite, Name: name}, size: size, done: done})
}

func (c *Client) start(r *Remote) (cancel func()) {
	r.client = c
	r.req.Mode = c.Mode
	if a, err := netip.ParseAddrPort(r.server); err == nil {
		r.try([]netip.AddrPort{a})
	} else {
		r.loop.Spawn(r.lookUp)
	}
	return r.cancel
}

// Remote is a file on a server, which is read or written: the End of a File. It belongs to the loop of Get or Put.
//
// What is read is whole when OnEOF comes. What is written is all there is when CloseWrite is called, and the server has acknowledged
// it when OnEOF comes. Abort, or Close before that, tells the server that the transfer is over.
type Remote struct {
	client *Client
	loop   *evloop.Loop
	server string
	req    tftp.Request
	size   int64 // of what is written; -1: not known
	done   func(*Remote, error)
	free   func()            // if not nil: called once, when the transfer is over
	blame  func(error) error // if not nil: makes of an error what done and OnClose get

	asked   netip.AddrPort   // where requests go
	to      netip.AddrPort   // where all else goes: the port is the server's TID, once it is known
	others  []netip.AddrPort // to be asked if that does not answer
	patient time.Time        // when it has been silent for too long
	sock    *evloop.PacketConn
	t       *tftp.Transfer
	timer   evloop.Timer
	armed   time.Time // of timer; zero: it does not run

	known    bool // to is the TID
	begun    bool // the server has agreed
	told     bool // done was called, or must not be
	complete bool // all has come, or has been acknowledged
	ended    bool // t has; err says why
	err      error
	reason   error // to end t

	handler evloop.Handler
	busy    bool // in settle, or t is being called: what callbacks ask for is done when they have returned
	late    bool // settle runs at the end of the turn
	paused  bool
	saidEOF bool
	closed  bool // Close was called
	over    bool // OnClose was called, or will be at the end of the turn

	// Of what is read.
	in    []byte // came, and was not used
	fresh bool   // in is to be presented
	held  bool   // t is to acknowledge nothing
	total int64  // bytes that came

	// Of what is written.
	out   bytes.Buffer // what is not acknowledged
	base  int64        // offset of out in the file
	fin   bool         // out ends where the file does
	woken bool         // t is to be told of more in out, or of the end
	drain bool         // Pending was above the high mark
}

// lookUp finds the addresses of the server. It runs on a goroutine of its own, for as long as a server may be silent.
func (r *Remote) lookUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.patience())
	defer cancel()
	addrs, err := addresses(ctx, r.server)
	r.loop.Post(func() {
		switch {
		case r.told:
		case err != nil:
			r.refuse(err)
		default:
			r.try(addrs)
		}
	})
}

// addresses returns those of IPv4 first: most TFTP servers have no other, and to find out that nobody is there takes time.
func addresses(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(server)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, len(found))
	for i, a := range found {
		addrs[i] = netip.AddrPortFrom(a.Unmap(), uint16(port))
	}
	slices.SortStableFunc(addrs, func(a, b netip.AddrPort) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return addrs[:min(len(addrs), clientAddrs)], nil
}

func (r *Remote) patience() time.Duration {
	if r.client.Patience > 0 {
		return r.client.Patience
	}
	return clientPatience
}

// try asks the first of addrs, and the others if it does not answer. They share the patience.
func (r *Remote) try(addrs []netip.AddrPort) {
	r.forget()
	r.asked = netip.AddrPortFrom(addrs[0].Addr().Unmap(), addrs[0].Port())
	r.to = r.asked
	r.others = addrs[1:]
	r.patient = r.loop.Now().Add(r.patience() / time.Duration(len(addrs)))
	network := "udp4"
	if r.asked.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenPacket(network, ":0")
	if err == nil {
		hearErrors(conn.(*net.UDPConn), r.asked.Addr().Is6())
		r.sock, err = r.loop.AttachPacket(conn, r.onPacket)
	}
	if err != nil {
		r.loop.AfterTurn(func() { r.refuse(err) })
		return
	}
	r.sock.OnError = r.onError
	r.req.Options = r.client.options(r.asked.Addr(), r.req, r.size)
	cfg := tftp.Config{Send: r.send, Closed: r.onClosed}
	if r.req.Op == tftp.OpWrite {
		cfg.Source = (*remoteSource)(r)
	} else {
		cfg.Sink, cfg.Complete = r.onBlock, r.onComplete
	}
	r.t = tftp.Dial(cfg, r.req, r.size, r.loop.Now())
	r.arm()
}

// options is what is asked of a server.
func (c *Client) options(server netip.Addr, req tftp.Request, size int64) tftp.Options {
	if c.Plain {
		return tftp.Options{}
	}
	o := c.Options
	if o.Block <= 0 {
		o.Block = routeBlock(server)
	}
	o.Block = min(max(o.Block, tftp.MinBlock), tftp.MaxBlock)
	if o.Window <= 0 {
		o.Window = tftp.Window(o.Block, clientWindow)
	}
	o.Window = min(o.Window, tftp.MaxWindow, max(clientFlight/o.Block, 1))
	if o.Window == 1 {
		o.Window = 0 // it is so without asking
	}
	// To know the size in netascii a server would have to read the file, and some refuse.
	o.HasSize = req.Mode == tftp.Octet && (req.Op == tftp.OpRead || size >= 0)
	o.Size = 0
	if o.HasSize {
		o.Size = max(size, 0)
	}
	return o
}

func (r *Remote) send(b []byte) {
	if op := tftp.Opcode(b[1]); op == tftp.OpRead || op == tftp.OpWrite { // the first one, or another one without options
		r.to, r.known = r.asked, false
	}
	r.sock.WriteTo(b, evloop.PacketAddr{Remote: r.to})
}

func (r *Remote) onPacket(b []byte, from evloop.PacketAddr) {
	if len(b) < 4 || b[0] != 0 || !sameHost(from.Remote.Addr(), r.asked.Addr()) {
		return
	}
	switch op := tftp.Opcode(b[1]); op {
	case tftp.OpData, tftp.OpAck, tftp.OpError, tftp.OpOptionAck:
		if !r.known {
			r.known = true
			r.to = netip.AddrPortFrom(r.asked.Addr(), from.Remote.Port())
		}
		if from.Remote.Port() != r.to.Port() {
			if op != tftp.OpError {
				r.sock.WriteTo(tftp.AppendError(nil, errUnknownTID, len(b)), from)
			}
			return
		}
		r.busy = true
		r.t.Receive(b, r.loop.Now())
		r.busy = false
		r.begun = r.begun || op == tftp.OpOptionAck && !r.ended
		r.settle()
	}
}

// onError hears that a request has not reached a server. Later, whoever says so may be somebody else.
func (r *Remote) onError(err error) {
	switch errno, _ := errors.AsType[syscall.Errno](err); errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH:
		if !r.known && !r.ended {
			r.ended, r.err = true, fmt.Errorf("%w: %w", ErrSilent, errno)
			r.settle()
		}
	}
}

// sameHost compares addresses, whose zone may be a name in one and a number in the other.
func sameHost(a, b netip.Addr) bool { return a.Unmap().WithZone("") == b.Unmap().WithZone("") }

var errSize = errors.New("the file has another size")

// announced is the size that the server has told of what is read; -1: none. A server that says 0 and sends more does not know it.
func (r *Remote) announced() int64 {
	if o := r.t.Options(); r.req.Op == tftp.OpRead && o.HasSize && o.Size > 0 {
		return o.Size
	}
	return -1
}

// onBlock gets what has come.
func (r *Remote) onBlock(b []byte) {
	r.begun = true
	r.total += int64(len(b))
	if n := r.announced(); n >= 0 && r.total > n && r.reason == nil {
		r.reason = fmt.Errorf("%w: more than the %d bytes that the server has announced", errSize, n)
	}
	if r.reason != nil {
		return
	}
	if r.handler != nil && !r.paused && len(r.in) == 0 {
		b = b[r.handler.OnData(b):]
		if len(b) == 0 {
			return
		}
	} else {
		r.fresh = true
	}
	r.in = append(r.in, b...)
}

// onComplete hears that the last byte has come.
func (r *Remote) onComplete() {
	r.begun = true
	if n := r.announced(); n >= 0 && r.total < n && r.reason == nil {
		r.reason = fmt.Errorf("%w: %d bytes instead of the %d that the server has announced", errSize, r.total, n)
	}
	r.complete = r.reason == nil
}

func (r *Remote) onClosed(err error) {
	r.ended = true
	switch {
	case r.reason != nil:
		r.err = r.reason
	case err != nil:
		r.err = err
	default:
		r.complete = true
	}
}

// remoteSource is what a Remote sends.
type remoteSource Remote

func (s *remoteSource) Append(dst []byte, off int64, n int) ([]byte, tftp.State) {
	s.begun = true
	rest := s.out.Bytes()[off-s.base:]
	switch {
	case s.fin && len(rest) <= n:
		return append(dst, rest...), tftp.End
	case len(rest) < n:
		return dst, tftp.Wait
	}
	return append(dst, rest[:n]...), tftp.More
}

// settle does what is due, and tells what has happened, until nothing is left of either.
func (r *Remote) settle() {
	r.busy = true
	for {
		r.drive()
		if !r.tell() {
			break
		}
	}
	r.busy = false
	r.arm()
}

// later settles at the end of the turn, for the owner does not expect a callback now.
func (r *Remote) later() {
	if r.busy || r.late {
		return
	}
	r.late = true
	r.loop.AfterTurn(func() {
		r.late = false
		r.settle()
	})
}

// drive passes on to the transfer what has been asked for.
func (r *Remote) drive() {
	if r.t == nil {
		return
	}
	now := r.loop.Now()
	if r.req.Op == tftp.OpWrite {
		n := r.t.Acked() - r.base
		r.base += n
		r.out.Next(int(n))
	}
	switch {
	case r.ended:
	case r.reason != nil:
		text := "Stopped."
		if errors.Is(r.reason, errSize) {
			text = "The file has another size."
		}
		r.t.Fail(&tftp.Error{Code: tftp.CodeUndefined, Text: text}, now)
	case r.complete:
		r.t.Confirm(now)
	case r.woken:
		r.woken = false
		r.t.Wake(now)
	case r.held != (r.paused || len(r.in) > 0):
		r.held = !r.held
		r.t.Hold(r.held, now)
	}
}

// tell calls back at most once, and reports whether it has.
func (r *Remote) tell() bool {
	switch {
	case !r.told && r.ended && r.err != nil:
		r.refuse(r.err)
		return false
	case !r.told && r.begun:
		r.told = true
		r.done(r, nil)
	case !r.told || r.over || r.handler == nil:
		return false
	case r.ended && r.err != nil:
		r.end(r.err)
	case r.complete && (r.closed || r.saidEOF && r.fin):
		r.end(nil)
	case r.closed:
		return false
	case r.drain && r.Pending() <= r.HighMark()/2:
		r.drain = false
		r.handler.OnDrain()
	case r.paused:
		return false
	case r.fresh:
		r.fresh = false
		n := r.handler.OnData(r.in)
		if r.in = r.in[:copy(r.in, r.in[n:])]; len(r.in) == 0 {
			r.in = nil
		}
	case r.complete && !r.saidEOF:
		r.saidEOF = true
		r.handler.OnEOF()
	default:
		return false
	}
	return true
}

// end arranges for OnClose.
func (r *Remote) end(err error) {
	r.over = true
	r.in, r.out = nil, bytes.Buffer{}
	r.release()
	if errors.Is(err, errStopped) {
		err = nil // by the one who is told
	}
	r.loop.AfterTurn(func() { r.handler.OnClose(r.blamed(err)) })
}

func (r *Remote) blamed(err error) error {
	if err != nil && r.blame != nil && err != r.reason {
		return r.blame(err)
	}
	return err
}

var errStopped = errors.New("transfer was stopped")

// refuse ends what has not begun, unless there is another address to ask.
func (r *Remote) refuse(err error) {
	switch {
	case r.told:
	case !r.known && len(r.others) > 0:
		r.ended, r.err = false, nil
		r.try(r.others)
	default:
		if !r.known {
			r.forget()
		}
		r.told, r.ended = true, true
		r.release()
		r.done(nil, r.blamed(err))
	}
}

func (r *Remote) cancel() {
	if r.told {
		return
	}
	r.told = true
	r.reason = errStopped
	if r.t != nil && r.known && !r.ended {
		r.drive()
	}
	r.forget()
	r.release()
}

func (r *Remote) release() {
	if r.free != nil {
		r.free()
		r.free = nil
	}
}

// arm has onTimer called when the transfer needs it, or is over.
func (r *Remote) arm() {
	if r.sock == nil {
		return
	}
	now, when := r.loop.Now(), r.t.Deadline()
	if r.ended && !when.After(now) {
		r.forget()
		return
	}
	if !r.known && (when.IsZero() || r.patient.Before(when)) {
		when = r.patient
	}
	if when.IsZero() || !r.armed.IsZero() && !when.Before(r.armed) {
		return // onTimer looks again
	}
	r.armed = when
	r.loop.Arm(&r.timer, when.Sub(now), r.onTimer)
}

func (r *Remote) onTimer() {
	r.armed = time.Time{}
	now := r.loop.Now()
	r.busy = true
	if r.t.Tick(now); !r.known && !r.ended && !now.Before(r.patient) {
		r.ended, r.err = true, ErrSilent
	}
	r.busy = false
	r.settle()
}

// forget frees the socket: what the server says again is not answered any more.
func (r *Remote) forget() {
	r.timer.Stop()
	r.armed = time.Time{}
	if r.sock != nil {
		r.sock.Close()
		r.sock = nil
	}
}

// Size is that of a file which is read, in bytes; -1: the server does not say.
func (r *Remote) Size() int64 { return r.announced() }

// Options are those that the server has agreed to.
func (r *Remote) Options() tftp.Options { return r.t.Options() }

// Stats are those of the transfer so far.
func (r *Remote) Stats() tftp.Stats { return r.t.Stats() }

// RemoteAddr is where the server sends from.
func (r *Remote) RemoteAddr() netip.AddrPort { return r.to }

// The methods of an evloop.End.

func (r *Remote) SetHandler(h evloop.Handler) {
	r.handler = h
	r.fresh = len(r.in) > 0
	r.later()
}

func (r *Remote) Write(b []byte) {
	if r.req.Op != tftp.OpWrite || r.fin || r.closed || r.reason != nil || r.ended || len(b) == 0 {
		return
	}
	r.out.Write(b)
	r.woken = true
	r.drain = r.drain || r.Pending() > r.HighMark()
	r.later()
}

// Pending is what the server has not acknowledged.
func (r *Remote) Pending() int { return r.out.Len() }

func (r *Remote) HighMark() int {
	o := r.t.Options()
	return max(remoteHighMark, 2*max(o.Block, tftp.DefaultBlock)*max(o.Window, 1))
}

func (r *Remote) Pause() {
	r.paused = true
	r.later()
}

func (r *Remote) Resume() {
	r.paused = false
	r.fresh = len(r.in) > 0
	r.later()
}

func (r *Remote) CloseWrite() {
	if !r.fin {
		r.fin = true
		r.woken = r.req.Op == tftp.OpWrite
		r.later()
	}
}

func (r *Remote) Close() {
	r.closed = true
	if !r.complete && (r.req.Op == tftp.OpRead || !r.fin) {
		r.Abort(errStopped)
	}
	r.later()
}

func (r *Remote) Abort(err error) {
	if r.reason == nil {
		r.reason = err
	}
	if r.reason == nil {
		r.reason = errStopped
	}
	r.later()
}
