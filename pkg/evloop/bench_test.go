package evloop

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// echoServers are the loop and what it is compared with: a goroutine for each connection.
func echoServers(b *testing.B, secure bool, f func(b *testing.B, addr string)) {
	b.Run("loop", func(b *testing.B) {
		core := newCore(b, Config{})
		cfg := serverConfig(b)
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
			if !secure {
				c.SetHandler(&echo{c: c})
				return
			}
			c.StartTLS(cfg, false, time.Minute, func(err error) {
				if err == nil {
					c.SetHandler(&echo{c: c})
				}
			})
		})
		if err != nil {
			b.Fatal(err)
		}
		f(b, ln.Addr().String())
	})
	b.Run("goroutines", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				if secure {
					nc = tls.Server(nc, serverConfig(b))
				}
				wg.Go(func() { echoBlocking(nc) })
			}
		})
		f(b, ln.Addr().String())
		ln.Close()
		wg.Wait()
	})
}

func echoBlocking(nc net.Conn) {
	defer nc.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		nc.Write(buf[:n])
	}
}

func dialBench(b *testing.B, addr string) net.Conn {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return nc
}

// pingPong does b.N exchanges of 64 bytes, ahead of them at a time, over conns.
func pingPong(b *testing.B, conns []net.Conn, ahead int) {
	var wg sync.WaitGroup
	b.ResetTimer()
	for i, nc := range conns {
		n := b.N / len(conns)
		if i == 0 {
			n += b.N % len(conns)
		}
		wg.Go(func() {
			defer nc.Close()
			msg := make([]byte, 64*ahead)
			for ; n > 0; n -= ahead {
				k := 64 * min(n, ahead)
				nc.Write(msg[:k])
				if _, err := io.ReadFull(nc, msg[:k]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkEcho(b *testing.B) {
	for _, test := range []struct {
		name         string
		conns, ahead int
		secure       bool
	}{
		{"1 conn", 1, 1, false},
		{"64 conns", 64, 1, false},
		{"pipelined", 16, 16, false},
		{"TLS", 16, 1, true},
	} {
		b.Run(test.name, func(b *testing.B) {
			echoServers(b, test.secure, func(b *testing.B, addr string) {
				var conns []net.Conn
				for range test.conns {
					nc := dialBench(b, addr)
					if test.secure {
						tc := tls.Client(nc, clientConfig())
						if err := tc.Handshake(); err != nil {
							b.Fatal(err)
						}
						nc = tc
					}
					conns = append(conns, nc)
				}
				pingPong(b, conns, test.ahead)
			})
		})
	}
}

// BenchmarkPacketEcho echoes datagrams of 512 bytes, from many sockets with a few under way each, or from one with many.
func BenchmarkPacketEcho(b *testing.B) {
	for _, test := range []struct {
		name           string
		clients, ahead int
	}{{"1 at a time", 1, 1}, {"64 clients", 64, 2}, {"1 client", 1, 64}} {
		b.Run(test.name, func(b *testing.B) {
			b.Run("loop", func(b *testing.B) {
				p := listenPacket(b, newCore(b, Config{Loops: 1}), "udp", "127.0.0.1:0", echoPacket)
				packetPingPong(b, p.LocalAddr().String(), test.clients, test.ahead)
			})
			b.Run("goroutine", func(b *testing.B) {
				nc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					b.Fatal(err)
				}
				nc.SetReadBuffer(PacketBuffer)
				var wg sync.WaitGroup
				wg.Go(func() {
					buf := make([]byte, packetSize)
					for {
						n, from, err := nc.ReadFromUDPAddrPort(buf)
						if err != nil {
							return
						}
						nc.WriteToUDPAddrPort(buf[:n], from)
					}
				})
				packetPingPong(b, nc.LocalAddr().String(), test.clients, test.ahead)
				nc.Close()
				wg.Wait()
			})
		})
	}
}

// packetPingPong does b.N exchanges, ahead of them at a time for each client.
func packetPingPong(b *testing.B, addr string, clients, ahead int) {
	var conns []*net.UDPConn
	for range clients {
		conns = append(conns, dialUDP(b, addr))
	}
	var wg sync.WaitGroup
	b.ResetTimer()
	for i, nc := range conns {
		n := b.N / clients
		if i == 0 {
			n += b.N % clients
		}
		wg.Go(func() {
			msg, got := make([]byte, 512), make([]byte, 512)
			for sent, back := 0, 0; back < n; back++ {
				for ; sent < n && sent-back < ahead; sent++ {
					nc.Write(msg)
				}
				if _, err := nc.Read(got); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}

// relayPair splices the loop's connections: what a comes with goes to b, and back.
type relayEnd struct{ from, to *Conn }

func (s *relayEnd) OnData(b []byte) int {
	s.to.Write(b)
	if s.to.Pending() > s.to.HighMark() {
		s.from.Pause()
	}
	return len(b)
}
func (s *relayEnd) OnEOF()        { s.to.CloseWrite() }
func (s *relayEnd) OnDrain()      { s.to.Resume() }
func (s *relayEnd) OnClose(error) {}

// BenchmarkRelay moves 128 KiB at a time through a relay to a sink. Up decrypts, down encrypts.
func BenchmarkRelay(b *testing.B) {
	for _, test := range []struct {
		name     string
		streams  int
		up, down bool
	}{{"plain 1", 1, false, false}, {"plain 16", 16, false, false}, {"up 16", 16, true, false}, {"down 16", 16, false, true}} {
		b.Run(test.name, func(b *testing.B) {
			sink, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer sink.Close()
			var sinks sync.WaitGroup
			go func() {
				for {
					nc, err := sink.Accept()
					if err != nil {
						return
					}
					sinks.Go(func() {
						defer nc.Close()
						if test.down {
							nc = tls.Server(nc, serverConfig(b))
						}
						io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{nc}, make([]byte, 128<<10))
					})
				}
			}()
			send := func(b *testing.B, addr string) {
				b.SetBytes(128 << 10)
				var wg sync.WaitGroup
				start := make(chan struct{})
				for i := range test.streams {
					nc := dialBench(b, addr)
					if test.up {
						tc := tls.Client(nc, clientConfig())
						tc.Handshake()
						nc = tc
					}
					wg.Go(func() {
						defer nc.Close()
						chunk := make([]byte, 128<<10)
						<-start
						for n := b.N/test.streams + min(1, b.N%test.streams/(i+1)); n > 0; n-- {
							nc.Write(chunk)
						}
						nc.(interface{ CloseWrite() error }).CloseWrite()
						io.Copy(io.Discard, nc) // until the sink has everything
					})
				}
				b.ResetTimer()
				close(start)
				wg.Wait()
				b.StopTimer()
				sinks.Wait()
			}
			b.Run("loop", func(b *testing.B) {
				core := newCore(b, Config{})
				server, client := serverConfig(b), clientConfig()
				client.DynamicRecordSizingDisabled = true
				ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
					l := c.Loop()
					connect := func(error) {
						l.Dial(b.Context(), "tcp", sink.Addr().String(), func(to *Conn, err error) {
							if err != nil {
								b.Error(err)
								return
							}
							start := func(error) {
								to.SetHandler(&relayEnd{to, c})
								c.SetHandler(&relayEnd{c, to})
							}
							if test.down {
								to.StartTLS(client, true, time.Minute, start)
							} else {
								start(nil)
							}
						})
					}
					if test.up {
						c.StartTLS(server, false, time.Minute, connect)
					} else {
						connect(nil)
					}
				})
				if err != nil {
					b.Fatal(err)
				}
				send(b, ln.Addr().String())
			})
			b.Run("goroutines", func(b *testing.B) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				defer ln.Close()
				go func() {
					for {
						nc, err := ln.Accept()
						if err != nil {
							return
						}
						go relayBlocking(b, nc, sink.Addr().String(), test.up, test.down)
					}
				}()
				send(b, ln.Addr().String())
			})
		})
	}
}

func relayBlocking(b *testing.B, from net.Conn, addr string, up, down bool) {
	to := dialBench(b, addr)
	if up {
		from = tls.Server(from, serverConfig(b))
	}
	if down {
		cfg := clientConfig()
		cfg.DynamicRecordSizingDisabled = true
		to = tls.Client(to, cfg)
	}
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		wg.Go(func() {
			// No splice: a relay that looks at what it carries cannot use it.
			io.CopyBuffer(struct{ io.Writer }{way[1]}, struct{ io.Reader }{way[0]}, make([]byte, 64<<10))
			way[1].(interface{ CloseWrite() error }).CloseWrite()
		})
	}
	wg.Wait()
	from.Close()
	to.Close()
}

// BenchmarkIdle tells what a connection that has said something once costs while it is silent. The client's net.TCPConn
// is counted in (some 300 bytes), its TLS state is not: nothing refers to it any more.
func BenchmarkIdle(b *testing.B) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			const n = 5000
			core := newCore(b, Config{})
			server := serverConfig(b)
			var first []*Conn
			accepted := make(chan *Conn, n)
			ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) {
				if !secure {
					c.SetHandler(&echo{c: c})
					accepted <- c
					return
				}
				c.StartTLS(server, false, time.Minute, func(err error) {
					c.SetHandler(&echo{c: c})
					accepted <- c
				})
			})
			if err != nil {
				b.Fatal(err)
			}
			heap := func() int64 {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc + m.StackInuse)
			}
			var fds []net.Conn
			before := heap()
			for range n {
				nc := dialBench(b, ln.Addr().String())
				fds = append(fds, nc)
				rw := nc
				if secure {
					rw = tls.Client(nc, clientConfig())
				}
				rw.Write([]byte("x"))
				io.ReadFull(rw, make([]byte, 1))
				first = append(first, <-accepted)
			}
			time.Sleep(3 * sweepTime)
			b.ReportMetric(float64(heap()-before)/n, "B/conn")
			for _, nc := range fds {
				nc.Close()
			}
			runtime.KeepAlive(first)
		})
	}
}
