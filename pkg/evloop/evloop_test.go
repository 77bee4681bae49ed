package evloop

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var onlyCore = flag.String("core", "", "run over one backend: native or portable")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// onEveryCore runs a test over the system's poller and over the portable backend.
func onEveryCore(t *testing.T, f func(t *testing.T, core *Core)) {
	for _, name := range []string{"native", "portable"} {
		if *onlyCore != "" && *onlyCore != name {
			continue
		}
		t.Run(name, func(t *testing.T) { f(t, newCore(t, Config{Portable: name == "portable"})) })
	}
}

// onEveryConn is onEveryCore, and then with connections on top of others: see accepted.
func onEveryConn(t *testing.T, f func(t *testing.T, core *Core)) {
	onEveryCore(t, f)
	t.Run("attached end", func(t *testing.T) {
		core := newCore(t, Config{})
		onEnds.Store(core, true)
		defer onEnds.Delete(core)
		f(t, core)
	})
}

var onEnds sync.Map // cores of onEveryConn

// accepted gives accept, in a test of onEveryConn, what AttachEnd makes of each connection.
func accepted(core *Core, accept func(*Conn)) func(*Conn) {
	if _, ok := onEnds.Load(core); !ok {
		return accept
	}
	return func(c *Conn) {
		if c, err := c.Loop().AttachEnd(c, c.RemoteAddr()); err == nil {
			accept(c)
		}
	}
}

// newCore starts a core of two loops that ends with the test.
func newCore(t testing.TB, cfg Config) *Core {
	t.Helper()
	cfg.Loops = 2
	core, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	return core
}

// inBubble runs a test on a portable core in a bubble of its own time.
func inBubble(t *testing.T, cfg Config, f func(t *testing.T, l *Loop)) {
	synctest.Test(t, func(t *testing.T) {
		cfg.Portable = true
		cfg.Loops = 1
		core, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		f(t, core.Loop(0))
	})
}

// run runs f on l and waits for it.
func run(l *Loop, f func()) {
	done := make(chan struct{})
	if l.Post(func() { f(); close(done) }) {
		<-done
	}
}

// peer connects to a listener on the core's first loop.
func peer(t testing.TB, core *Core, accept func(*Conn)) net.Conn {
	t.Helper()
	return dial(t, listen(t, core, accept))
}

func listen(t testing.TB, core *Core, accept func(*Conn)) string {
	t.Helper()
	ln, err := core.Loop(0).Listen("tcp", "127.0.0.1:0", accepted(core, accept))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { nc.Close() })
	return nc
}

// events is a Handler made of functions; those that are nil do the least.
type events struct {
	data   func(b []byte) int
	eof    func()
	drain  func()
	closed func(error)
}

func (e *events) OnData(b []byte) int {
	if e.data == nil {
		return len(b)
	}
	return e.data(b)
}
func (e *events) OnEOF() {
	if e.eof != nil {
		e.eof()
	}
}
func (e *events) OnDrain() {
	if e.drain != nil {
		e.drain()
	}
}
func (e *events) OnClose(err error) {
	if e.closed != nil {
		e.closed(err)
	}
}

// echo answers with what it gets, and pauses while its answers are not taken.
type echo struct {
	c      *Conn
	closed func(error)
}

func (e *echo) OnData(b []byte) int {
	e.c.Write(b)
	if e.c.Pending() > e.c.HighMark() {
		e.c.Pause()
	}
	return len(b)
}
func (e *echo) OnEOF()   { e.c.CloseWrite() }
func (e *echo) OnDrain() { e.c.Resume() }
func (e *echo) OnClose(err error) {
	if e.closed != nil {
		e.closed(err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// checkEcho sends n bytes and an end of stream, and wants them back.
func checkEcho(t *testing.T, nc net.Conn, n int) {
	t.Helper()
	data := randomBytes(n)
	go func() {
		nc.Write(data)
		nc.(interface{ CloseWrite() error }).CloseWrite()
	}()
	nc.SetReadDeadline(time.Now().Add(time.Minute))
	got, err := io.ReadAll(nc)
	if err != nil {
		t.Errorf("after %d of %d bytes: %v", len(got), n, err)
	} else if !bytes.Equal(got, data) {
		t.Errorf("%d bytes sent, %d others came back", n, len(got))
	}
}

// ask sends a line and wants an answer.
func ask(t *testing.T, nc net.Conn, send, want string) {
	t.Helper()
	if _, err := io.WriteString(nc, send); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
		t.Fatalf("after %q came %q, %v; want %q", send, got, err, want)
	}
}

func TestPost(t *testing.T) {
	core, err := New(Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := core.Loop(0)
	var n atomic.Int32
	done := make(chan struct{})
	for range 8 {
		go func() {
			for range 1000 {
				l.Post(func() {
					if n.Add(1) == 8000 {
						close(done)
					}
				})
			}
		}()
	}
	<-done
	core.Close()
	if l.Post(func() { t.Error("ran after Close") }) {
		t.Error("Post after Close reported true")
	}
	if _, err := core.Listen("tcp", "127.0.0.1:0", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
	core.Close()
}

// TestTurn shows the order within a turn: posted functions, then AfterTurn, then output; and that Go comes back.
func TestTurn(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		l := core.Loop(0)
		var order []string
		pending := make(chan int, 1)
		nc := peer(t, core, func(c *Conn) {
			c.SetHandler(&events{data: func(b []byte) int {
				order = append(order, "data")
				l.AfterTurn(func() {
					order = append(order, "after")
					c.Write([]byte("b"))
					pending <- c.Pending()
					l.AfterTurn(func() { order = append(order, "after that") })
				})
				c.Write([]byte("a"))
				return len(b)
			}})
		})
		ask(t, nc, "x", "ab")
		if n := <-pending; n != 2 {
			t.Errorf("%d bytes wait in AfterTurn, want both", n)
		}
		onLoop := make(chan struct{})
		run(l, func() {
			l.Go(func() {}, func() {
				order = append(order, "done")
				close(onLoop)
			})
		})
		<-onLoop
		run(l, func() {
			if got := len(order); got != 4 || order[0] != "data" || order[1] != "after" || order[2] != "after that" || order[3] != "done" {
				t.Errorf("order %q", order)
			}
		})
	})
}

func TestSlowTurn(t *testing.T) {
	var who string
	inBubble(t, Config{OnSlowTurn: func(handler string, d time.Duration) { who = handler }}, func(t *testing.T, l *Loop) {
		a, b := net.Pipe()
		defer a.Close()
		run(l, func() {
			c, _ := l.Attach(b)
			c.SetHandler(&events{data: func(b []byte) int {
				time.Sleep(60 * time.Millisecond)
				return len(b)
			}})
		})
		a.Write([]byte("x"))
		synctest.Wait()
		time.Sleep(time.Second)
		run(l, func() {
			if who != "*evloop.events" {
				t.Errorf("slow handler reported as %q", who)
			}
		})
	})
}

// What was spawned hears of the end of the core, which waits for it.
func TestSpawn(t *testing.T) {
	core, err := New(Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	began := make(chan bool)
	core.Loop(0).Post(func() {
		core.Loop(0).Spawn(func(ctx context.Context) {
			close(began)
			<-ctx.Done()
			time.Sleep(time.Millisecond)
			ended = true
		})
	})
	<-began
	core.Close()
	if !ended {
		t.Error("Close has not waited")
	}
}
