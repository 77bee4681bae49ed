package evloop

import (
	"bytes"
	"cmp"
	"container/list"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"sync"
	"time"
	"unsafe"
)

// crypto/tls on a loop. The stock tls.Conn sits on a tlsConn, a net.Conn that never blocks:
//
//   - Its Read returns errAgain, a temporary net.Error, when there is nothing: crypto/tls keeps what it has of a record
//     and may be asked again, at any byte. Data may come together with errAgain.
//   - Its Write never fails while the connection lives (crypto/tls makes any write error final): it queues, and the
//     high mark is ours to respect.
//   - Read may write (KeyUpdate, alerts), so both belong to the loop.
//   - After each event Read is called until it says errAgain: records may sit in the tls.Conn while the socket is empty.
//
// The handshake cannot be done so, because its errors are final, temporary or not. It runs on a goroutine of its own,
// which the loop feeds; a server starts it only when the whole ClientHello is there, so that a peer which sends
// nothing costs nothing.

// tlsConn is the TLS half of a Conn.
type tlsConn struct {
	c    *Conn
	tc   *tls.Conn
	hs   *handshake // nil when it is over
	raw  []byte     // ciphertext of the read under way, lent
	left []byte     // ciphertext that came behind the handshake
	eof  bool       // the socket's end of stream was read
	cut  bool       // crypto/tls was told of it: there was no close_notify
	shut bool       // there has to be one: see ExpectCloseNotify
	used bool       // since the last sweep
	warm *list.Element
	nc   *detached // after Detach: read and write there
}

// handshake is a TLS handshake under way. Its goroutine reads in and writes through the loop.
type handshake struct {
	t       *tlsConn
	client  bool
	done    func(error)
	timer   Timer
	started bool
	dead    bool          // its connection waits to be buried
	elem    *list.Element // in handshakes, guarded by its mu

	mu   sync.Mutex
	in   []byte // from the loop
	full bool   // the loop stopped reading because in is long
	err  error  // the connection died, or time is up
	more chan struct{}
}

// handshakes bounds the handshakes of a core: how many exist, and how many compute.
type handshakes struct {
	max    int
	active chan struct{}

	mu  sync.Mutex
	all list.List // of *handshake, oldest first
}

func (h *handshakes) init(n int) {
	h.max = n
	h.active = make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))
}

// What StartTLS tells when it gives a handshake up.
var (
	ErrHandshakeTimeout = errors.New("tls: handshake took too long")
	ErrHandshakeCrowded = errors.New("tls: too many handshakes under way")
)

// enter counts s in. When there are too many, the oldest, which is the likeliest to be stalled, is given up.
func (h *handshakes) enter(s *handshake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.elem = h.all.PushBack(s)
	if h.all.Len() > h.max {
		h.all.Remove(h.all.Front()).(*handshake).fail(ErrHandshakeCrowded)
	}
}

func (h *handshakes) leave(s *handshake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all.Remove(s.elem) // without effect when enter did it
}

// StartTLS makes c a TLS connection, as server or client, and calls done on its loop when the handshake is over or
// has failed; c is closed then. deadline bounds the handshake, the wait for the first byte included. Input that is
// kept is taken as ciphertext. done sets the handler for the plaintext, unless it is set already; a handler that is set
// hears only OnClose before. On failure done comes before OnClose.
//
// cfg is used as it is and must not be changed afterwards: session tickets work between connections that have the same
// one. It should set DynamicRecordSizingDisabled, because small records after each silence cost more than they gain.
func (c *Conn) StartTLS(cfg *tls.Config, client bool, deadline time.Duration, done func(error)) {
	if c.flags&(isDead|closing) != 0 {
		done(cmp.Or(c.err, ErrClosed))
		return
	}
	t := &tlsConn{c: c}
	if c.flags&gotEOF != 0 { // not told yet: it comes behind the ciphertext
		c.flags &^= gotEOF
		t.eof = true
	}
	t.hs = &handshake{t: t, client: client, done: done, more: make(chan struct{}, 1)}
	if client {
		t.tc = tls.Client(t, cfg)
	} else {
		t.tc = tls.Server(t, cfg)
	}
	c.tls = t
	c.loop.Arm(&t.hs.timer, deadline, func() { t.giveUp(ErrHandshakeTimeout) })
	if client {
		t.start()
	}
	c.wantServe()
}

// TLS describes the connection's TLS; nil when it is plain or the handshake is not over.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil || c.tls.hs != nil {
		return nil
	}
	s := c.tls.tc.ConnectionState()
	return &s
}

// ExpectCloseNotify has an end of input that comes without a close_notify, which anybody on the way can make, abort c with
// io.ErrUnexpectedEOF instead of an OnEOF (rfc8446#section-6.1). It is called after StartTLS. Without it such an end is a
// good one if it does not come within a record, since many peers end so.
func (c *Conn) ExpectCloseNotify() {
	if c.tls != nil {
		c.tls.shut = true
	}
}

func (t *tlsConn) shaking() bool { return t.hs != nil }

// feed reads what came for the handshake and passes it on; a server's starts with the whole ClientHello.
func (t *tlsConn) feed() {
	c, hs := t.c, t.hs
	for c.flags&(canRead|isDead) == canRead && len(c.in) < MaxKept {
		n, err := c.readSocket(c.loop.rbuf[:readSize])
		c.in = c.loop.buffers.append(c.in, c.loop.rbuf[:n])
		if err == io.EOF {
			t.eof = true
		}
	}
	if c.flags&isDead != 0 {
		return
	}
	if !hs.started {
		whole, err := wholeHello(c.in)
		switch {
		case err != nil:
		case whole:
			t.start()
		case t.eof:
			err = io.ErrUnexpectedEOF
		case len(c.in) >= MaxKept:
			err = ErrInputTooLong
		}
		if err != nil {
			t.giveUp(err)
		}
		if !hs.started {
			return
		}
	}
	hs.mu.Lock()
	if len(hs.in) < MaxKept {
		hs.in = append(hs.in, c.in...)
		c.loop.buffers.put(c.in)
		c.in = nil
		if t.eof && hs.err == nil {
			hs.err = io.ErrUnexpectedEOF // if it needs more than what came
		}
	} else {
		hs.full = true
	}
	hs.mu.Unlock()
	hs.signal()
}

// Yield runs f, which may wait, for a function of a tls.Config that has been called in the handshake of hello
// (GetCertificate, say). Only a few handshakes compute at a time: while f runs another one may.
func Yield(hello *tls.ClientHelloInfo, f func()) {
	t, ok := hello.Conn.(*tlsConn)
	if !ok { // it is not a loop's
		f()
		return
	}
	active := t.c.loop.core.hs.active
	<-active
	defer func() { active <- struct{}{} }()
	f()
}

func (t *tlsConn) start() {
	hs := t.hs
	hs.started = true
	core := t.c.loop.core
	t.c.loop.shaking++
	core.hs.enter(hs)
	core.wg.Add(1)
	go hs.run(core, t.c.loop)
}

// run is the handshake's goroutine.
func (hs *handshake) run(core *Core, l *Loop) {
	defer core.wg.Done()
	core.hs.active <- struct{}{}
	err := hs.t.tc.Handshake()
	<-core.hs.active
	core.hs.leave(hs)
	l.Post(func() { hs.t.finish(err) })
}

// finish is the end of the handshake, on the loop.
func (t *tlsConn) finish(err error) {
	hs, c := t.hs, t.c
	c.loop.shaking--
	hs.timer.Stop()
	hs.mu.Lock()
	t.left = append(hs.in, c.in...)
	hs.mu.Unlock()
	if c.in != nil {
		c.loop.buffers.put(c.in)
		c.in = nil
	}
	t.hs = nil
	if err == nil && c.flags&(isDead|closing) != 0 {
		err = cmp.Or(c.err, ErrClosed)
	}
	c.flags |= inHandler
	if err != nil {
		c.closeWith(err) // the alert goes out first
	} else {
		t.warmUp()
		c.flags |= represent
		c.wantServe()
	}
	hs.done(err)
	c.flags &^= inHandler
	if hs.dead {
		c.loop.dead.add(c)
		return
	}
	c.left()
}

// giveUp ends the handshake from the loop's side.
func (t *tlsConn) giveUp(err error) {
	hs := t.hs
	if hs == nil {
		return
	}
	hs.fail(err)
	if hs.started {
		return // its goroutine reports
	}
	t.hs = nil
	hs.timer.Stop()
	if e, ok := errors.AsType[*HelloError](err); ok {
		t.c.queue(alertRecord(e.Alert))
	}
	t.c.closeWith(err)
	hs.done(err)
}

// abort is told that the connection died.
func (t *tlsConn) abort(err error) {
	t.coolDown()
	if hs := t.hs; hs != nil {
		hs.timer.Stop()
		hs.fail(err)
	}
}

// bury reports a handshake that the connection did not live to begin. It returns false while one is under way: its
// end buries the connection.
func (t *tlsConn) bury() bool {
	hs := t.hs
	if hs == nil {
		return true
	}
	if hs.started {
		hs.dead = true
		return false
	}
	t.hs = nil
	hs.done(hs.err)
	return true
}

// fail makes the goroutine's next read fail. It may be called from any goroutine.
func (hs *handshake) fail(err error) {
	hs.mu.Lock()
	if hs.err == nil {
		hs.err = err
	}
	hs.mu.Unlock()
	hs.signal()
}

func (hs *handshake) signal() {
	select {
	case hs.more <- struct{}{}:
	default:
	}
}

// read is tlsConn.Read on the handshake's goroutine. While it waits another handshake may compute.
func (hs *handshake) read(b []byte) (int, error) {
	core := hs.t.c.loop.core
	waited := false
	defer func() {
		if waited {
			core.hs.active <- struct{}{}
		}
	}()
	for {
		hs.mu.Lock()
		if len(hs.in) > 0 {
			n := copy(b, hs.in)
			hs.in = hs.in[n:]
			again := hs.full && len(hs.in) == 0
			if again {
				hs.full = false
			}
			hs.mu.Unlock()
			if again {
				hs.t.c.loop.Post(hs.t.c.wantServe)
			}
			return n, nil
		}
		err := hs.err
		hs.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if !waited {
			waited = true
			<-core.hs.active
		}
		<-hs.more
	}
}

// plain is where decrypted input goes: what was kept, one read with what was left before it, and a record.
func (l *Loop) plain() []byte {
	if l.pbuf == nil {
		l.pbuf = make([]byte, MaxKept+len(l.rbuf)+32<<10)
	}
	return l.pbuf
}

// read reads up to size bytes of ciphertext and returns the plaintext behind what was kept, in the loop's buffer.
// n is what the socket gave; the error is as from readSocket, or final, and then concerns what follows b.
func (t *tlsConn) read(size int) (b []byte, n int, err error) {
	c, l := t.c, t.c.loop
	t.warmUp()
	plain := l.plain()
	m := copy(l.rbuf, t.left)
	t.left = nil
	if c.flags&canRead != 0 && m < len(l.rbuf) {
		n, err = c.readSocket(l.rbuf[m : m+min(size, len(l.rbuf)-m)])
		if err != nil && err != errAgain && err != io.EOF {
			return nil, 0, err
		}
		t.eof = t.eof || err == io.EOF
	}
	t.raw = l.rbuf[:m+n]
	k := copy(plain, c.in)
	kept := k
	for {
		var r int
		r, err = t.tc.Read(plain[k:])
		k += r
		if err != nil {
			break
		}
	}
	t.raw = nil
	if err == errAgain && n > 0 {
		err = nil
	}
	if err == io.EOF && t.cut && t.shut {
		err = io.ErrUnexpectedEOF
	}
	if k == kept { // no plaintext: nothing new to present
		return nil, 0, err
	}
	return plain[:k], max(n, 1), err
}

func (t *tlsConn) write(b []byte) {
	t.warmUp()
	for len(b) > 0 {
		n := min(len(b), 64<<10)
		t.tc.Write(b[:n]) // cannot fail while the connection lives; when it does not, nobody is left to tell
		b = b[n:]
		t.c.kick()
	}
}

func (t *tlsConn) closeWrite() {
	if t.hs == nil {
		t.tc.CloseWrite()
	}
}

// Read is called by crypto/tls.
func (t *tlsConn) Read(b []byte) (int, error) {
	if t.nc != nil {
		return t.nc.Read(b)
	}
	if hs := t.hs; hs != nil {
		return hs.read(b)
	}
	if len(t.raw) > 0 {
		n := copy(b, t.raw)
		t.raw = t.raw[n:]
		return n, nil
	}
	if t.eof {
		t.cut = true
		return 0, io.EOF
	}
	return 0, errAgain
}

// Write is called by crypto/tls.
func (t *tlsConn) Write(b []byte) (int, error) {
	if t.nc != nil {
		return t.nc.Write(b)
	}
	if hs := t.hs; hs != nil && hs.started {
		b := bytes.Clone(b)
		t.c.loop.Post(func() { t.c.queue(b); t.c.kick() })
		return len(b), nil
	}
	t.c.queue(b)
	t.c.wantFlush()
	return len(b), nil
}

// Close is called by crypto/tls when the owner of a detached connection closes it.
func (t *tlsConn) Close() error {
	if t.nc != nil {
		return t.nc.Close()
	}
	return nil
}

func (t *tlsConn) LocalAddr() net.Addr {
	if t.nc != nil {
		return t.nc.LocalAddr()
	}
	return net.TCPAddrFromAddrPort(t.c.LocalAddr())
}

func (t *tlsConn) RemoteAddr() net.Addr {
	if t.nc != nil {
		return t.nc.RemoteAddr()
	}
	return net.TCPAddrFromAddrPort(t.c.RemoteAddr())
}

func (t *tlsConn) SetDeadline(d time.Time) error {
	if t.nc != nil {
		return t.nc.SetDeadline(d)
	}
	return nil // on a loop, timers are the owner's
}

func (t *tlsConn) SetReadDeadline(d time.Time) error {
	if t.nc != nil {
		return t.nc.SetReadDeadline(d)
	}
	return nil
}

func (t *tlsConn) SetWriteDeadline(d time.Time) error {
	if t.nc != nil {
		return t.nc.SetWriteDeadline(d)
	}
	return nil
}

// The record buffers of a tls.Conn (2 KiB after the handshake, 17 KiB and more after a large record) stay with it for
// its life: golang/go#43563. A loop frees those of connections that were silent for a while. This is the only use of
// unsafe on crypto/tls; when the fields are not what they were, nothing is freed.

const sweepTime = time.Second

var idleBuffers = sync.OnceValue(func() (offsets []uintptr) {
	t := reflect.TypeFor[tls.Conn]()
	for _, name := range []string{"rawInput", "hand"} {
		f, ok := t.FieldByName(name)
		if !ok || f.Type != reflect.TypeFor[bytes.Buffer]() {
			return nil
		}
		offsets = append(offsets, f.Offset)
	}
	return offsets
})

// dropIdle frees the record buffers if they are empty and reports whether it did.
func (t *tlsConn) dropIdle() bool {
	offsets := idleBuffers()
	for _, o := range offsets {
		if (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t.tc), o)).Len() > 0 {
			return false
		}
	}
	for _, o := range offsets {
		*(*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t.tc), o)) = bytes.Buffer{}
	}
	return true
}

// warmUp puts t on the loop's list of connections that may hold buffers.
func (t *tlsConn) warmUp() {
	l := t.c.loop
	t.used = true
	if t.warm == nil && idleBuffers() != nil {
		t.warm = l.warm.PushBack(t)
		if l.sweeper.next == nil {
			l.Arm(&l.sweeper, sweepTime, l.sweep)
		}
	}
}

func (t *tlsConn) coolDown() {
	if t.warm != nil {
		t.c.loop.warm.Remove(t.warm)
		t.warm = nil
	}
}

// sweep frees the buffers of connections that were not used since the last sweep.
func (l *Loop) sweep() {
	for e := l.warm.Front(); e != nil; {
		next := e.Next()
		t := e.Value.(*tlsConn)
		if t.used {
			t.used = false
		} else if t.dropIdle() {
			t.coolDown()
		}
		e = next
	}
	if l.warm.Len() > 0 {
		l.Arm(&l.sweeper, sweepTime, l.sweep)
	}
}
