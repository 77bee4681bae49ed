package evloop

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// wire is a connection in memory whose loop end sees exactly the segments that cut makes: each read returns at most
// one, then nothing until the next event. Its other end is a blocking net.Conn.
type wire struct {
	cut func(b []byte) [][]byte // of what the peer writes; nil: as written

	mu      sync.Mutex
	changed *sync.Cond
	loop    *Loop
	token   uint64
	in      [][]byte // to the loop
	inEOF   bool
	read    int // bytes the loop took
	rest    bool
	out     []byte // to the peer
	outEOF  bool
	full    bool // the peer takes nothing
	closed  bool
}

func newWire() *wire {
	w := new(wire)
	w.changed = sync.NewCond(&w.mu)
	return w
}

// attach brings the loop's end onto l.
func (w *wire) attach(l *Loop) *Conn {
	c, err := l.newConn(&wireSock{w}, netip.AddrPort{})
	if err != nil {
		panic(err)
	}
	return c
}

// tell reports an event; w.mu is held.
func (w *wire) tell() {
	if l, token := w.loop, w.token; l != nil {
		l.Post(func() { l.note(event{token: token, readable: true, writable: true}) })
	}
}

// wireSock is the loop's end.
type wireSock struct{ w *wire }

func (s *wireSock) register(l *Loop, token uint64) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.loop, s.w.token = l, token
	s.w.tell()
	return nil
}
func (s *wireSock) unregister() {}
func (s *wireSock) read(b []byte) (int, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.rest:
		w.rest = false
		if len(w.in) > 0 || w.inEOF {
			w.tell()
		}
		return 0, errAgain
	case len(w.in) > 0:
		n := copy(b, w.in[0])
		w.read += n
		if w.in[0] = w.in[0][n:]; len(w.in[0]) == 0 {
			w.in = w.in[1:]
			w.rest = true
		}
		return n, nil
	case w.inEOF:
		return 0, io.EOF
	}
	return 0, errAgain
}
func (s *wireSock) write(b []byte) (int, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full {
		return 0, errAgain
	}
	w.out = append(w.out, b...)
	w.changed.Broadcast()
	return len(b), nil
}
func (s *wireSock) flushed() bool { return true }
func (s *wireSock) closeWrite() error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.outEOF = true
	s.w.changed.Broadcast()
	return nil
}
func (s *wireSock) close(error)           { s.closeWrite() }
func (s *wireSock) local() netip.AddrPort { return netip.AddrPort{} }
func (s *wireSock) lastError() error      { return nil }

// wireConn is the peer's end.
type wireConn struct{ *wire }

func (w wireConn) Read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.out) == 0 {
		if w.closed {
			return 0, os.ErrClosed
		}
		if w.outEOF {
			return 0, io.EOF
		}
		w.changed.Wait()
	}
	n := copy(b, w.out)
	w.out = w.out[n:]
	return n, nil
}

func (w wireConn) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(b)
	b = append([]byte(nil), b...)
	segments := [][]byte{b}
	if w.cut != nil {
		segments = w.cut(b)
	}
	for _, s := range segments {
		if len(s) > 0 {
			w.in = append(w.in, s)
		}
	}
	w.tell()
	return n, nil
}

func (w wireConn) CloseWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inEOF = true
	w.tell()
	return nil
}

func (w wireConn) Close() error {
	w.CloseWrite()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
	return nil
}
func (wireConn) LocalAddr() net.Addr              { return nil }
func (wireConn) RemoteAddr() net.Addr             { return nil }
func (wireConn) SetDeadline(time.Time) error      { return nil }
func (wireConn) SetReadDeadline(time.Time) error  { return nil }
func (wireConn) SetWriteDeadline(time.Time) error { return nil }

// cutAt cuts the peer's stream once, at an offset from its beginning.
func cutAt(offset int) func([]byte) [][]byte {
	at := 0
	return func(b []byte) [][]byte {
		i := offset - at
		at += len(b)
		if i <= 0 || i >= len(b) {
			return [][]byte{b}
		}
		return [][]byte{b[:i], b[i:]}
	}
}

// cutEvery cuts into pieces of the lengths that size returns.
func cutEvery(size func() int) func([]byte) [][]byte {
	return func(b []byte) (all [][]byte) {
		for len(b) > 0 {
			n := min(len(b), size())
			all = append(all, b[:n])
			b = b[n:]
		}
		return all
	}
}

// keyLog gets the secrets of one TLS 1.3 connection with SHA-256.
type keyLog map[string][]byte

func (k keyLog) Write(b []byte) (int, error) {
	f := strings.Fields(string(b))
	k[f[0]], _ = hex.DecodeString(f[2])
	return len(b), nil
}

// sealer makes TLS 1.3 records by hand (RFC 8446, section 5.2), with AES-128-GCM.
type sealer struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newSealer(secret []byte) *sealer {
	s := &sealer{secret: secret}
	s.derive()
	return s
}

func expandLabel(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(6+len(label)))
	info = append(info, "tls13 "+label+"\x00"...)
	b, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *sealer) derive() {
	block, _ := aes.NewCipher(expandLabel(s.secret, "key", 16))
	s.aead, _ = cipher.NewGCM(block)
	s.iv = expandLabel(s.secret, "iv", 12)
	s.seq = 0
}

const (
	typeAlert     = 21
	typeHandshake = 22
	typeData      = 23
)

// record returns one record of the given type with zeros behind it as padding.
func (s *sealer) record(typ byte, content []byte, padding int) []byte {
	inner := append(append([]byte(nil), content...), typ)
	inner = append(inner, make([]byte, padding)...)
	header := []byte{typeData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+16))
	nonce := append([]byte(nil), s.iv...)
	for i := range 8 {
		nonce[4+i] ^= byte(s.seq >> (56 - 8*i))
	}
	s.seq++
	return s.aead.Seal(header, nonce, inner, header[:5:5])
}

func (s *sealer) data(b string) []byte { return s.record(typeData, []byte(b), 0) }

// keyUpdate returns a KeyUpdate in pieces of the given sizes, and goes to the next keys.
func (s *sealer) keyUpdate(request bool, pieces ...int) (b []byte) {
	message := []byte{24, 0, 0, 1, 0}
	if request {
		message[4] = 1
	}
	for _, n := range pieces {
		b = append(b, s.record(typeHandshake, message[:n], 0)...)
		message = message[n:]
	}
	b = append(b, s.record(typeHandshake, message, 0)...)
	s.secret = expandLabel(s.secret, "traffic upd", 32)
	s.derive()
	return b
}

func (s *sealer) alert(code byte) []byte { return s.record(typeAlert, []byte{1, code}, 0) }
