//go:build linux

package evloop

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const havePoller = true

// epoll waits on an epoll descriptor that is itself registered with Go's poller: a loop that sleeps blocks no
// thread, and wakes like any other goroutine. All its system calls return at once, so they are raw: the scheduler
// need not know of them.
type epoll struct {
	fd       int
	wakeFd   int
	file     *os.File // fd
	raw      syscall.RawConn
	try      func(uintptr) bool
	deadline time.Time // that file has
	buf      [256]unix.EpollEvent
	n        int
	err      error

	mu     sync.Mutex
	closed bool
}

const wakeToken = ^uint64(0)

func newPoller() (poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that os.File registers it with Go's poller
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &epoll{fd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	p.try = p.tryWait
	if p.wakeFd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		p.file.Close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	if p.raw, err = p.file.SyscallConn(); err == nil {
		err = p.add(p.wakeFd, wakeToken, false)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *epoll) add(fd int, token uint64, writes bool) error {
	e := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff,
		Fd:     int32(token),
		Pad:    int32(token >> 32),
	}
	if writes {
		e.Events |= unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e))
}

func (p *epoll) remove(fd int) { unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{}) }

func (p *epoll) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		one := uint64(1)
		rawWrite(p.wakeFd, (*[8]byte)(unsafe.Pointer(&one))[:])
	}
}

func (p *epoll) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.file.Close()
	unix.Close(p.wakeFd)
}

// tryWait collects events without blocking and reports whether there were any.
func (p *epoll) tryWait(uintptr) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.buf[0])), uintptr(len(p.buf)), 0, 0, 0)
	if errno != 0 {
		p.n = 0
		p.err = nil
		if errno != unix.EINTR {
			p.err = os.NewSyscallError("epoll_pwait", errno)
		}
		return p.err != nil
	}
	p.n, p.err = int(n), nil
	return n > 0
}

func (p *epoll) wait(block bool, deadline time.Time, events []event) (int, error) {
	if !p.tryWait(0) && block {
		if !deadline.Equal(p.deadline) {
			p.deadline = deadline
			p.file.SetReadDeadline(deadline)
		}
		err := p.raw.Read(p.try)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
	}
	if p.err != nil {
		return 0, p.err
	}
	k := 0
	for i := range p.n {
		e := &p.buf[i]
		token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
		if token == wakeToken {
			continue // edge-triggered: the counter need not be read
		}
		events[k] = event{
			token:    token,
			readable: e.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0,
			writable: e.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0,
			hup:      e.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0,
			failed:   e.Events&unix.EPOLLERR != 0,
		}
		k++
	}
	return k, nil
}

// rawRead, rawWrite and rawAccept are for descriptors that do not block.
func rawRead(fd int, b []byte) (int, error) { return rawCall(unix.SYS_READ, fd, b) }

func rawWrite(fd int, b []byte) (int, error) { return rawCall(unix.SYS_WRITE, fd, b) }

func rawCall(trap uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func rawAccept(fd int) (int, unix.Sockaddr, error) {
	return unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
}

func rawSocket(domain, typ int) (int, error) {
	return unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}

// acceptInherits says that an accepted socket has the options of its listener.
const acceptInherits = true

// setKeepAlive lets the system find out about peers that are gone after some four minutes.
func setKeepAlive(fd int) {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 120)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 30)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4)
}
