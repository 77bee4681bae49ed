package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// samples are the servers of the demo: what an intranet may have, on loopback ports of their own.
type samples struct {
	web    net.Listener   // HTTP/1.1, and HTTP/2 as gRPC speaks it; echoing WebSockets at /echo, echoing lines at /chat
	tcp    net.Listener   // echoes bytes
	udp    net.PacketConn // echoes datagrams
	files  string         // a folder for the private relay to serve
	camera *sampleCamera
	sum    [sha256.Size]byte

	server  *http.Server
	running sync.WaitGroup
}

const (
	bigFile     = "sample.bin"
	bigFileSize = 64 << 20
)

// startSamples starts the servers and writes the files into dir.
func startSamples(dir string) (_ *samples, err error) {
	s := &samples{files: filepath.Join(dir, "files")}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.web, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	if s.camera, err = startCamera(); err != nil {
		return nil, err
	}
	s.server = &http.Server{Handler: http.HandlerFunc(serveWeb), ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	s.server.Protocols.SetHTTP1(true)
	s.server.Protocols.SetUnencryptedHTTP2(true)
	s.running.Go(func() { _ = s.server.Serve(s.web) }) // ends with close
	s.running.Go(s.serveTCP)
	s.running.Go(s.serveUDP)
	return s, nil
}

func (s *samples) close() {
	if s.server != nil {
		s.server.Close()
	}
	for _, ln := range []net.Listener{s.web, s.tcp} {
		if ln != nil {
			ln.Close()
		}
	}
	if s.udp != nil {
		s.udp.Close()
	}
	if s.camera != nil {
		s.camera.close()
	}
	s.running.Wait()
}

func (s *samples) writeFiles() error {
	if err := os.MkdirAll(s.files, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.files, "hello.txt"), []byte("This file came out of the closed network.\n"), 0o644); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(s.files, bigFile))
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{}), bigFileSize)
	h.Sum(s.sum[:0])
	return errors.Join(err, f.Close())
}

// serveWeb is the intranet's web server. It shows what of the visitor reaches it.
func serveWeb(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo":
		echoMessages(w, r)
		return
	case "/chat":
		echoLines(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello from behind the firewall.\n\nYou asked for %s %s://%s%s\nand came from %s.\n",
		r.Method, r.Header.Get("X-Forwarded-Proto"), r.Host, r.URL, r.Header.Get("X-Forwarded-For"))
	if user := r.Header.Get("X-Remote-User"); user != "" {
		fmt.Fprintf(w, "The relay knows you as %s.\n", user)
	}
}

// echoLines answers each line of a request when it comes, while the request goes on, and ends with a trailer: what
// gRPC needs of everything on the way.
func echoLines(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "Lines")
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex() // HTTP/2 always is
	_ = c.Flush()
	lines := bufio.NewScanner(r.Body)
	n := 0
	for ; lines.Scan(); n++ {
		fmt.Fprintf(w, "%s\n", lines.Bytes())
		_ = c.Flush()
	}
	w.Header().Set("Lines", strconv.Itoa(n))
}

// echoMessages answers each WebSocket message with itself.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // any page may try it
	if err != nil {
		return // Accept has answered
	}
	defer c.CloseNow()
	for {
		kind, msg, err := c.Read(context.Background())
		if err != nil {
			return
		}
		if err := c.Write(context.Background(), kind, msg); err != nil {
			return
		}
	}
}

func (s *samples) serveTCP() {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return // closed
		}
		conns.Go(func() { echoBytes(c.(*net.TCPConn)) })
	}
}

// serveUDP sends each datagram back.
func (s *samples) serveUDP() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.udp.WriteTo(buf[:n], from) // a datagram may be lost
		}
	}
}

// echoBytes sends everything back, and ends when the visitor does.
func echoBytes(c *net.TCPConn) {
	defer c.Close()
	buf := make([]byte, 256<<10)
	_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, buf)
	if err == nil {
		_ = c.CloseWrite()
	}
}
