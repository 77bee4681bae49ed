package httpd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

const hello = "Hello, World!"

// helloHandler answers as one of the usual benchmarks has it.
func helloHandler(w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = plainText
	io.WriteString(w, hello)
}

var plainText = []string{"text/plain"}

// helloFast is the same on the loop.
func helloFast(_ *http1.Request, dst []byte) ([]byte, bool) {
	return append(dst, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\n"+hello...), true
}

// nginx starts one that answers the same, on one process, and returns its address.
func nginx(b *testing.B) string {
	program, err := exec.LookPath("nginx")
	if err != nil {
		if program = "/usr/sbin/nginx"; exec.Command(program, "-v").Run() != nil {
			b.Skip("nginx is not installed")
		}
	}
	dir, err := os.MkdirTemp("", "nginx")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	conf := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; default_type text/plain; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
server { listen %[2]s; location / { return 200 "%[3]s"; } } }`, dir, addr, hello)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	for range 1000 {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("nginx does not listen")
	return ""
}

// loaded has clients send b.N requests in all, so many at once on each connection.
func loaded(b *testing.B, addr string, conns, depth int) {
	requests := bytes.Repeat([]byte("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), depth)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range conns {
		wg.Go(func() {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer nc.Close()
			r := bufio.NewReaderSize(nc, 64<<10)
			size := 0
			for left.Add(-int64(depth)) > -int64(depth) {
				if _, err := nc.Write(requests); err != nil {
					b.Error(err)
					return
				}
				if size == 0 { // all answers are as long as the first, to the byte
					head := 0
					for {
						line, err := r.ReadSlice('\n')
						if err != nil {
							b.Error(err)
							return
						}
						if head += len(line); len(line) == 2 {
							break
						}
					}
					size = head + len(hello)
					if _, err := r.Discard(len(hello) + (depth-1)*size); err != nil {
						b.Error(err)
						return
					}
					continue
				}
				if _, err := r.Discard(depth * size); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// BenchmarkServer is a small answer on 64 connections, one request at a time and 16, beside net/http and one process of nginx. The clients are in this
// process, so that the processors are shared with them.
func BenchmarkServer(b *testing.B) {
	own := func(s *Server) func(b *testing.B) string {
		return func(b *testing.B) string {
			core, err := evloop.New(evloop.Config{Loops: 1})
			if err != nil {
				b.Fatal(err)
			}
			ln, err := s.Listen(core, "tcp", "127.0.0.1:0", nil)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { core.Close(); s.Wait() })
			return ln.Addr().String()
		}
	}
	for _, server := range []struct {
		name  string
		start func(b *testing.B) string
	}{
		{"loop", own(&Server{Fast: helloFast})},
		{"handler", own(&Server{Handler: http.HandlerFunc(helloHandler)})},
		{"net-http", func(b *testing.B) string {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			srv := &http.Server{Handler: http.HandlerFunc(helloHandler)}
			go srv.Serve(ln)
			b.Cleanup(func() { srv.Close() })
			return ln.Addr().String()
		}},
		{"nginx", nginx},
	} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/pipelined-%d", server.name, depth), func(b *testing.B) {
				loaded(b, server.start(b), 64, depth)
			})
		}
	}
}

// BenchmarkHTTP2 is a small answer over HTTP/2 with TLS, 64 requests at a time on one connection, beside net/http.
func BenchmarkHTTP2(b *testing.B) {
	for _, name := range []string{"HTTP/2", "net/http HTTP/2"} {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			s := &service{Server: &Server{Handler: http.HandlerFunc(helloHandler)}}
			start(b, name, s)
			get := func() {
				resp, err := s.client.Get(s.url)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			get()
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					get()
				}
			})
		})
	}
}

// BenchmarkSilent is what a connection costs that has had one answer and is silent: bytes of the heap and of stacks, both ends of it in this process
// but counted without the client's.
func BenchmarkSilent(b *testing.B) {
	const n = 2000
	for _, test := range []struct {
		name string
		tls  bool
		std  bool
	}{{"plain", false, false}, {"net-http", false, true}, {"HTTP-2", true, false}, {"net-http-HTTP-2", true, true}} {
		b.Run(test.name, func(b *testing.B) {
			config, pool := certificate(b)
			var addr string
			h := http.HandlerFunc(helloHandler)
			switch {
			case test.std:
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				srv := &http.Server{Handler: h, TLSConfig: config}
				if test.tls {
					go srv.ServeTLS(ln, "", "")
				} else {
					go srv.Serve(ln)
				}
				b.Cleanup(func() { srv.Close() })
				addr = ln.Addr().String()
			default:
				core, err := evloop.New(evloop.Config{Loops: 1})
				if err != nil {
					b.Fatal(err)
				}
				s := &Server{Handler: h}
				if !test.tls {
					config = nil
				}
				ln, err := s.Listen(core, "tcp", "127.0.0.1:0", config)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { core.Close(); s.Wait() })
				addr = ln.Addr().String()
			}
			// Clients are bare descriptors, whose buffers are given up before the heap is measured.
			conns := make([]net.Conn, n)
			before := memory()
			for range b.N {
				for i := range conns {
					conns[i] = oneAnswer(b, addr, test.tls, &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}})
				}
				b.ReportMetric(float64(memory()-before)/n, "B/conn")
				for _, nc := range conns {
					nc.Close()
				}
			}
		})
	}
}

// oneAnswer makes a connection, has one answer, and returns the bare connection.
func oneAnswer(b *testing.B, addr string, secure bool, config *tls.Config) net.Conn {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	if !secure {
		io.WriteString(nc, get)
		buf := make([]byte, 1000)
		if _, err := nc.Read(buf); err != nil {
			b.Fatal(err)
		}
		return nc
	}
	config.ServerName = "localhost"
	tc := tls.Client(nc, config)
	// Preface, SETTINGS, and HEADERS of a GET: fields from the static table, but for :authority.
	out := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x87\x84\x41\x01a"
	if _, err := io.WriteString(tc, out); err != nil {
		b.Fatal(err)
	}
	for {
		var head [9]byte
		if _, err := io.ReadFull(tc, head[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, tc, int64(head[0])<<16|int64(head[1])<<8|int64(head[2])); err != nil {
			b.Fatal(err)
		}
		if head[3] == 0 && head[4]&1 != 0 || head[3] == 1 && head[4]&1 != 0 {
			return nc
		}
	}
}

// memory is what the heap and stacks take, after the collector.
func memory() uint64 {
	for range 3 {
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
