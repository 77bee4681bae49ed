package evloop

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unsafe"
)

var certificate = sync.OnceValue(newCertificate)

func serverConfig(testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate()}, DynamicRecordSizingDisabled: true}
}

func clientConfig() *tls.Config {
	return &tls.Config{RootCAs: rootsOf(certificate()), ServerName: "relay.test"}
}

// tlsPeer connects to a TLS server on the core's first loop whose handler is made by handler.
func tlsPeer(t testing.TB, core *Core, handler func(*Conn) Handler, cfg *tls.Config) *tls.Conn {
	t.Helper()
	if cfg == nil {
		cfg = clientConfig()
	}
	server := serverConfig(t)
	nc := peer(t, core, func(c *Conn) {
		c.StartTLS(server, false, 30*time.Second, func(err error) {
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(handler(c))
		})
	})
	tc := tls.Client(nc, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// recorder keeps what is written to it.
type recorder struct {
	net.Conn
	b []byte
}

func (r *recorder) Write(b []byte) (int, error)      { r.b = append(r.b, b...); return len(b), nil }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Close() error                     { return nil }

// clientHello returns the first message of a client.
func clientHello(testing.TB) []byte {
	var r recorder
	tls.Client(&r, clientConfig()).Handshake()
	return r.b
}

// shakeHands does a handshake over a wire in a bubble. The client's stream is cut as the wire says.
func shakeHands(t *testing.T, l *Loop, w *wire, cfg *tls.Config, handler func(c *Conn) Handler) *tls.Conn {
	t.Helper()
	server := serverConfig(t)
	run(l, func() {
		c := w.attach(l)
		c.StartTLS(server, false, 10*time.Second, func(err error) {
			if err != nil {
				t.Errorf("handshake: %v", err)
				return
			}
			c.SetHandler(handler(c))
		})
	})
	tc := tls.Client(wireConn{w}, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// exchange does a handshake, some data both ways and an orderly end over w. It returns how long the client's stream is.
func exchange(t *testing.T, l *Loop, w *wire, version uint16, size int) int {
	t.Helper()
	cfg := clientConfig()
	cfg.MaxVersion = version
	cfg.CurvePreferences = []tls.CurveID{tls.X25519} // a short ClientHello has fewer places to be cut
	ended := make(chan error, 1)
	tc := shakeHands(t, l, w, cfg, func(c *Conn) Handler {
		return &echo{c: c, closed: func(err error) { ended <- err }}
	})
	data := randomBytes(size)
	for _, part := range [][]byte{data[:size/3], data[size/3:]} {
		tc.Write(part)
	}
	tc.CloseWrite()
	got, err := io.ReadAll(tc)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back: %v", len(got), size, err)
	}
	tc.Close()
	if err := <-ended; err != nil {
		t.Fatalf("OnClose(%v)", err)
	}
	return w.read
}

// TestSegments cuts the stream of a handshake, data and the end at each place, and in many ways.
func TestSegments(t *testing.T) {
	step := 1
	if raceEnabled || testing.Short() {
		step = 13
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, l *Loop) {
				total := exchange(t, l, newWire(), version, 100)
				for at := 1; at < total+8; at += step {
					w := newWire()
					w.cut = cutAt(at)
					exchange(t, l, w, version, 100)
				}
				w := newWire()
				w.cut = cutEvery(func() int { return 1 })
				exchange(t, l, w, version, 3000)
				for range 40 {
					w := newWire()
					limit := 1 << rand.IntN(14)
					w.cut = cutEvery(func() int { return 1 + rand.IntN(limit) })
					exchange(t, l, w, version, min(40_000, 4000*limit))
				}
			})
		})
	}
}

// script is what a client sends by hand after the handshake, and what the handler should hear of it.
type script struct {
	records []byte
	want    string
}

// play does a TLS 1.3 handshake on w and returns a maker of records and the client to read answers with.
func play(t *testing.T, l *Loop, w *wire, handler func(c *Conn) Handler) (*sealer, *tls.Conn) {
	t.Helper()
	keys := make(keyLog)
	cfg := clientConfig()
	cfg.KeyLogWriter = keys
	cfg.CurvePreferences = []tls.CurveID{tls.X25519}
	tc := shakeHands(t, l, w, cfg, handler)
	if s := tc.ConnectionState(); s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("this system prefers %s; the records are made for AES-128-GCM", tls.CipherSuiteName(s.CipherSuite))
	}
	return newSealer(keys["CLIENT_TRAFFIC_SECRET_0"]), tc
}

func everything(s *sealer) script {
	var x script
	add := func(b []byte, want string) {
		x.records = append(x.records, b...)
		x.want += want
	}
	add(s.data("one "), "one ")
	add(s.record(typeData, []byte("padded "), 70), "padded ")
	add(s.data(""), "")
	add(s.record(typeData, nil, 30), "")
	add(s.keyUpdate(false), "")
	add(s.data("two "), "two ")
	add(s.keyUpdate(true), "")
	add(s.data("three "), "three ")
	add(s.keyUpdate(true, 2), "")
	add(s.data("four "), "four ")
	add(s.keyUpdate(false, 1, 3), "")
	add(s.alert(90), "") // user_canceled
	add(s.data("last"), "last")
	add(s.alert(0), "") // close_notify
	add(s.data("ignored"), "")
	return x
}

// TestRecords sends every kind of record a client may send, cut at each place: data, padding, empty records, KeyUpdate
// whole and in pieces, alerts. The answers come under our own new keys.
func TestRecords(t *testing.T) {
	step := 1
	if raceEnabled || testing.Short() {
		step = 11
	}
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		for at := 0; ; at += step {
			w := newWire()
			ended := make(chan error, 1)
			s, tc := play(t, l, w, func(c *Conn) Handler {
				return &echo{c: c, closed: func(err error) { ended <- err }}
			})
			x := everything(s)
			if at >= len(x.records) {
				tc.Close()
				<-ended // the client's handshake is over before the server's
				break
			}
			w.cut = cutAt(at)
			wireConn{w}.Write(x.records)
			got, err := io.ReadAll(tc)
			if err != nil || string(got) != x.want {
				t.Fatalf("cut at %d: got %q, %v", at, got, err)
			}
			wireConn{w}.Close()
			if err := <-ended; err != nil {
				t.Fatalf("cut at %d: OnClose(%v)", at, err)
			}
		}
		w := newWire()
		s, tc := play(t, l, w, func(c *Conn) Handler { return &echo{c: c} })
		x := everything(s)
		w.cut = cutEvery(func() int { return 1 })
		wireConn{w}.Write(x.records)
		if got, err := io.ReadAll(tc); err != nil || string(got) != x.want {
			t.Errorf("byte by byte: got %q, %v", got, err)
		}
		wireConn{w}.Close()
	})
}

// TestExpectCloseNotify ends the stream between two records, with the end of TLS and without.
func TestExpectCloseNotify(t *testing.T) {
	for name, x := range map[string]struct {
		expect, notify bool
		want           []string
	}{
		"told":               {true, true, []string{"half", "eof", "close <nil>"}},
		"cut":                {true, false, []string{"half", "close unexpected EOF"}},
		"cut, as many peers": {false, false, []string{"half", "eof", "close <nil>"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, l *Loop) {
				w := newWire()
				var log []string
				ended := make(chan bool)
				tc := shakeHands(t, l, w, clientConfig(), func(c *Conn) Handler {
					if x.expect {
						c.ExpectCloseNotify()
					}
					return &events{
						data:   func(b []byte) int { log = append(log, string(b)); return len(b) },
						eof:    func() { log = append(log, "eof"); c.Close() },
						closed: func(err error) { log = append(log, fmt.Sprint("close ", err)); close(ended) },
					}
				})
				tc.Write([]byte("half"))
				if x.notify {
					tc.CloseWrite()
				}
				wireConn{w}.Close()
				<-ended
				wantLog(t, log, x.want...)
			})
		})
	}
}

// TestFlippedBit changes one bit: what is before it arrives, nothing after it, and the peer gets an alert.
func TestFlippedBit(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		for range 60 {
			w := newWire()
			var got []byte
			ended := make(chan error, 1)
			s, tc := play(t, l, w, func(c *Conn) Handler {
				return &events{
					data:   func(b []byte) int { got = append(got, b...); return len(b) },
					eof:    func() { c.CloseWrite() },
					closed: func(err error) { ended <- err },
				}
			})
			var b []byte
			for i := range 20 {
				b = append(b, s.data(string(rune('a'+i)))...)
			}
			const length = 5 + 1 + 1 + 16
			at := rand.IntN(len(b))
			b[at] ^= 1 << rand.IntN(8)
			w.cut = cutEvery(func() int { return 1 + rand.IntN(50) })
			wireConn{w}.Write(b)
			wireConn{w}.CloseWrite()
			_, alert := io.ReadAll(tc)
			err := <-ended
			if want := "abcdefghijklmnopqrst"[:at/length]; err == nil || string(got) != want {
				t.Errorf("bit flipped in byte %d: handler got %q, want %q, then OnClose(%v)", at, got, want, err)
			}
			if at%length >= 5 && alert == nil {
				t.Errorf("bit flipped in byte %d: no alert", at)
			}
		}
	})
}

// TestKeyUpdateFlood has a peer that asks for new keys and never reads: our answers are bounded by not reading it.
func TestKeyUpdateFlood(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		w := newWire()
		var c *Conn
		s, tc := play(t, l, w, func(conn *Conn) Handler { c = conn; return new(events) })
		w.mu.Lock()
		w.full = true
		w.mu.Unlock()
		sent := 0
		for range 25_000 {
			b := append(s.keyUpdate(true), s.data("x")...)
			sent += len(b)
			wireConn{w}.Write(b)
		}
		synctest.Wait()
		run(l, func() {
			if limit := c.HighMark() + hardMark + bulkSize; c.Pending() > limit {
				t.Errorf("%d bytes of answers wait, limit %d", c.Pending(), limit)
			}
		})
		if w.read > sent*9/10 {
			t.Errorf("read %d of %d bytes of a peer that does not read", w.read, sent)
		}
		w.mu.Lock()
		w.full = false
		w.tell()
		w.mu.Unlock()
		synctest.Wait()
		if len(w.in) > 0 {
			t.Error("reading did not go on when the peer took the answers")
		}
		wireConn{w}.Close()
		tc.Close()
	})
}

// recordBuffers returns how many bytes the buffers hold that sweeps free.
func recordBuffers(t *tlsConn) (n int) {
	for _, o := range idleBuffers() {
		n += (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t.tc), o)).Cap()
	}
	return n
}

// TestIdleBuffers lets sweeps pass at every place where they might hurt: between records, in a record, in a handshake
// message; and sees that they free something, each time.
func TestIdleBuffers(t *testing.T) {
	if idleBuffers() == nil {
		t.Fatal("crypto/tls has changed: the record buffers of idle connections are not freed any more")
	}
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		w := newWire()
		var c *Conn
		s, tc := play(t, l, w, func(conn *Conn) Handler { c = conn; return &echo{c: conn} })
		for range 3 {
			big := strings.Repeat("x", 16000)
			wireConn{w}.Write(s.data(big))
			if _, err := io.ReadFull(tc, make([]byte, len(big))); err != nil {
				t.Fatal(err)
			}
			run(l, func() {
				if recordBuffers(c.tls) == 0 {
					t.Error("no record buffer after a record")
				}
			})
			time.Sleep(3 * sweepTime)
			run(l, func() {
				if n := recordBuffers(c.tls); n != 0 || l.warm.Len() != 0 {
					t.Errorf("an idle connection holds %d bytes of buffers, %d are warm", n, l.warm.Len())
				}
			})
		}
		record := s.data("half")
		for i := range record {
			wireConn{w}.Write(record[i : i+1])
			time.Sleep(3 * sweepTime)
		}
		ask(t, tc, "", "half")
		b := append(s.keyUpdate(true, 2), s.data("keys")...)
		wireConn{w}.Write(b[:5+2+1+16])
		time.Sleep(3 * sweepTime)
		wireConn{w}.Write(b[5+2+1+16:])
		ask(t, tc, "", "keys")
		wireConn{w}.Close()
		tc.Close()
	})
}

func TestHandshakeRefused(t *testing.T) {
	hello := clientHello(t)
	for name, test := range map[string]struct {
		send string
		eof  bool
		took time.Duration
	}{
		"http":             {"GET / HTTP/1.1\r\n\r\n", false, 0},
		"no hello":         {"\x16\x03\x01\x00\x04\x02\x00\x00\x00", false, 0},
		"too long":         {"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00", false, 0},
		"no record":        {"\x16\x03\x01\xff\xff", false, 0},
		"empty record":     {"\x16\x03\x01\x00\x00", false, 0},
		"end":              {"", true, 0},
		"part and end":     {string(hello[:100]), true, 0},
		"silence":          {"", false, 10 * time.Second},
		"part of it":       {string(hello[:100]), false, 10 * time.Second},
		"hello":            {string(hello), false, 10 * time.Second},
		"hello, then end":  {string(hello), true, 0},
		"hello, then junk": {string(hello) + "junk that is no record", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, l *Loop) {
				w := newWire()
				w.cut = cutEvery(func() int { return 7 })
				start := time.Now()
				done := make(chan error, 1)
				ended := make(chan error, 1)
				server := serverConfig(t)
				run(l, func() {
					c := w.attach(l)
					c.SetHandler(&events{closed: func(err error) { ended <- err }})
					c.PeekClientHello(func(sni string, _ []string, err error) {
						if err == nil && sni != "relay.test" {
							t.Errorf("name %q", sni)
						}
						c.StartTLS(server, false, 10*time.Second, func(err error) { done <- err })
					})
					var timer Timer
					if test.took > 0 && len(test.send) < len(hello) { // the peek has no end of its own
						l.Arm(&timer, test.took, func() { c.Abort(ErrHandshakeTimeout) })
					}
				})
				wireConn{w}.Write([]byte(test.send))
				if test.eof {
					wireConn{w}.CloseWrite()
				}
				err := <-done
				if took := time.Since(start); err == nil || took < test.took || took > test.took+2*tick {
					t.Errorf("%v after %v", err, took)
				}
				if got := <-ended; got == nil || len(done) > 0 {
					t.Errorf("OnClose(%v) after %v", got, err)
				}
			})
		})
	}
}

// TestHelloInRecords has a ClientHello in many records, and the client's end of stream right behind its data.
func TestHelloInRecords(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		w := newWire()
		first := true
		w.cut = func(b []byte) (all [][]byte) {
			if !first {
				return [][]byte{b}
			}
			first = false
			for b = b[5:]; len(b) > 0; {
				n := min(len(b), 40)
				all = append(all, append([]byte{22, 3, 1, 0, byte(n)}, b[:n]...))
				b = b[n:]
			}
			return all
		}
		exchange(t, l, w, tls.VersionTLS13, 1000)
	})
}

// TestFinishedWithEnd sends the last handshake message, data and the end of stream at once.
func TestFinishedWithEnd(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		w := newWire()
		var held []byte
		hold := false
		w.cut = func(b []byte) [][]byte {
			if !hold {
				hold = true // after the ClientHello
				return [][]byte{b}
			}
			held = append(held, b...)
			return nil
		}
		got := make(chan string, 1)
		server := serverConfig(t)
		run(l, func() {
			c := w.attach(l)
			c.StartTLS(server, false, 10*time.Second, func(err error) {
				if err != nil {
					t.Error(err)
				}
				c.SetHandler(&collect{done: func(b []byte) { got <- string(b); c.Close() }})
			})
		})
		tc := tls.Client(wireConn{w}, clientConfig())
		tc.Write([]byte("all at once"))
		tc.CloseWrite()
		w.mu.Lock()
		w.in = append(w.in, held)
		w.inEOF = true
		w.tell()
		w.mu.Unlock()
		if s := <-got; s != "all at once" {
			t.Errorf("got %q", s)
		}
		tc.Close()
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

// TestEchoTLS uses real sockets.
func TestEchoTLS(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			cfg := clientConfig()
			cfg.MaxVersion = version
			var wg sync.WaitGroup
			for range 5 {
				tc := tlsPeer(t, core, func(c *Conn) Handler { return &echo{c: c} }, cfg)
				wg.Go(func() { checkEcho(t, tc, 1<<20) })
			}
			wg.Wait()
		}
	})
}

// TestDialTLS runs both ends on loops.
func TestDialTLS(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		server, client := serverConfig(t), clientConfig()
		addr := listen(t, core, func(c *Conn) {
			c.StartTLS(server, false, 10*time.Second, func(err error) {
				if err != nil {
					t.Error(err)
					return
				}
				c.SetHandler(&echo{c: c})
			})
		})
		want := randomBytes(256 << 10) // below the hard mark: above it the client would not read, and the echo not take more
		got := make(chan []byte, 1)
		l := core.Loop(1)
		l.Post(func() {
			l.Dial(t.Context(), "tcp", addr, func(c *Conn, err error) {
				if err != nil {
					t.Error(err)
					close(got)
					return
				}
				c.StartTLS(client, true, 10*time.Second, func(err error) {
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

// TestResumption needs session tickets of one connection to be good for the next, on whichever loop.
func TestResumption(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		server := serverConfig(t)
		ln, err := core.Listen("tcp", "127.0.0.1:0", accepted(core, func(c *Conn) {
			c.StartTLS(server, false, 10*time.Second, func(err error) {
				if err == nil {
					c.SetHandler(&echo{c: c})
				}
			})
		}))
		if err != nil {
			t.Fatal(err)
		}
		cfg := clientConfig()
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for i := range 6 {
			tc := tls.Client(dial(t, ln.Addr().String()), cfg)
			ask(t, tc, "x", "x")
			if resumed := tc.ConnectionState().DidResume; resumed != (i > 0) {
				t.Errorf("connection %d: resumed is %v", i, resumed)
			}
			tc.Close()
		}
	})
}

// TestStalledHandshakes has many clients that stop after their ClientHello, or in it.
func TestStalledHandshakes(t *testing.T) {
	core := newCore(t, Config{Handshakes: 500})
	server := serverConfig(t)
	var done atomic.Int32
	addr := listen(t, core, func(c *Conn) {
		c.StartTLS(server, false, time.Minute, func(err error) {
			done.Add(1)
			if err == nil {
				c.SetHandler(&echo{c: c})
			}
		})
	})
	hello := clientHello(t)
	before := runtime.NumGoroutine()
	for range 300 {
		dial(t, addr).Write(hello[:len(hello)-1])
	}
	run(core.Loop(0), func() {})
	if n := runtime.NumGoroutine() - before; n > 50 {
		t.Errorf("300 parts of a ClientHello cost %d goroutines", n)
	}
	oldest := dial(t, addr)
	oldest.Write(hello)
	if _, err := oldest.Read(make([]byte, 1)); err != nil { // the ServerHello
		t.Fatal(err)
	}
	for range 499 {
		nc := dial(t, addr)
		nc.Write(hello)
		nc.Read(make([]byte, 1))
	}
	if n := done.Load(); n > 0 {
		t.Fatalf("%d handshakes ended early", n)
	}
	tc := tls.Client(dial(t, addr), clientConfig())
	start := time.Now()
	ask(t, tc, "x", "x")
	t.Logf("one handshake beside 500 that stall: %v", time.Since(start))
	if _, err := io.Copy(io.Discard, oldest); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the oldest of too many handshakes: %v", err)
	}
	if n := done.Load(); n != 2 {
		t.Errorf("%d handshakes are over, want the oldest and the good one", n)
	}
}

// TestYield has more handshakes wait for a certificate than may compute at a time, and another one beside them.
func TestYield(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		server := serverConfig(t)
		arrived, resume := make(chan struct{}), make(chan struct{})
		server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName == "slow.test" {
				Yield(hello, func() {
					arrived <- struct{}{}
					<-resume
				})
			}
			return nil, nil
		}
		addr := listen(t, core, func(c *Conn) {
			c.StartTLS(server, false, 30*time.Second, func(err error) {
				if err == nil {
					c.SetHandler(&echo{c: c})
				}
			})
		})
		n := 2 * cap(core.hs.active)
		slow := make(chan error, n)
		for range n {
			tc := tls.Client(dial(t, addr), &tls.Config{ServerName: "slow.test", InsecureSkipVerify: true})
			go func() { slow <- tc.Handshake() }()
			<-arrived
		}
		ask(t, tls.Client(dial(t, addr), clientConfig()), "x", "x")
		close(resume)
		for range n {
			if err := <-slow; err != nil {
				t.Error(err)
			}
		}
	})
	ran := false
	if Yield(&tls.ClientHelloInfo{}, func() { ran = true }); !ran {
		t.Error("nothing runs for a handshake elsewhere")
	}
}

// TestLargeTLSWrite writes much at once to a reader that takes its time, more of it than Close gives it.
func TestLargeTLSWrite(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		data := randomBytes(8 << 20)
		tc := tlsPeer(t, core, func(c *Conn) Handler {
			c.Write(data)
			return &events{drain: c.Close}
		}, nil)
		got, err := io.ReadAll(iotest.HalfReader(tc))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes arrived: %v", len(got), len(data), err)
		}
	})
}
