//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// fdSock drives a stream socket's descriptor without blocking.
type fdSock struct {
	fd   int
	loop *Loop // that it is registered with
}

func (s *fdSock) register(l *Loop, token uint64) error {
	s.loop = l
	return l.poll.add(s.fd, token, true)
}

func (s *fdSock) unregister() { s.loop.poll.remove(s.fd) }

func (s *fdSock) read(b []byte) (int, error) {
	n, err := rawRead(s.fd, b)
	switch {
	case err == unix.EAGAIN:
		return 0, errAgain
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (s *fdSock) write(b []byte) (int, error) {
	n, err := rawWrite(s.fd, b)
	switch err {
	case nil:
		return n, nil
	case unix.EAGAIN:
		return 0, errAgain
	}
	return 0, os.NewSyscallError("write", err)
}

func (s *fdSock) flushed() bool { return true }

func (s *fdSock) closeWrite() error {
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil && err != unix.ENOTCONN {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

func (s *fdSock) close(err error) {
	if err != nil {
		unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(s.fd)
	s.fd = -1
}

func (s *fdSock) local() netip.AddrPort {
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

func (s *fdSock) lastError() error {
	errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = os.NewSyscallError("socket", unix.Errno(errno))
	}
	return err
}

// addrPort converts a socket address; IPv4-mapped IPv6 addresses become IPv4. Zero for unix sockets.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// sockaddr is the inverse of addrPort.
func sockaddr(addr netip.AddrPort) (domain int, sa unix.Sockaddr, err error) {
	if a := addr.Addr().Unmap(); a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: a.As4()}, nil
	}
	zone, err := zoneIndex(addr.Addr().Zone())
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16(), ZoneId: zone}, err
}

// zoneIndex returns the index of an interface that is given by number or name; 0 for none.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(ifi.Index), nil
}

// takeFD takes the descriptor out of nc, which is closed. ok is false, and nc untouched, when nc has none.
func takeFD(nc net.Conn) (s *fdSock, remote netip.AddrPort, ok bool, err error) {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil, remote, false, nil
	}
	fd, err := dupFD(nc.(filer))
	if err != nil {
		return nil, remote, true, err
	}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		remote = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), uint16(a.Port))
	}
	nc.Close()
	return &fdSock{fd: fd}, remote, true, nil
}

// filer is a socket of package net that has a descriptor.
type filer interface{ File() (*os.File, error) }

// dupFD duplicates the descriptor of a socket, for a poller.
func dupFD(s filer) (int, error) {
	f, err := s.File()
	if err != nil {
		return -1, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	unix.SetNonblock(fd, true) // f.Fd made the shared description blocking
	return fd, nil
}

// netConn makes a blocking net.Conn of the socket, which must not be used afterwards.
func (s *fdSock) netConn() (net.Conn, error) {
	f := os.NewFile(uintptr(s.fd), "socket")
	defer f.Close() // FileConn duplicates it
	return net.FileConn(f)
}

// fdListener is one listening descriptor on one loop.
type fdListener struct {
	fd      int
	loop    *Loop
	slot    uint64
	onConn  func(*Conn)
	onError func(error)
	retry   Timer
	path    string  // of a unix socket, removed at the end
	deal    []*Loop // that the connections go to in turn; nil: loop
	dealt   int
	closed  bool
}

// inheritFD takes a duplicate of the descriptor out of a listener that somebody else has opened.
func inheritFD(nl net.Listener) (*fdListener, error) {
	f, ok := nl.(filer)
	if !ok {
		return nil, fmt.Errorf("listen %s: network not supported", nl.Addr().Network())
	}
	fd, err := dupFD(f)
	if err != nil {
		return nil, err
	}
	if acceptInherits {
		setStreamOptions(fd)
	}
	return &fdListener{fd: fd}, nil
}

// listenFD opens one listening socket. Several may listen on one port: the first with shared only, the others with join
// also. A port that somebody else listens on, another process of ours included, is in use for the first.
func listenFD(network, addr string, join, shared bool) (ln *fdListener, bound net.Addr, err error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // the default of Go; it takes TCP_NOTSENT_LOWAT away from what it accepts
	if join || shared && shareBeforeBind {
		lc.Control = controlReusePort
	}
	nl, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, nil, err
	}
	defer nl.Close()
	if ln, err = inheritFD(nl); err != nil {
		return nil, nil, err
	}
	if u, ok := nl.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		ln.path = addr
	}
	if shared && !join && !shareBeforeBind {
		if err := setReusePort(ln.fd); err != nil {
			ln.discard()
			return nil, nil, err
		}
	}
	return ln, nl.Addr(), nil
}

// setStreamOptions sets what every TCP connection of ours has; without effect on unix sockets.
func setStreamOptions(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	setUnsent(fd, notSent)
	setKeepAlive(fd)
}

// start enters the listener into its loop; on the loop only.
func (ln *fdListener) start() error {
	token := ln.loop.enter(slot{ln: ln})
	ln.slot = token
	if err := ln.loop.poll.add(ln.fd, token, false); err != nil {
		ln.loop.leave(token)
		ln.closed = true
		ln.discard()
		return err
	}
	return nil
}

// accept takes what connections wait, at most maxAccept in a turn.
func (ln *fdListener) accept() {
	for range maxAccept {
		if ln.closed {
			return
		}
		fd, sa, err := rawAccept(ln.fd)
		switch err {
		case nil:
		case unix.EAGAIN:
			return
		case unix.ECONNABORTED, unix.EINTR, unix.EPROTO:
			continue
		default: // out of descriptors or memory: they wait in the backlog meanwhile
			ln.onError(os.NewSyscallError("accept", err))
			ln.loop.Arm(&ln.retry, acceptPause, ln.accept)
			return
		}
		if !acceptInherits {
			setStreamOptions(fd)
		}
		ln.give(fd, addrPort(sa))
	}
	ln.loop.Post(ln.accept)
}

// give brings an accepted descriptor onto its loop.
func (ln *fdListener) give(fd int, remote netip.AddrPort) {
	to := ln.loop
	if ln.deal != nil {
		to = ln.deal[ln.dealt%len(ln.deal)]
		ln.dealt++
	}
	arrive := func() {
		c, err := to.newConn(&fdSock{fd: fd}, remote)
		if err != nil {
			ln.onError(err)
			return
		}
		ln.onConn(c)
	}
	if to == ln.loop {
		arrive()
	} else if !to.Post(arrive) {
		unix.Close(fd)
	}
}

func (ln *fdListener) close() {
	if ln.closed {
		return
	}
	ln.closed = true
	ln.retry.Stop()
	ln.loop.poll.remove(ln.fd)
	ln.loop.leave(ln.slot)
	ln.discard()
}

// discard frees the descriptor.
func (ln *fdListener) discard() {
	unix.Close(ln.fd)
	if ln.path != "" {
		os.Remove(ln.path)
	}
}

// fdDial is a connect under way.
type fdDial struct {
	loop *Loop
	fd   int
	slot uint64
	stop func() bool // ends the watch of the context
	done func(*fdSock, error)
}

// connectFD starts to connect to sa and calls done on the loop.
func connectFD(ctx context.Context, l *Loop, domain int, sa unix.Sockaddr, done func(*fdSock, error)) {
	if err := cmp.Or(ctx.Err(), l.closed()); err != nil {
		done(nil, err)
		return
	}
	fd, err := rawSocket(domain, unix.SOCK_STREAM)
	if err != nil {
		done(nil, os.NewSyscallError("socket", err))
		return
	}
	if domain != unix.AF_UNIX {
		setStreamOptions(fd)
	}
	switch err := unix.Connect(fd, sa); err {
	case nil:
		done(&fdSock{fd: fd}, nil)
		return
	case unix.EINPROGRESS, unix.EINTR:
	default:
		unix.Close(fd)
		done(nil, os.NewSyscallError("connect", err))
		return
	}
	d := &fdDial{loop: l, fd: fd, done: done}
	d.slot = l.enter(slot{d: d})
	if err := l.poll.add(fd, d.slot, true); err != nil {
		d.fail(err)
		return
	}
	d.stop = context.AfterFunc(ctx, func() {
		l.Post(func() { d.fail(ctx.Err()) })
	})
}

// connected looks at the outcome; there is an event before there is one on some systems.
func (d *fdDial) connected() {
	if d.done == nil {
		return
	}
	errno, err := unix.GetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	if err != nil {
		d.fail(os.NewSyscallError("connect", err))
		return
	}
	if _, err := unix.Getpeername(d.fd); err != nil {
		return // not yet
	}
	done := d.end()
	done(&fdSock{fd: d.fd}, nil)
}

func (d *fdDial) fail(err error) {
	if d.done == nil {
		return
	}
	done := d.end()
	unix.Close(d.fd)
	done(nil, err)
}

// end takes the dial off the loop and returns its done.
func (d *fdDial) end() func(*fdSock, error) {
	done := d.done
	d.done = nil
	if d.stop != nil {
		d.stop()
	}
	d.loop.poll.remove(d.fd)
	d.loop.leave(d.slot)
	return done
}

// dialFD connects to a literal IP address or a unix path.
func (l *Loop) dialFD(ctx context.Context, addr netip.AddrPort, path string, done func(*Conn, error)) {
	domain, sa := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: path})
	if path == "" {
		var err error
		if domain, sa, err = sockaddr(addr); err != nil {
			done(nil, err)
			return
		}
	}
	connectFD(ctx, l, domain, sa, func(s *fdSock, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(l.newConn(s, addr))
	})
}
