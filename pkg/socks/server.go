package socks

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Conn is a connection each of whose directions ends on its own.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
	Abort() // ends both at once, so that the peer notices
}

const (
	maxWait    = 1 << 10 // bytes of a negotiation, and what a hasty client sends behind it
	copyBuffer = 32 << 10
)

// Server serves clients of SOCKS 5. Its fields are set before Serve.
type Server struct {
	// Dial connects to a HOST:PORT that a client has asked for; network is "tcp" or "udp". Of "udp" each Write is a datagram,
	// and each Read.
	Dial func(ctx context.Context, network, address string) (Conn, error)

	// Login says whether a user may log in. nil: nobody has to.
	Login func(user, password string) bool

	// Reply says how a client is told of an error of Dial. nil: Failed.
	Reply func(error) Reply

	// OnError is told what clients and their requests have met; address is "" before one was asked for. It may be called from
	// several goroutines. nil: nobody is.
	OnError func(client netip.AddrPort, address string, err error)

	MaxConns int           // at a time; the others wait to be accepted. 0: 512
	Wait     time.Duration // for all of a request. 0: 10 s
	MaxFlows int           // destinations of one UDP ASSOCIATE at a time; the one that has been silent for longest makes room. 0: 64
	Idle     time.Duration // until a destination that is silent is given up. 0: 2 min
}

// Serve accepts clients until ctx ends, which is no error, and returns when all have been closed. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	n := s.MaxConns
	if n == 0 {
		n = 512
	}
	places := make(chan struct{}, n)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, say: others will be closed
			<-places
			s.tell(nil, "", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		clients.Add(1)
		go func() {
			defer clients.Done()
			defer func() { <-places }()
			s.client(ctx, nc)
		}()
	}
}

func (s *Server) tell(nc net.Conn, address string, err error) {
	if s.OnError == nil {
		return
	}
	var from netip.AddrPort
	if nc != nil {
		from = addrPort(nc.RemoteAddr())
	}
	s.OnError(from, address, err)
}

// client serves one connection.
func (s *Server) client(ctx context.Context, nc net.Conn) {
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { cut(nc) })()
	wait := s.Wait
	if wait == 0 {
		wait = 10 * time.Second
	}
	nc.SetDeadline(time.Now().Add(wait))
	req, rest, err := s.negotiate(nc)
	if err != nil {
		if !errors.Is(err, io.EOF) && ctx.Err() == nil { // a port scan, or a browser that has made a connection too many
			s.tell(nc, "", err)
		}
		drain(nc)
		return
	}
	nc.SetDeadline(time.Time{})
	address := net.JoinHostPort(req.Host, strconv.Itoa(int(req.Port)))
	switch req.Command {
	case Connect:
		err = s.connect(ctx, nc, address, rest)
	case Associate:
		err = s.associate(ctx, nc)
	default:
		nc.Write(AppendReply(nil, NotSupported, netip.AddrPort{}))
		err = errors.New("the client asks for BIND, to be called back: that is not supported")
		drain(nc)
	}
	if err != nil && ctx.Err() == nil {
		s.tell(nc, address, err)
	}
}

// drain lets an answer reach a client that is still sending: closing a socket with unread input would reset it.
func drain(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(time.Second))
	if t, ok := nc.(interface{ CloseWrite() error }); ok {
		t.CloseWrite()
	}
	io.CopyN(io.Discard, nc, 64<<10)
}

// negotiate runs the machine. rest is what the client has sent behind its request.
func (s *Server) negotiate(nc net.Conn) (req *Request, rest []byte, err error) {
	n := Negotiation{Login: s.Login}
	buf := make([]byte, 0, maxWait)
	for {
		m, err := nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		used, out, req, bad := n.Receive(buf, nil)
		buf = append(buf[:0], buf[used:]...)
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return nil, nil, err
			}
		}
		switch {
		case bad != nil:
			return nil, nil, bad
		case req != nil:
			return req, buf, nil
		case err != nil:
			return nil, nil, err
		case len(buf) == cap(buf):
			return nil, nil, ErrProtocol
		}
	}
}

// connect joins the client to an address.
func (s *Server) connect(ctx context.Context, nc net.Conn, address string, rest []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	far, err := s.Dial(ctx, "tcp", address)
	if err != nil {
		nc.Write(AppendReply(nil, s.reply(err), netip.AddrPort{}))
		drain(nc)
		return err
	}
	defer far.Close()
	defer context.AfterFunc(ctx, far.Abort)()
	if _, err := nc.Write(AppendReply(nil, Succeeded, netip.AddrPort{})); err != nil {
		far.Abort()
		return nil
	}
	if len(rest) > 0 {
		if _, err := far.Write(rest); err != nil {
			far.Abort()
			cut(nc)
			return err
		}
	}
	return join(nc, far)
}

func (s *Server) reply(err error) Reply {
	if s.Reply == nil {
		return Failed
	}
	return s.Reply(err)
}

// join copies both ways until both have ended, or one has failed. Only what the far side has met is an error.
func join(near net.Conn, far Conn) error {
	back := make(chan error, 1)
	go func() { back <- copyTo(near, far) }()
	_, err := io.CopyBuffer(plainWriter{far}, plainReader{near}, make([]byte, copyBuffer))
	if err == nil {
		far.CloseWrite()
	} else {
		far.Abort() // the client is gone, or far is
	}
	return <-back
}

// copyTo copies what comes from far. A client that is gone is no error.
func copyTo(near net.Conn, far Conn) error {
	buf := make([]byte, copyBuffer)
	for {
		n, err := far.Read(buf)
		if n > 0 {
			if _, err := near.Write(buf[:n]); err != nil {
				far.Abort()
				near.Close()
				return nil
			}
		}
		if err == io.EOF {
			if t, ok := near.(interface{ CloseWrite() error }); ok {
				t.CloseWrite()
			}
			return nil
		}
		if err != nil {
			cut(near)
			return err
		}
	}
}

// cut ends a connection so that what the client has got does not look complete.
func cut(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	nc.Close()
}

// plainReader and plainWriter hide what io.Copy would use instead of the buffer.
type (
	plainReader struct{ io.Reader }
	plainWriter struct{ io.Writer }
)

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
