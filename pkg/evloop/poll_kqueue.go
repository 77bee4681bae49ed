//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const havePoller = true

// kqueue waits with a blocking kevent on the loop's goroutine. EV_CLEAR gives both filters the edge semantics of the
// contract. The token does not fit udata everywhere, so it is kept by descriptor.
type kqueue struct {
	fd     int
	tokens map[int]uint64
	buf    [256]unix.Kevent_t
	wakeR  int // a pipe: EVFILT_USER is not on every BSD
	wakeW  int

	mu     sync.Mutex
	closed bool
}

func newPoller() (poller, error) {
	fd, err := unix.Kqueue()
	if err != nil {
		return nil, os.NewSyscallError("kqueue", err)
	}
	unix.CloseOnExec(fd)
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("pipe", err)
	}
	p := &kqueue{fd: fd, tokens: make(map[int]uint64), wakeR: pipe[0], wakeW: pipe[1]}
	for _, fd := range pipe {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			p.close()
			return nil, os.NewSyscallError("fcntl", err)
		}
	}
	var change [1]unix.Kevent_t
	unix.SetKevent(&change[0], p.wakeR, unix.EVFILT_READ, unix.EV_ADD)
	if _, err := unix.Kevent(p.fd, change[:], nil, nil); err != nil {
		p.close()
		return nil, os.NewSyscallError("kevent", err)
	}
	return p, nil
}

func (p *kqueue) add(fd int, token uint64, writes bool) error {
	changes := make([]unix.Kevent_t, 1, 2)
	unix.SetKevent(&changes[0], fd, unix.EVFILT_READ, unix.EV_ADD|unix.EV_CLEAR)
	if writes {
		changes = changes[:2]
		unix.SetKevent(&changes[1], fd, unix.EVFILT_WRITE, unix.EV_ADD|unix.EV_CLEAR)
	}
	if _, err := unix.Kevent(p.fd, changes, nil, nil); err != nil {
		return os.NewSyscallError("kevent", err)
	}
	p.tokens[fd] = token
	return nil
}

func (p *kqueue) remove(fd int) {
	var changes [2]unix.Kevent_t
	unix.SetKevent(&changes[0], fd, unix.EVFILT_READ, unix.EV_DELETE)
	unix.SetKevent(&changes[1], fd, unix.EVFILT_WRITE, unix.EV_DELETE)
	unix.Kevent(p.fd, changes[:], nil, nil)
	delete(p.tokens, fd)
}

func (p *kqueue) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		unix.Write(p.wakeW, []byte{0})
	}
}

func (p *kqueue) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	unix.Close(p.fd)
	unix.Close(p.wakeR)
	unix.Close(p.wakeW)
}

func (p *kqueue) wait(block bool, deadline time.Time, events []event) (int, error) {
	var timeout *unix.Timespec // nil: for ever
	if !block {
		timeout = new(unix.Timespec)
	} else if !deadline.IsZero() {
		t := unix.NsecToTimespec(max(int64(time.Until(deadline)), 0))
		timeout = &t
	}
	n, err := unix.Kevent(p.fd, nil, p.buf[:], timeout)
	if err == unix.EINTR {
		return 0, nil
	} else if err != nil {
		return 0, os.NewSyscallError("kevent", err)
	}
	k := 0
	for i := range n {
		e := &p.buf[i]
		fd := int(e.Ident)
		if fd == p.wakeR {
			var b [64]byte
			for {
				if m, err := unix.Read(p.wakeR, b[:]); m < len(b) || err != nil {
					break
				}
			}
			continue
		}
		token, ok := p.tokens[fd]
		if !ok {
			continue
		}
		events[k] = event{
			token:    token,
			readable: e.Filter == unix.EVFILT_READ,
			writable: e.Filter == unix.EVFILT_WRITE,
			hup:      e.Flags&unix.EV_EOF != 0,
			failed:   e.Flags&unix.EV_EOF != 0 && e.Fflags != 0,
		}
		k++
	}
	return k, nil
}

func rawRead(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func rawWrite(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Write(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func rawAccept(fd int) (int, unix.Sockaddr, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, sa, err := unix.Accept(fd)
	if err == nil {
		unix.CloseOnExec(n)
		err = unix.SetNonblock(n, true)
	}
	return n, sa, err
}

func rawSocket(domain, typ int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(domain, typ, 0)
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

const acceptInherits = false

func setKeepAlive(fd int) { unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) }
