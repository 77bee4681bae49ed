//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"culvert.dev/pkg/netem"
)

// targetAddrs are the listeners of a target process, which it prints as JSON.
type targetAddrs struct {
	Echo  string // returns every byte
	Bulk  string // the first byte says which way: 'D' sends for ever, 'U' counts and drops
	UDP   string // counts and drops datagrams
	Count string // answers each byte with the u64 number of bytes that Bulk has dropped, 'U' with that of the datagrams
	HTTP  string // answers every request with two bytes, /1m with a MiB; upgrades to a WebSocket that echoes "hi"
	HTTPS string // the same over TLS
}

// startTarget starts a process with the servers that the load is measured against.
func startTarget(t testing.TB) (*process, targetAddrs) {
	t.Helper()
	return startTargetIn(t, nil)
}

// startTargetIn starts a target at every address of a namespace, of which one is 127.0.0.1.
func startTargetIn(t testing.TB, n *netem.Namespace) (*process, targetAddrs) {
	t.Helper()
	host := "127.0.0.1"
	if n != nil {
		host = "0.0.0.0"
	}
	cmd := worker(t, "target")
	cmd.Args = append(cmd.Args, certFile("cert.pem"), certFile("key.pem"), host)
	p := startIn(t, n, "target", cmd)
	var a targetAddrs
	if err := json.Unmarshal([]byte(p.await(t, 0, "{")), &a); err != nil {
		t.Fatal(err)
	}
	return p, a.at("127.0.0.1")
}

// at is where the target is reached at another of its addresses.
func (a targetAddrs) at(host string) targetAddrs {
	for _, addr := range []*string{&a.Echo, &a.Bulk, &a.UDP, &a.Count, &a.HTTP, &a.HTTPS} {
		_, port, _ := net.SplitHostPort(*addr)
		*addr = net.JoinHostPort(host, port)
	}
	return a
}

// worker is a command that runs this test binary in another role.
func worker(t testing.TB, role string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerEnv+"="+role)
	return cmd
}

// dropped counts the bytes that the target's bulk listener has received, datagrams the
// datagrams of the other one.
var dropped, datagrams atomic.Int64

// runTarget is main of a target process. It ends with the process.
func runTarget() int {
	cert, err := tls.LoadX509KeyPair(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var a targetAddrs
	for _, s := range []struct {
		addr  *string
		serve func(net.Conn)
		tls   bool
	}{
		{&a.Echo, serveEcho, false},
		{&a.Bulk, serveBulk, false},
		{&a.Count, serveCount, false},
		{&a.HTTP, serveHTTP, false},
		{&a.HTTPS, serveHTTP, true},
	} {
		ln, err := net.Listen("tcp", os.Args[3]+":0")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		*s.addr = ln.Addr().String()
		if s.tls {
			ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		go acceptLoop(ln, s.serve)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(os.Args[3])})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if c, err := udp.SyscallConn(); err == nil { // more than net.core.rmem_max, where one may
		c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
	}
	a.UDP = udp.LocalAddr().String()
	go countDatagrams(udp)
	b, _ := json.Marshal(a)
	fmt.Printf("%s\n", b)
	select {}
}

func acceptLoop(ln net.Listener, serve func(net.Conn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		go serve(c)
	}
}

func serveEcho(c net.Conn) {
	defer c.Close()
	// Small, because twenty thousand silent connections hold one each.
	buf := make([]byte, 1024)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// bulkSize is the size of the reads and writes of bulk transfers.
const bulkSize = 256 << 10

func serveBulk(c net.Conn) {
	defer c.Close()
	buf := make([]byte, bulkSize)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return
	}
	if buf[0] == 'D' {
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
	for {
		n, err := c.Read(buf)
		dropped.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func countDatagrams(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		if _, _, err := c.ReadFromUDPAddrPort(b); err == nil {
			datagrams.Add(1)
		}
	}
}

func serveCount(c net.Conn) {
	defer c.Close()
	var buf [8]byte
	for {
		if _, err := io.ReadFull(c, buf[:1]); err != nil {
			return
		}
		n := &dropped
		if buf[0] == 'U' {
			n = &datagrams
		}
		binary.BigEndian.PutUint64(buf[:], uint64(n.Load()))
		if _, err := c.Write(buf[:]); err != nil {
			return
		}
	}
}

var (
	httpAnswer  = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi")
	largeAnswer = append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1048576\r\n\r\n"), make([]byte, 1<<20)...)
	wsAnswer    = []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	wsRequest = "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" // the example of rfc6455#section-1.3
	wsPing  = []byte("\x81\x82\x00\x00\x00\x00hi") // a masked text frame
	wsReply = []byte("\x81\x02hi")
)

// serveHTTP answers requests without a body as fast as Go can.
func serveHTTP(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 2048)
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		for {
			end := bytes.Index(buf[:n], []byte("\r\n\r\n"))
			if end < 0 {
				break
			}
			answer := httpAnswer
			if bytes.HasPrefix(buf, []byte("GET /1m ")) {
				answer = largeAnswer
			}
			upgrade := bytes.Contains(buf[:end], []byte("pgrade: websocket"))
			if upgrade {
				answer = wsAnswer
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
			n = copy(buf, buf[end+4:n])
			if upgrade {
				serveWebSocket(c, buf, n)
				return
			}
		}
		if err != nil || n == len(buf) {
			return
		}
	}
}

// serveWebSocket answers every wsPing.
func serveWebSocket(c net.Conn, buf []byte, n int) {
	for {
		for n >= len(wsPing) {
			if _, err := c.Write(wsReply); err != nil {
				return
			}
			n = copy(buf, buf[len(wsPing):n])
		}
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
	}
}

// count asks a target process for its number of dropped bytes, or of datagrams if what is
// 'U'.
func count(c io.ReadWriter, what byte) (int64, error) {
	buf := [8]byte{what}
	if _, err := c.Write(buf[:1]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, buf[:]); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(buf[:])), nil
}

// skipHead reads an HTTP response head and returns its status line and its content length.
func skipHead(r *bufio.Reader) (status string, length int, err error) {
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return status, length, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if first {
			status = string(line)
		} else if len(line) == 0 {
			return status, length, nil
		} else if len(line) > 15 && strings.EqualFold(string(line[:15]), "content-length:") {
			fmt.Sscan(string(line[15:]), &length)
		}
	}
}
