package evloop

import (
	"bytes"
	"errors"
	"net"
	"sync"
)

// Detach takes c off its loop and calls done with a blocking net.Conn that carries on: a *tls.Conn if c is TLS and
// none of its plaintext is unread. Unread input comes first, queued output goes before the first Write or Read. In a
// callback of c it happens when the callback has returned. OnClose is not called. c must not be used afterwards.
// Nothing can be detached during a TLS handshake or after Close: done gets net.ErrClosed at once; nor what AttachEnd
// made: done gets errors.ErrUnsupported. done does not run when
// the core is closed meanwhile.
func (c *Conn) Detach(done func(net.Conn, error)) {
	if c.flags&(isDead|closing) != 0 || c.tls != nil && c.tls.shaking() {
		done(nil, net.ErrClosed)
		return
	}
	if _, ok := c.sock.(*endSock); ok {
		done(nil, errors.ErrUnsupported)
		return
	}
	c.leave(func() {
		c.flags |= isDead
		in, out := bytes.Clone(c.in), bytes.Clone(c.out[c.outOff:])
		c.dropBuffers()
		switch s := c.sock.(type) {
		case *fdSock:
			nc, err := s.netConn()
			done(c.detached(nc, nil, in, out, err))
		case *netSock:
			l := c.loop
			l.core.pool.do(func() {
				unread := s.release()
				if !l.Post(func() { done(c.detached(s.nc, unread, in, out, nil)) }) {
					s.nc.Close()
				}
			})
		}
	})
}

// detached builds the net.Conn of Detach: unread came from the socket, in went through TLS, if there is TLS.
func (c *Conn) detached(nc net.Conn, unread, in, out []byte, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	t := c.tls
	if t == nil {
		return &detached{Conn: nc, unread: append(in, unread...), unsent: out}, nil
	}
	t.nc = &detached{Conn: nc, unread: append(t.left, unread...), unsent: out}
	t.left = nil
	if len(in) == 0 {
		return t.tc, nil
	}
	return &detached{Conn: t.tc, unread: in}, nil
}

// detached is a net.Conn with what its loop had not passed on.
type detached struct {
	net.Conn
	unread []byte
	unsent []byte
	once   sync.Once
	err    error
}

func (d *detached) flush() error {
	d.once.Do(func() {
		if len(d.unsent) > 0 {
			_, d.err = d.Conn.Write(d.unsent)
			d.unsent = nil
		}
	})
	return d.err
}

func (d *detached) Read(b []byte) (int, error) {
	if err := d.flush(); err != nil {
		return 0, err
	}
	if len(d.unread) > 0 {
		n := copy(b, d.unread)
		d.unread = d.unread[n:]
		return n, nil
	}
	return d.Conn.Read(b)
}

func (d *detached) Write(b []byte) (int, error) {
	if err := d.flush(); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}

// CloseWrite ends the sending direction where the connection can.
func (d *detached) CloseWrite() error {
	if err := d.flush(); err != nil {
		return err
	}
	if cw, ok := d.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return net.ErrClosed
}
