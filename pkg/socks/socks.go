// Package socks is a server of SOCKS 5 (RFC 1928, with the login of RFC 1929), and the rules of who may be reached through one.
//
//	s := &socks.Server{Dial: func(ctx context.Context, network, address string) (socks.Conn, error) { … }}
//	s.Serve(ctx, listener)
//
// The negotiation is a state machine without I/O; Server runs it on connections, one goroutine each. Names are not looked up
// here: Dial gets what the client has asked for. Rules say which addresses a site lets be reached, after names were looked up.
//
// Invariants: what a client sends before it is served is bounded in bytes and in time. CONNECT and UDP ASSOCIATE are served; BIND is refused. An
// address is checked after the look-up and dialled as it was checked, so that a name cannot change its mind in between.
package socks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Command is what a client asks for (rfc1928#section-4).
type Command byte

const (
	Connect   Command = 1
	Bind      Command = 2
	Associate Command = 3 // UDP
)

// Reply says what came of a request (rfc1928#section-6).
type Reply byte

const (
	Succeeded          Reply = 0
	Failed             Reply = 1
	NotAllowed         Reply = 2
	NetworkUnreachable Reply = 3
	HostUnreachable    Reply = 4
	Refused            Reply = 5
	Expired            Reply = 6 // TTL; clients say "timed out"
	NotSupported       Reply = 7 // command
	AddressType        Reply = 8 // not supported
)

const (
	version      = 5
	loginVersion = 1

	methodNone  = 0x00
	methodLogin = 0x02
	methodNo    = 0xff // none of them will do

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4
)

// Request is what a client asks for.
type Request struct {
	Command Command
	Host    string // an address, or a name as the client has sent it: 1 to 255 bytes, visible ASCII
	Port    uint16
}

// Errors of a negotiation: the client cannot be served, and has been told why as far as the protocol can say it.
var (
	ErrVersion  = errors.New("the client does not speak SOCKS 5")
	ErrSocks4   = errors.New("the client speaks SOCKS 4, which cannot carry names safely: have it speak SOCKS 5 (curl: --socks5-hostname)")
	ErrHTTP     = errors.New("the client speaks HTTP: it takes this for an HTTP proxy, and it is one of SOCKS 5 (curl: --socks5-hostname)")
	ErrMethods  = errors.New("the client offers no way to log in that would do")
	ErrLogin    = errors.New("wrong user or password")
	ErrProtocol = errors.New("the client breaks the protocol")
)

// state goes down its list.
type state uint8

const (
	greeting state = iota // the methods that the client offers
	login                 // user and password
	request
	over
)

// Negotiation is the server's side of one connection until it is known what the client wants. The zero value asks for no login.
type Negotiation struct {
	// Login says whether a user may log in. nil: nobody has to.
	Login func(user, password string) bool

	state state
}

// Receive takes b, which begins with what was not used before, and returns how much of it was used, dst with the answer appended,
// and the request, once it is there. At most 513 bytes are waited for. With an error the answer is to be sent, and the connection to be closed.
func (n *Negotiation) Receive(b, dst []byte) (used int, out []byte, req *Request, err error) {
	for {
		var size int
		switch n.state {
		case greeting:
			size, dst, err = n.greet(b[used:], dst)
		case login:
			size, dst, err = n.logIn(b[used:], dst)
		case request:
			size, dst, req, err = n.request(b[used:], dst)
		default:
			return used, dst, nil, nil
		}
		used += size
		if err != nil || req != nil {
			n.state = over
			return used, dst, req, err
		}
		if size == 0 {
			return used, dst, nil, nil
		}
	}
}

// greet takes VER NMETHODS METHODS (rfc1928#section-3) and answers with VER METHOD.
func (n *Negotiation) greet(b, dst []byte) (int, []byte, error) {
	if len(b) == 0 {
		return 0, dst, nil
	}
	switch c := b[0]; {
	case c == 4:
		return 0, append(dst, 0, 91, 0, 0, 0, 0, 0, 0), ErrSocks4 // its "request rejected"
	case c >= 'A' && c <= 'Z':
		return 0, append(dst, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 22\r\n\r\nthis is a SOCKS proxy\n"...), ErrHTTP
	case c != version:
		return 0, dst, ErrVersion
	case len(b) < 2 || len(b) < 2+int(b[1]):
		return 0, dst, nil
	}
	want := byte(methodNone)
	if n.Login != nil {
		want = methodLogin
	}
	size := 2 + int(b[1])
	for _, m := range b[2:size] {
		if m == want {
			n.state = request
			if n.Login != nil {
				n.state = login
			}
			return size, append(dst, version, want), nil
		}
	}
	return size, append(dst, version, methodNo), ErrMethods
}

// logIn takes VER ULEN UNAME PLEN PASSWD (rfc1929#section-2) and answers with VER STATUS.
func (n *Negotiation) logIn(b, dst []byte) (int, []byte, error) {
	if len(b) < 2 {
		return 0, dst, nil
	}
	if b[0] != loginVersion {
		return 0, append(dst, loginVersion, 1), ErrProtocol
	}
	at := 2 + int(b[1])
	if len(b) <= at || len(b) < at+1+int(b[at]) {
		return 0, dst, nil
	}
	size := at + 1 + int(b[at])
	if !n.Login(string(b[2:at]), string(b[at+1:size])) {
		return size, append(dst, loginVersion, 1), ErrLogin
	}
	n.state = request
	return size, append(dst, loginVersion, 0), nil
}

// request takes VER CMD RSV ATYP DST.ADDR DST.PORT (rfc1928#section-4).
func (n *Negotiation) request(b, dst []byte) (int, []byte, *Request, error) {
	if len(b) < 4 {
		return 0, dst, nil, nil
	}
	if b[0] != version || b[2] != 0 {
		return 0, AppendReply(dst, Failed, netip.AddrPort{}), nil, ErrProtocol
	}
	host, port, size, err := parseAddress(b[3:])
	switch {
	case errors.Is(err, errType):
		return 0, AppendReply(dst, AddressType, netip.AddrPort{}), nil, err
	case err != nil:
		return 0, AppendReply(dst, Failed, netip.AddrPort{}), nil, err
	case size == 0:
		return 0, dst, nil, nil
	}
	req := &Request{Command: Command(b[1]), Host: host, Port: port}
	if req.Command == Connect && port == 0 {
		return 3 + size, AppendReply(dst, Failed, netip.AddrPort{}), nil, fmt.Errorf("%w: there is no port 0", ErrProtocol)
	}
	return 3 + size, dst, req, nil
}

var errType = fmt.Errorf("%w: a type of address that there is not", ErrProtocol)

// parseAddress takes ATYP ADDR PORT. size is 0 if there is not all of it.
func parseAddress(b []byte) (host string, port uint16, size int, err error) {
	if len(b) < 2 {
		return "", 0, 0, nil
	}
	from, to := 1, 0
	switch b[0] {
	case typeIPv4:
		to = from + 4
	case typeIPv6:
		to = from + 16
	case typeName:
		from = 2
		to = from + int(b[1])
	default:
		return "", 0, 0, errType
	}
	if len(b) < to+2 {
		return "", 0, 0, nil
	}
	if b[0] == typeName {
		for _, c := range b[from:to] {
			if c <= ' ' || c > '~' {
				return "", 0, 0, fmt.Errorf("%w: a name with unprintable characters", ErrProtocol)
			}
		}
		if host = string(b[from:to]); host == "" {
			return "", 0, 0, fmt.Errorf("%w: an empty name", ErrProtocol)
		}
		if a, err := netip.ParseAddr(host); err == nil { // curl and browsers send addresses as names, too
			host = a.WithZone("").String()
		}
	} else {
		a, _ := netip.AddrFromSlice(b[from:to])
		host = a.Unmap().String()
	}
	return host, binary.BigEndian.Uint16(b[to:]), to + 2, nil
}

// AppendReply appends VER REP RSV ATYP BND.ADDR BND.PORT. The zero address is 0.0.0.0:0.
func AppendReply(dst []byte, r Reply, bound netip.AddrPort) []byte {
	return appendAddress(append(dst, version, byte(r), 0), bound)
}

// appendAddress appends ATYP ADDR PORT.
func appendAddress(dst []byte, a netip.AddrPort) []byte {
	addr := a.Addr().Unmap()
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	if addr.Is4() {
		dst = append(dst, typeIPv4)
	} else {
		dst = append(dst, typeIPv6)
	}
	dst = append(dst, addr.AsSlice()...)
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

// ParseDatagram reads the head of a datagram of a client (rfc1928#section-7): RSV RSV FRAG ATYP DST.ADDR DST.PORT. ok is false
// for what is malformed, or a fragment, which need not be taken.
func ParseDatagram(b []byte) (host string, port uint16, payload []byte, ok bool) {
	if len(b) < 4 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return "", 0, nil, false
	}
	host, port, size, err := parseAddress(b[3:])
	if err != nil || size == 0 || port == 0 {
		return "", 0, nil, false
	}
	return host, port, b[3+size:], true
}

// AppendDatagramHead appends the head of a datagram to a client: from is the host and port that it comes from.
func AppendDatagramHead(dst []byte, host string, port uint16) []byte {
	dst = append(dst, 0, 0, 0)
	if a, err := netip.ParseAddr(host); err == nil {
		return appendAddress(dst, netip.AddrPortFrom(a, port))
	}
	host = host[:min(len(host), 255)]
	dst = append(append(dst, typeName, byte(len(host))), host...)
	return binary.BigEndian.AppendUint16(dst, port)
}
