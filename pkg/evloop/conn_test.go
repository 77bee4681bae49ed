package evloop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestEcho(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		closed := make(chan error, 10)
		ln, err := core.Listen("tcp", "127.0.0.1:0", accepted(core, func(c *Conn) {
			c.SetHandler(&echo{c: c, closed: func(err error) { closed <- err }})
		}))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 10 {
			nc := dial(t, ln.Addr().String())
			wg.Go(func() { checkEcho(t, nc, 1<<20) })
		}
		wg.Wait()
		for range 10 {
			if err := <-closed; err != nil {
				t.Errorf("orderly end reported as %v", err)
			}
		}
	})
}

// record is a Handler that writes down what it is told.
type record struct {
	events
	log   []string
	ended chan []string
}

func newRecord() *record {
	r := &record{ended: make(chan []string, 1)}
	r.data = func(b []byte) int { r.log = append(r.log, "data "+string(b)); return len(b) }
	r.eof = func() { r.log = append(r.log, "eof") }
	r.drain = func() { r.log = append(r.log, "drain") }
	r.closed = func(err error) { r.log = append(r.log, fmt.Sprint("close ", err)); r.ended <- r.log }
	return r
}

// TestHalfClose ends one direction, then the other, from either side first.
func TestHalfClose(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		want := []string{"data question", "eof", "close <nil>"}
		t.Run("peer first", func(t *testing.T) {
			r := newRecord()
			nc := peer(t, core, func(c *Conn) {
				r.eof = func() {
					r.log = append(r.log, "eof")
					c.Loop().Post(func() { // long after
						c.Write([]byte("answer"))
						c.CloseWrite()
						c.Write([]byte("too late"))
					})
				}
				c.SetHandler(r)
			})
			io.WriteString(nc, "question")
			nc.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(nc); string(got) != "answer" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			if got := <-r.ended; !reflect.DeepEqual(got, want) {
				t.Errorf("handler heard %q", got)
			}
		})
		t.Run("we first", func(t *testing.T) {
			r := newRecord()
			nc := peer(t, core, func(c *Conn) {
				c.SetHandler(r)
				c.Write([]byte("answer"))
				c.CloseWrite()
			})
			if got, err := io.ReadAll(nc); string(got) != "answer" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			io.WriteString(nc, "question")
			nc.(*net.TCPConn).CloseWrite()
			if got := <-r.ended; !reflect.DeepEqual(got, want) {
				t.Errorf("handler heard %q", got)
			}
		})
	})
}

// TestKeptInput shows when what a handler did not use is presented again.
func TestKeptInput(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		saw := make(chan string, 10)
		var c *Conn
		accepted := make(chan struct{})
		handler := func(name string, used int) Handler {
			return &events{data: func(b []byte) int { saw <- name + string(b); return min(used, len(b)) }, eof: func() { saw <- name + "EOF" }}
		}
		nc := peer(t, core, func(nc *Conn) {
			c = nc
			c.SetHandler(handler("1:", 1))
			close(accepted)
		})
		<-accepted
		l := core.Loop(0)
		want := func(s string) {
			t.Helper()
			if got := <-saw; got != s {
				t.Fatalf("handler saw %q, want %q", got, s)
			}
		}
		io.WriteString(nc, "abc")
		want("1:abc")
		io.WriteString(nc, "d")
		want("1:bcd")
		run(l, func() { c.SetHandler(handler("2:", 0)) })
		want("2:cd")
		run(l, func() { c.Pause(); c.Resume() })
		want("2:cd")
		run(l, func() { c.Pause(); c.SetHandler(handler("3:", 1)) })
		io.WriteString(nc, "e")
		run(l, func() { c.Resume() })
		if got := <-saw; got == "3:cd" { // then "e" comes behind it
			want("3:de")
		} else if got != "3:cde" {
			t.Fatalf("after a pause the handler saw %q", got)
		}
		run(l, func() { c.SetHandler(handler("4:", 0)) })
		if got := <-saw; got != "4:de" && got != "4:e" {
			t.Fatalf("the last handler saw %q", got)
		}
		nc.(*net.TCPConn).CloseWrite() // what is kept does not delay the end of stream
		want("4:EOF")
	})
}

// TestKeptInputLimit fills what is kept up to its limit, then one byte more.
func TestKeptInputLimit(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		full, ended := make(chan struct{}), make(chan error, 1)
		nc := peer(t, core, func(c *Conn) {
			c.SetHandler(&events{
				data: func(b []byte) int {
					if len(b) == MaxKept {
						close(full)
					}
					return 0
				},
				closed: func(err error) { ended <- err },
			})
		})
		nc.Write(make([]byte, MaxKept))
		<-full
		nc.Write([]byte{0})
		if err := <-ended; err != ErrInputTooLong {
			t.Errorf("OnClose(%v)", err)
		}
	})
}

// TestPausedKeep pauses in the middle of large reads, plain and TLS: nothing is lost, and the limit does not apply.
func TestPausedKeep(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		for _, secure := range []bool{false, true} {
			got := make(chan []byte, 1)
			var all []byte
			handler := func(c *Conn) Handler {
				return &events{
					data: func(b []byte) int {
						n := min(len(b), 10_000)
						all = append(all, b[:n]...)
						c.Pause()
						c.Loop().Post(c.Resume)
						return n
					},
					eof: func() { got <- all },
				}
			}
			data := randomBytes(2 << 20)
			var w io.WriteCloser
			if secure {
				w = tlsPeer(t, core, handler, nil)
			} else {
				w = peer(t, core, func(c *Conn) { c.SetHandler(handler(c)) })
			}
			go func() {
				w.Write(data)
				w.Close()
			}()
			if !bytes.Equal(<-got, data) {
				t.Error("input differs")
			}
		}
	})
}

// splice couples two connections as a relay does.
type splice struct {
	from, to *Conn
	max      *int // of to's queue
	paused   chan struct{}
}

func (s *splice) OnData(b []byte) int {
	s.to.Write(b)
	*s.max = max(*s.max, s.to.Pending())
	if s.to.Pending() > s.to.HighMark() {
		s.from.Pause()
		select {
		case s.paused <- struct{}{}:
		default:
		}
	}
	return len(b)
}
func (s *splice) OnEOF()        { s.to.CloseWrite() }
func (s *splice) OnDrain()      { s.to.Resume() } // the other splice reads from to
func (s *splice) OnClose(error) {}

// spliced is the other direction: its drain resumes the source.
type spliced struct {
	events
	source *Conn
}

func (s *spliced) OnDrain() { s.source.Resume() }

// TestBackpressure relays to a reader that does not read: the source stops, the queue is bounded, a neighbour on the
// same loop is served, and nothing is lost in the end.
func TestBackpressure(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		const size = 24 << 20
		var a, b *Conn
		var most int
		paused := make(chan struct{}, 1)
		ready := make(chan struct{}, 2)
		slow := peer(t, core, func(c *Conn) { b = c; ready <- struct{}{} })
		<-ready
		source := peer(t, core, func(c *Conn) {
			a = c
			a.SetHandler(&splice{from: a, to: b, max: &most, paused: paused})
			b.SetHandler(&spliced{source: a})
			ready <- struct{}{}
		})
		<-ready
		data := randomBytes(size)
		go func() {
			source.Write(data)
			source.(*net.TCPConn).CloseWrite()
		}()
		<-paused
		neighbour := peer(t, core, func(c *Conn) { c.SetHandler(&echo{c: c}) })
		checkEcho(t, neighbour, 100<<10)
		got, err := io.ReadAll(slow)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes arrived: %v", len(got), size, err)
		}
		run(core.Loop(0), func() {
			if limit := b.HighMark() + bulkSize + MaxKept; most > limit {
				t.Errorf("the queue grew to %d bytes, limit %d", most, limit)
			}
		})
	})
}

// TestStalledReaders has many peers that ask for more than they read.
func TestStalledReaders(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		const n = 1000
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		l := core.Loop(0)
		var conns []*Conn
		chunk := make([]byte, 16<<10)
		for range n {
			dial(t, ln.Addr().String()).(*net.TCPConn).SetReadBuffer(4 << 10)
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			nc.(*net.TCPConn).SetWriteBuffer(16 << 10) // or a thousand of them fill the system's memory for TCP
			run(l, func() {
				c, err := l.Attach(nc)
				if err != nil {
					t.Error(err)
					return
				}
				conns = append(conns, c)
				fill := func() {
					for c.Pending() <= c.HighMark() {
						c.Write(chunk)
					}
				}
				c.SetHandler(&events{drain: fill})
				fill()
			})
		}
		run(l, func() {
			sum := 0
			for _, c := range conns {
				if c.Pending() == 0 {
					t.Error("a reader that stalls has taken everything")
				}
				sum += cap(c.out)
			}
			if limit := n * 128 << 10; sum > limit {
				t.Errorf("%d stalled readers hold %d bytes, limit %d", n, sum, limit)
			}
		})
	})
}

// TestClose flushes what is queued to a reader that takes its time.
func TestClose(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		data := randomBytes(8 << 20)
		ended := make(chan error, 1)
		nc := peer(t, core, func(c *Conn) {
			c.SetHandler(&events{closed: func(err error) { ended <- err }})
			c.Write(data)
			c.Close()
			c.Write([]byte("too late"))
		})
		nc.Write([]byte("what we send is discarded"))
		var got []byte
		b := make([]byte, 10_000)
		for {
			n, err := nc.Read(b)
			got = append(got, b[:n]...)
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes arrived", len(got), len(data))
		}
		nc.Close()
		if err := <-ended; err != nil {
			t.Errorf("OnClose(%v)", err)
		}
	})
}

// halfPipe is a net.Pipe end that claims to half-close.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// TestLinger closes towards peers that do not read, or do not close.
func TestLinger(t *testing.T) {
	for _, test := range []struct {
		name  string
		reads bool
		half  bool
		took  time.Duration
		want  error
	}{
		{"reads not", false, true, lingerTime, ErrNotFlushed},
		{"closes not", true, true, lingerTime, nil},
		{"cannot half-close", true, false, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, l *Loop) {
				a, b := net.Pipe()
				defer a.Close()
				if test.half {
					b = halfPipe{b}
				}
				ended := make(chan error, 1)
				start := time.Now()
				run(l, func() {
					c, _ := l.Attach(b)
					c.SetHandler(&events{closed: func(err error) { ended <- err }})
					c.Write(make([]byte, 200<<10))
					c.Close()
				})
				if test.reads {
					io.ReadFull(a, make([]byte, 200<<10))
				}
				err := <-ended
				if took := time.Since(start); err != test.want || took < test.took || took > test.took+2*tick {
					t.Errorf("OnClose(%v) after %v, want %v after %v", err, took, test.want, test.took)
				}
			})
		})
	}
}

func TestAbort(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		boom := errors.New("boom")
		ended := make(chan error, 1)
		nc := peer(t, core, func(c *Conn) {
			c.SetHandler(&events{
				data:   func(b []byte) int { c.Abort(boom); return 0 },
				eof:    func() { t.Error("OnEOF after Abort") },
				closed: func(err error) { ended <- err },
			})
		})
		io.WriteString(nc, "x")
		if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("peer of an aborted connection read %v", err)
		}
		if err := <-ended; err != boom {
			t.Errorf("OnClose(%v)", err)
		}
	})
}

// TestInCallbacks does everything that ends or hands over a connection in each of its callbacks: OnClose comes once,
// and last, or not at all after Detach.
func TestInCallbacks(t *testing.T) {
	actions := map[string]func(c *Conn, core *Core, over func(string)){
		"Close":        func(c *Conn, _ *Core, _ func(string)) { c.Close() },
		"Abort":        func(c *Conn, _ *Core, _ func(string)) { c.Abort(nil) },
		"Close, Abort": func(c *Conn, _ *Core, _ func(string)) { c.Close(); c.Abort(nil); c.Resume() },
		"CloseWrite":   func(c *Conn, _ *Core, _ func(string)) { c.CloseWrite(); c.Pause(); c.Resume() },
		"Detach": func(c *Conn, _ *Core, over func(string)) {
			c.Detach(func(nc net.Conn, err error) {
				if err != nil {
					over(err.Error())
					return
				}
				nc.Close()
				over("detached")
			})
		},
		"Move": func(c *Conn, core *Core, _ func(string)) {
			c.Move(core.Loop(1), func() {
				if c.Loop() != core.Loop(1) {
					panic("moved elsewhere")
				}
				c.Move(core.Loop(0), func() { c.Close() })
			})
		},
		"Move, Abort": func(c *Conn, core *Core, _ func(string)) { c.Move(core.Loop(1), func() {}); c.Abort(nil) },
		"Move, Close": func(c *Conn, core *Core, _ func(string)) { c.Move(core.Loop(1), func() {}); c.Close() },
		"Close, Move": func(c *Conn, core *Core, _ func(string)) { c.Close(); c.Move(core.Loop(1), func() {}) },
		"Detach, Abort": func(c *Conn, _ *Core, over func(string)) {
			c.Detach(func(nc net.Conn, err error) {
				if err == nil {
					nc.Close()
					over("detached")
				}
			})
			c.Abort(nil)
		},
	}
	onEveryCore(t, func(t *testing.T, core *Core) {
		for name, action := range actions {
			for _, where := range []string{"data", "eof", "drain", "timer", "after"} {
				if (where == "timer" || where == "after") && (name == "Move, Abort" || name == "Move, Close" || name == "Detach, Abort") {
					continue // it has left already
				}
				t.Run(name+" in "+where, func(t *testing.T) {
					over := make(chan string, 10)
					nc := peer(t, core, func(c *Conn) {
						acted := false
						act := func(at string) {
							if at == where && !acted {
								acted = true
								action(c, core, func(s string) { over <- s })
							}
						}
						c.SetHandler(&events{
							data: func(b []byte) int {
								if where == "drain" {
									c.Write(make([]byte, 8<<20))
								}
								act("data")
								if where == "after" {
									c.Loop().AfterTurn(func() { act("after") })
								}
								if where == "timer" {
									c.Loop().Arm(new(Timer), time.Millisecond, func() { act("timer") })
								}
								return len(b) / 2
							},
							eof:    func() { act("eof"); c.CloseWrite() },
							drain:  func() { act("drain") },
							closed: func(error) { over <- "closed" },
						})
					})
					io.WriteString(nc, "hello")
					if where != "timer" && where != "after" {
						nc.(*net.TCPConn).CloseWrite()
					}
					io.Copy(io.Discard, nc)
					nc.Close()
					<-over
					for i := range 2 {
						run(core.Loop(i), func() {})
					}
					if len(over) > 0 {
						t.Errorf("ended twice: %q", <-over)
					}
				})
			}
		}
	})
}

// TestMove echoes while the connection goes from loop to loop.
func TestMove(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		const peers = 4
		ended := make(chan struct{}, 2*peers)
		wander := func(c *Conn) Handler {
			n := 0
			e := &echo{c: c}
			h := &events{
				data: func(b []byte) int {
					if n++; n%3 == 0 {
						to := core.Loop(1)
						if c.Loop() == to {
							to = core.Loop(0)
						}
						c.Move(to, func() {
							if c.Loop() != to {
								t.Error("moved elsewhere")
							}
						})
						return e.OnData(b[:len(b)/2])
					}
					return e.OnData(b)
				},
				eof:   e.OnEOF,
				drain: e.OnDrain,
				closed: func(err error) {
					if err != nil {
						t.Errorf("OnClose(%v)", err)
					}
					ended <- struct{}{}
				},
			}
			return h
		}
		var wg sync.WaitGroup
		for range peers {
			nc := peer(t, core, func(c *Conn) { c.SetHandler(wander(c)) })
			wg.Go(func() { checkEcho(t, nc, 1<<20) })
			tc := tlsPeer(t, core, wander, nil)
			wg.Go(func() { checkEcho(t, tc, 1<<20) })
		}
		wg.Wait()
		for range 2 * peers { // the clients have their end before the handlers do
			<-ended
		}
	})
}

// TestStress lets connections of many clients do everything at random: each ends once, and never sees a byte of
// another.
func TestStress(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		const clients, rounds = 20, 25
		var mu sync.Mutex
		changed := sync.NewCond(&mu)
		var opened, ended int
		ln, err := core.Listen("tcp", "127.0.0.1:0", accepted(core, func(c *Conn) {
			mu.Lock()
			opened++
			mu.Unlock()
			end := sync.OnceFunc(func() {
				mu.Lock()
				ended++
				mu.Unlock()
				changed.Signal()
			})
			var id byte
			var closed bool
			h := new(events)
			h.data = func(b []byte) int {
				if closed {
					t.Error("OnData after OnClose")
				}
				if id == 0 {
					id = b[0]
				}
				for _, x := range b {
					if x != id {
						t.Errorf("connection %d got a byte of %d", id, x)
						break
					}
				}
				c.Write(b)
				switch rand.IntN(12) {
				case 0:
					c.Close()
				case 1:
					c.Abort(nil)
				case 2:
					c.Detach(func(nc net.Conn, err error) {
						if err == nil {
							nc.Close()
						}
						end()
					})
				case 3, 4:
					c.Pause()
					c.Loop().Post(c.Resume)
				case 5, 6:
					l := c.Loop()
					c.Move(core.Loop(rand.IntN(2)), func() {
						if c.Loop() == l && rand.IntN(2) == 0 {
							c.Abort(nil)
						}
					})
				case 7:
					c.CloseWrite()
				case 8:
					return len(b) / 2
				}
				return len(b)
			}
			h.eof = func() { c.CloseWrite() }
			h.closed = func(error) {
				if closed {
					t.Error("OnClose came twice")
				}
				closed = true
				end()
			}
			c.SetHandler(h)
		}))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				for range rounds {
					nc, err := net.Dial("tcp", ln.Addr().String())
					if err != nil {
						t.Error(err)
						return
					}
					nc.SetDeadline(time.Now().Add(time.Minute))
					id := byte(i + 1)
					go func() {
						for range 20 {
							if _, err := nc.Write(bytes.Repeat([]byte{id}, 1+rand.IntN(20_000))); err != nil {
								break
							}
						}
						nc.(*net.TCPConn).CloseWrite()
					}()
					b := make([]byte, 32<<10)
					for {
						n, err := nc.Read(b)
						for _, x := range b[:n] {
							if x != id {
								t.Errorf("client %d got a byte of %d", id, x)
								break
							}
						}
						if err != nil {
							break
						}
					}
					nc.Close()
				}
			})
		}
		wg.Wait()
		mu.Lock()
		for ended < opened { // all end without help
			changed.Wait()
		}
		mu.Unlock()
		core.Close() // a client that gave up early may still have been in the backlog
		if opened == 0 || opened != ended {
			t.Errorf("%d connections began, %d ended", opened, ended)
		}
	})
}

// TestCoreClose closes a core with everything under way.
func TestCoreClose(t *testing.T) {
	for _, portable := range []bool{false, true} {
		core, err := New(Config{Portable: portable, Loops: 2})
		if err != nil {
			t.Fatal(err)
		}
		var began, ended atomic.Int32
		accepted := make(chan struct{}, 60)
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			began.Add(1)
			h := &events{closed: func(err error) {
				ended.Add(1)
				c.Loop().Post(func() {})
				c.Loop().Dial(t.Context(), "tcp", "127.0.0.1:1", func(c *Conn, err error) {
					if err == nil {
						t.Error("dialed in a core that is closed")
					}
				})
			}}
			c.SetHandler(h)
			switch began.Load() % 3 {
			case 0:
				c.StartTLS(serverConfig(t), false, time.Minute, func(error) {})
			case 1:
				c.Write(make([]byte, 8<<20))
				c.Close()
			}
			accepted <- struct{}{}
		})
		if err != nil {
			t.Fatal(err)
		}
		hello := clientHello(t)
		for range 30 {
			nc := dial(t, ln.Addr().String())
			nc.Write(hello)
		}
		for range 30 {
			<-accepted
		}
		core.Close()
		if began.Load() != ended.Load() {
			t.Errorf("%d connections began, %d were told of the end", began.Load(), ended.Load())
		}
	}
}

// TestLastTurn has something to do after the end of the last connection.
func TestLastTurn(t *testing.T) {
	for _, portable := range []bool{false, true} {
		core, err := New(Config{Portable: portable, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan struct{})
		done := false
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			c.SetHandler(&events{closed: func(error) { c.Loop().AfterTurn(func() { done = true }) }})
			close(accepted)
		})
		if err != nil {
			t.Fatal(err)
		}
		dial(t, ln.Addr().String())
		<-accepted
		core.Close()
		if !done {
			t.Errorf("portable %v: the last turn had no end", portable)
		}
	}
}

// TestAttachPipe drives a net.Conn that has no descriptor.
func TestAttachPipe(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		a, b := net.Pipe()
		var c *Conn
		run(l, func() {
			c, _ = l.Attach(b)
			c.SetHandler(&echo{c: c})
		})
		for range 3 {
			ask(t, a, "hello", "hello")
		}
		a.Close()
		synctest.Wait()
		run(l, func() {
			if c.flags&isDead != 0 {
				return
			}
			c.Abort(nil)
		})
	})
}
