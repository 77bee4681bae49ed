package public

import (
	"io"
	"net"
	"runtime"
	"testing"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// BenchmarkKeepAlive is one visitor's request and response through the relay and
// a session in memory: the allocations are all that the relay, the session and
// its stand-in make for it.
func BenchmarkKeepAlive(b *testing.B) { benchmarkKeepAlive(b, nil) }

// BenchmarkKeepAliveLogged is the same with an access log that goes nowhere.
func BenchmarkKeepAliveLogged(b *testing.B) {
	benchmarkKeepAlive(b, func(r *Relay) { r.AccessLog, r.AccessAgent = func([]byte) {}, true })
}

func benchmarkKeepAlive(b *testing.B, change func(*Relay)) {
	r := newTestRelay(b, false, change)
	s := r.connect("office", nil, "app", "http://app.test")
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int { st.Write(answer); return len(b) }})
		return true
	})
	v := r.dial(false)
	req := []byte("GET / HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	res := make([]byte, len(answer))
	b.ReportAllocs()
	for b.Loop() {
		v.Conn.Write(req)
		if _, err := io.ReadFull(v.Conn, res); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSilentVisitor measures what an upgraded connection that is silent
// holds, its stream at both ends of the session included.
func BenchmarkSilentVisitor(b *testing.B) {
	const n = 2000
	r := newTestRelay(b, false, nil)
	s := r.connect("office", nil, "app", "http://app.test")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			st.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"))
			return len(b)
		}})
		return true
	})
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		var conns []net.Conn
		for range n {
			c, err := net.Dial("tcp", r.http)
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, c)
		}
		before := memory()
		buf := make([]byte, 512)
		for _, c := range conns {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(int64(memory()-before))/n, "B/visitor")
		for _, c := range conns {
			c.Close()
		}
	}
}
