package evloop

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"flag"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// onEveryCore runs a test over the system's poller and over the portable backend.
func onEveryCore(t *testing.T, f func(t *testing.T, core *Core)) {
	for name, portable := range map[string]bool{"native": false, "portable": true} {
		t.Run(name, func(t *testing.T) {
			core, err := New(Config{Portable: portable, Loops: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer core.Close()
			f(t, core)
		})
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

func TestEcho(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		closed := make(chan error, 100)
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			c.SetHandler(&echo{c: c, closed: func(err error) { closed <- err }})
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				nc, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer nc.Close()
				checkEcho(t, nc, 3<<20)
			}()
		}
		wg.Wait()
		for range 10 {
			if err := <-closed; err != nil {
				t.Errorf("orderly end reported as %v", err)
			}
		}
	})
}

// checkEcho sends n bytes and an end of stream, and wants them back.
func checkEcho(t *testing.T, nc net.Conn, n int) {
	t.Helper()
	data := make([]byte, n)
	rand.Read(data)
	go func() {
		nc.Write(data)
		nc.(interface{ CloseWrite() error }).CloseWrite()
	}()
	nc.SetReadDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(nc)
	if err != nil {
		t.Errorf("after %d of %d bytes: %v", len(got), n, err)
	} else if sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d bytes sent, %d others came back", n, len(got))
	}
}

func TestEchoTLS(t *testing.T) {
	cert := testCertificate(t)
	onEveryCore(t, func(t *testing.T, core *Core) {
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			c.PeekClientHello(func(sni string, alpn []string, err error) {
				if err != nil || sni != "relay.test" {
					t.Errorf("client hello: name %q: %v", sni, err)
				}
				c.StartTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, false, 10*time.Second, func(err error) {
					if err != nil {
						t.Error(err)
						return
					}
					c.SetHandler(&echo{c: c})
				})
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			var wg sync.WaitGroup
			for range 5 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: rootsOf(cert), ServerName: "relay.test", MaxVersion: version})
					if err != nil {
						t.Error(err)
						return
					}
					defer nc.Close()
					checkEcho(t, nc, 3<<20)
				}()
			}
			wg.Wait()
		}
	})
}

// TestDialTLS runs both ends on loops.
func TestDialTLS(t *testing.T) {
	cert := testCertificate(t)
	onEveryCore(t, func(t *testing.T, core *Core) {
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			c.StartTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, false, 10*time.Second, func(err error) {
				if err != nil {
					t.Error(err)
					return
				}
				c.SetHandler(&echo{c: c})
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 1<<20)
		rand.Read(want)
		got := make(chan []byte)
		l := core.Loop(0)
		l.Post(func() {
			l.Dial(t.Context(), "tcp", ln.Addr().String(), func(c *Conn, err error) {
				if err != nil {
					t.Error(err)
					close(got)
					return
				}
				c.StartTLS(&tls.Config{RootCAs: rootsOf(cert), ServerName: "relay.test"}, true, 10*time.Second, func(err error) {
					if err != nil {
						t.Error(err)
						close(got)
						return
					}
					c.SetHandler(&collect{done: func(b []byte) { got <- b; c.Close() }})
					c.Write(want)
					c.CloseWrite()
				})
			})
		})
		if !bytes.Equal(<-got, want) {
			t.Error("echo differs")
		}
	})
}

// collect gathers input up to the end of stream.
type collect struct {
	b    []byte
	done func([]byte)
}

func (r *collect) OnData(b []byte) int { r.b = append(r.b, b...); return len(b) }
func (r *collect) OnEOF()              { r.done(r.b) }
func (r *collect) OnDrain()            {}
func (r *collect) OnClose(error)       {}

func TestDialRefused(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		ln, _ := net.Listen("tcp", "127.0.0.1:0")
		addr := ln.Addr().String()
		ln.Close()
		got := make(chan error)
		l := core.Loop(0)
		l.Post(func() {
			l.Dial(t.Context(), "tcp", addr, func(c *Conn, err error) { got <- err })
		})
		if err := <-got; err == nil {
			t.Error("dial of a closed port succeeded")
		}
	})
}
