package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
)

// Sockets are the sockets that the service manager has opened for the process, see sd_listen_fds(3). They are open
// while the process is restarted: connections wait in them until it is back. The nil *Sockets has none.
type Sockets struct {
	mu   sync.Mutex
	list []*socket
}

// socket is one of Sockets.
type socket struct {
	file    *os.File
	name    string // FileDescriptorName of the unit; by default that of the unit itself
	network string // "tcp" or "udp"
	addr    netip.AddrPort
	used    bool
}

// newSocket finds out what kind of socket f is, which it owns.
func newSocket(f *os.File, name string) (*socket, error) {
	var addr net.Addr
	if ln, err := net.FileListener(f); err == nil {
		addr = ln.Addr()
		ln.Close() // a copy
	} else if pc, err := net.FilePacketConn(f); err == nil {
		addr = pc.LocalAddr()
		pc.Close()
	}
	s := &socket{file: f, name: name}
	switch a := addr.(type) {
	case *net.TCPAddr:
		s.network, s.addr = "tcp", a.AddrPort()
	case *net.UDPAddr:
		s.network, s.addr = "udp", a.AddrPort()
	default:
		return nil, fmt.Errorf("inherited socket %q is neither a listening TCP socket nor a UDP socket", name)
	}
	s.addr = netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port())
	return s, nil
}

// Files returns the sockets of a listener: those with its address, such as ":443" on "tcp", or else those with its
// name. There may be several, one for IPv4 and one for IPv6. They are lent, and may be asked for again.
func (s *Sockets) Files(name, network, address string) []*os.File {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var files []*os.File
	for _, match := range []func(*socket) bool{
		func(one *socket) bool { return one.at(address) },
		func(one *socket) bool { return one.name == name },
	} {
		for _, one := range s.list {
			if one.network == network && match(one) {
				one.used = true
				files = append(files, one.file)
			}
		}
		if files != nil {
			break
		}
	}
	return files
}

// at reports whether a listener with that address would be bound where the socket is.
func (s *socket) at(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != fmt.Sprint(s.addr.Port()) {
		return false
	}
	ip, err := netip.ParseAddr(host)
	if host == "" || err == nil && ip.IsUnspecified() {
		return s.addr.Addr().IsUnspecified()
	}
	return err == nil && ip.Unmap() == s.addr.Addr()
}

// Unused returns the addresses of the sockets that nobody has asked for yet. Connections to them wait for ever.
func (s *Sockets) Unused() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, one := range s.list {
		if !one.used {
			list = append(list, fmt.Sprintf("%s (%s://%s)", one.name, one.network, one.addr))
		}
	}
	return list
}
