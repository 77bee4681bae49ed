//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly

package evloop

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Without a poller nothing is driven by descriptor.

type fdListener struct {
	loop    *Loop
	fd      int
	onConn  func(*Conn)
	onError func(error)
	deal    []*Loop
}

func (*fdListener) discard() {}

func (*fdListener) start() error { return errors.ErrUnsupported }
func (*fdListener) accept()      {}
func (*fdListener) close()       {}

type fdDial struct{}

func (*fdDial) connected() {}
func (*fdDial) fail(error) {}

type fdSock struct {
	netSock
	fd int
}

func (*fdSock) netConn() (net.Conn, error) { return nil, errors.ErrUnsupported }

func takeFD(net.Conn) (*fdSock, netip.AddrPort, bool, error) {
	return nil, netip.AddrPort{}, false, nil
}

func inheritFD(net.Listener) (*fdListener, error) { return nil, errors.ErrUnsupported }

func listenFD(string, string, bool, bool) (*fdListener, net.Addr, error) {
	return nil, nil, errors.ErrUnsupported
}

func (l *Loop) dialFD(_ context.Context, _ netip.AddrPort, _ string, done func(*Conn, error)) {
	done(nil, errors.ErrUnsupported)
}
