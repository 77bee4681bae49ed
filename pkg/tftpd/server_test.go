package tftpd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// memory is a Store of files in memory. Its fields are guarded by mu; what is opened belongs to a loop.
type memory struct {
	mu      sync.Mutex
	files   map[string][]byte
	written map[string][]byte
	opened  []string      // names, as they were asked for
	gate    chan struct{} // not nil: what is opened waits until it is closed
	cancels int           // openings that were given up
	unsized bool          // the size is not known
	cut     int           // bytes after which reading fails; 0: never
	openErr error
	safe    chan error // not nil: a written file is safe, or not, when something comes
	slow    bool       // what is written stays in the End until drain
	ends    []*memoryEnd
}

func (m *memory) Open(l *evloop.Loop, r *Open, done func(*File, error)) (cancel func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened = append(m.opened, r.Name)
	if gate := m.gate; gate != nil {
		cancelled := false
		go func() {
			<-gate
			l.Post(func() {
				if !cancelled {
					m.open(l, r, done)
				}
			})
		}()
		return func() {
			if !cancelled {
				cancelled = true
				m.mu.Lock()
				m.cancels++
				m.mu.Unlock()
			}
		}
	}
	m.mu.Unlock()
	m.open(l, r, done)
	m.mu.Lock()
	return nil
}

func (m *memory) open(l *evloop.Loop, r *Open, done func(*File, error)) {
	m.mu.Lock()
	content, ok := m.files[r.Name]
	e := &memoryEnd{store: m, loop: l, name: r.Name, left: content, cut: m.cut, write: r.Write}
	err, unsized := m.openErr, m.unsized
	m.ends = append(m.ends, e)
	m.mu.Unlock()
	switch {
	case err != nil:
		done(nil, err)
	case r.Write:
		done(&File{End: e}, nil)
	case !ok:
		done(nil, &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."})
	case unsized:
		done(&File{End: e, Size: -1}, nil)
	default:
		done(&File{End: e, Size: int64(len(content)), Version: "1"}, nil)
	}
}

func (m *memory) count(f func() int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return f()
}

func (m *memory) opens() int { return m.count(func() int { return len(m.opened) }) }

// memoryEnd is an open file of a memory. It belongs to loop.
type memoryEnd struct {
	store   *memory
	loop    *evloop.Loop
	handler evloop.Handler
	name    string
	write   bool
	left    []byte // to be read
	cut     int
	paused  bool
	posted  bool
	eof     bool
	over    bool
	got     []byte // written
	pending int
	full    bool
}

func (e *memoryEnd) SetHandler(h evloop.Handler) { e.handler = h; e.later() }
func (e *memoryEnd) HighMark() int               { return 64 << 10 }
func (e *memoryEnd) Pending() int                { return e.pending }
func (e *memoryEnd) Pause()                      { e.paused = true }
func (e *memoryEnd) Resume()                     { e.paused = false; e.later() }

func (e *memoryEnd) later() {
	if !e.posted {
		e.posted = true
		e.loop.Post(e.feed)
	}
}

func (e *memoryEnd) feed() {
	e.posted = false
	if e.over || e.paused || e.write {
		return
	}
	if e.store.count(func() int { return e.cut }) > 0 {
		if e.cut = e.cut - 64<<10; e.cut <= 0 {
			e.end(errors.New("disk /dev/sdb1 is gone"))
			return
		}
	}
	if len(e.left) == 0 {
		if !e.eof {
			e.eof = true
			e.handler.OnEOF()
		}
		return
	}
	n := e.handler.OnData(slices.Clone(e.left[:min(len(e.left), 64<<10)]))
	e.left = e.left[n:]
	e.later()
}

func (e *memoryEnd) Write(b []byte) {
	e.got = append(e.got, b...)
	if e.store.count(func() int { return len(b) }); e.store.slow {
		if e.pending += len(b); e.pending > e.HighMark() {
			e.full = true
		}
	}
}

// drain takes what was written off a slow End.
func (e *memoryEnd) drain() {
	e.pending = 0
	if e.full {
		e.full = false
		e.handler.OnDrain()
	}
}

func (e *memoryEnd) CloseWrite() {
	safe := e.store.safe
	finish := func(err error) {
		if e.over {
			return
		}
		if err != nil {
			e.end(err)
			return
		}
		e.store.mu.Lock()
		e.store.written[e.name] = e.got
		e.store.mu.Unlock()
		e.handler.OnEOF()
	}
	if safe == nil {
		e.loop.Post(func() { finish(nil) })
		return
	}
	go func() {
		err := <-safe
		e.loop.Post(func() { finish(err) })
	}()
}

func (e *memoryEnd) Close()          { e.over = true }
func (e *memoryEnd) Abort(err error) { e.over = true }

func (e *memoryEnd) end(err error) {
	e.over = true
	e.handler.OnClose(err)
}

// bench is a Server with a Share, which is its whole world.
type bench struct {
	*Server
	t     testing.TB
	core  *evloop.Core
	store *memory
	share *Share
	logs  *syncBuffer

	mu    sync.Mutex
	began int
	ended []error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// way is how a Server is driven.
type way struct {
	name     string
	portable bool
	loop     int  // of the share; the port's is 0
	alone    bool // the port's loop sends for all
}

var ways = []way{{"", false, 0, false}, {"other loop", false, 1, false}, {"port sends", false, 1, true}, {"portable", true, 0, false}, {"portable, other loop", true, 1, false}}

// newBench starts a Server; set may change its fields.
func newBench(t testing.TB, w way, set func(*bench)) *bench {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 2, Portable: w.portable})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Server: new(Server), t: t, core: core, logs: new(syncBuffer)}
	b.store = &memory{files: map[string][]byte{"empty": {}, "hello": []byte("hello, world")}, written: make(map[string][]byte)}
	b.share = &Share{
		Loop: core.Loop(w.loop), Store: b.store, Write: true,
		Begin: func(*Transfer) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.began++
		},
		End: func(_ *Transfer, err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.ended = append(b.ended, err)
		},
	}
	b.Find = func(name string, _ netip.AddrPort) (*Share, string, *tftp.Error) {
		rest, ok := strings.CutPrefix(name, "boot/")
		switch {
		case ok:
			return b.share, rest, nil
		case name == "silent":
			return nil, "", nil
		}
		return nil, "", &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."}
	}
	b.Log = slog.New(slog.NewTextHandler(b.logs, nil))
	if set != nil {
		set(b)
	}
	if err := b.Listen(core.Loop(0), "udp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if w.alone {
		on(core.Loop(0), b.port.closeFile)
	}
	t.Cleanup(func() { core.Close() })
	return b
}

func onEvery(t *testing.T, f func(t *testing.T, w way)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) { f(t, w) })
	}
}

// on runs f on l.
func on(l *evloop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() {
		defer close(done)
		f()
	})
	<-done
}

// settled waits until no transfer runs, and what has been said about them has been heard.
func (b *bench) settled() {
	b.t.Helper()
	for range 12000 {
		for range 2 {
			on(b.core.Loop(1), func() {})
			on(b.core.Loop(0), func() {})
		}
		if b.Stats().Running == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.t.Fatalf("transfers do not end: %+v", b.Stats())
}

// errs returns why transfers have ended, in order.
func (b *bench) errs() []error {
	b.settled()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.began != len(b.ended) {
		b.t.Errorf("%d transfers have begun, %d have ended", b.began, len(b.ended))
	}
	return slices.Clone(b.ended)
}

// client is a raw socket of a client.
type client struct {
	*net.UDPConn
	t testing.TB
}

func (b *bench) client() *client {
	b.t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.Addr()))
	if err != nil {
		b.t.Fatal(err)
	}
	return newClient(b.t, c)
}

func newClient(t testing.TB, c *net.UDPConn) *client {
	c.SetDeadline(time.Now().Add(time.Minute))
	c.SetReadBuffer(4 << 20)
	t.Cleanup(func() { c.Close() })
	return &client{c, t}
}

// ask sends a request: kind 1 or 2, then strings with a zero behind each.
func request(kind byte, fields ...string) []byte {
	b := []byte{0, kind}
	for _, f := range fields {
		b = append(append(b, f...), 0)
	}
	return b
}

func (c *client) say(b []byte) {
	if _, err := c.Write(b); err != nil {
		c.t.Error(err)
	}
}

func (c *client) ask(kind byte, fields ...string) { c.say(request(kind, fields...)) }

func (c *client) hear() []byte {
	c.t.Helper()
	b := make([]byte, 70000)
	n, err := c.Read(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return b[:n]
}

func (c *client) want(b []byte) {
	c.t.Helper()
	if got := c.hear(); !bytes.Equal(got, b) {
		c.t.Fatalf("got %s, want %s", show(got), show(b))
	}
}

// wantNothing says that nothing has come that was sent before what it makes the server answer.
func (c *client) wantSilence(d time.Duration) {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	b := make([]byte, 70000)
	if n, err := c.Read(b); err == nil {
		c.t.Fatalf("got %s, want nothing", show(b[:n]))
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
}

func show(b []byte) string {
	return strconv.Quote(string(b[:min(len(b), 60)])) + fmt.Sprintf(" (%d bytes)", len(b))
}

func ack(n int) []byte { return binary.BigEndian.AppendUint16([]byte{0, 4}, uint16(n)) }

func data(n int, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 3}, uint16(n)), b...)
}

func errorPacket(code byte, text string) []byte {
	return append(append([]byte{0, 5, 0, code}, text...), 0)
}

// get reads a file, by windows if options say so.
func (c *client) get(name string, options ...string) ([]byte, error) {
	c.t.Helper()
	c.ask(1, append([]string{name, "octet"}, options...)...)
	return c.read()
}

// read reads the file that was asked for.
func (c *client) read() (file []byte, err error) {
	block, window, since := 512, 1, 0
	b := make([]byte, 70000)
	for next := 1; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return nil, err
		}
		p := b[:n]
		send := func(n int) { c.WriteToUDPAddrPort(ack(n), from) }
		if c.RemoteAddr() != nil {
			send = func(n int) { c.say(ack(n)) }
		}
		switch p[1] {
		case 6:
			fields := strings.Split(string(p[2:len(p)-1]), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				n, _ := strconv.Atoi(fields[i+1])
				switch fields[i] {
				case "blksize":
					block = n
				case "windowsize":
					window = n
				}
			}
			send(0)
		case 3:
			if binary.BigEndian.Uint16(p[2:]) != uint16(next) {
				continue
			}
			file = append(file, p[4:]...)
			since++
			last := n-4 < block
			if last || since == window {
				send(next)
				since = 0
			}
			if last {
				return file, nil
			}
			next++
		case 5:
			return nil, &tftp.Error{Code: tftp.Code(p[3]), Text: string(p[4 : n-1]), Remote: true}
		default:
			return nil, fmt.Errorf("got %s", show(p))
		}
	}
}

// put writes a file.
func (c *client) put(name string, file []byte, options ...string) error {
	c.t.Helper()
	c.ask(2, append([]string{name, "octet"}, options...)...)
	block := 512
	b := make([]byte, 70000)
	for next, off := 0, 0; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		p := b[:n]
		switch {
		case p[1] == 6:
			fields := strings.Split(string(p[2:len(p)-1]), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				if fields[i] == "blksize" {
					block, _ = strconv.Atoi(fields[i+1])
				}
			}
		case p[1] == 5:
			return &tftp.Error{Code: tftp.Code(p[3]), Text: string(p[4 : n-1]), Remote: true}
		case p[1] != 4:
			return fmt.Errorf("got %s", show(p))
		case binary.BigEndian.Uint16(p[2:]) != uint16(next):
			continue
		}
		if next > 0 && off+block > len(file) {
			return nil
		}
		if next > 0 {
			off += block
		}
		next++
		d := data(next, file[min(off, len(file)):min(off+block, len(file))])
		if c.RemoteAddr() != nil {
			c.say(d)
		} else {
			c.WriteToUDPAddrPort(d, from)
		}
	}
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	io.ReadFull(r, b)
	return b
}

// TestRead reads files of all interesting sizes.
func TestRead(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, nil)
		n := 0
		for _, size := range []int{0, 1, 511, 512, 513, 1024, 100_000, 300_000} {
			want := content(size)
			b.store.mu.Lock()
			b.store.files[fmt.Sprint(size)] = want
			b.store.mu.Unlock()
			for _, options := range [][]string{nil, {"blksize", "1468"}, {"blksize", "1000", "windowsize", "16", "tsize", "0"}, {"blksize", "65464", "windowsize", "4"}} {
				got, err := b.client().get(fmt.Sprint("/boot/", size), options...)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes with %v: %d bytes, %v", size, options, len(got), err)
				}
				n++
			}
		}
		errs := b.errs()
		if len(errs) != n || slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			t.Errorf("transfers ended by %v", errs)
		}
		if st := b.Stats(); st.Total != uint64(n) || st.Refused != (Refused{}) || st.Unproven != 0 || st.ErrorsSent != 0 {
			t.Errorf("counted %+v", st)
		}
	})
}

// TestWrite writes them.
func TestWrite(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, nil)
		for _, size := range []int{0, 1, 511, 512, 513, 100_000} {
			want := content(size)
			for i, options := range [][]string{nil, {"blksize", "1468", "tsize", fmt.Sprint(size)}, {"blksize", "65464"}} {
				name := fmt.Sprint(size, ".", i)
				if err := b.client().put("boot/"+name, want, options...); err != nil {
					t.Errorf("%d bytes with %v: %v", size, options, err)
				}
				b.store.mu.Lock()
				if got, ok := b.store.written[name]; !ok || !bytes.Equal(got, want) {
					t.Errorf("%d bytes with %v have become %d, %v", size, options, len(got), ok)
				}
				b.store.mu.Unlock()
			}
		}
		if errs := b.errs(); len(errs) != 18 || slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			t.Errorf("transfers ended by %v", errs)
		}

		// What is not what was announced is not kept. Some clients announce 0 if they do not know.
		for size, want := range map[string]bool{"1999": false, "2001": false, "0": true} {
			err := b.client().put("boot/announced"+size, content(2000), "tsize", size)
			b.store.mu.Lock()
			if _, ok := b.store.written["announced"+size]; ok != want || (err == nil) != want {
				t.Errorf("2000 bytes, announced as %s: kept: %v, %v", size, ok, err)
			}
			b.store.mu.Unlock()
		}
	})
}
