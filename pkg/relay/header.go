package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// A Kind says what a stream is for.
type Kind uint8

// The kinds of stream.
const (
	KindConnect  Kind = 1 // public to private: a visitor's connection to a service
	KindAnnounce Kind = 2 // private to public: the list of services, and the answer to it
	KindNotice   Kind = 3 // what one side tells the other; the header says it all
	KindFlow     Kind = 4 // public to private: the datagrams of a visitor and a service
	KindDiscover Kind = 5 // public to private: an operator looks for cameras: a DiscoverRequest, and the reply
	KindFile     Kind = 6 // public to private: a file of a service: a FileRequest, a FileReply, and the file
	KindOperate  Kind = 7 // operator to public, and public to private: TLS of an operator and the private relay, see OperateRequest
)

// What a notice says in place of a service.
const (
	NoticeActive  = "active"  // public to private: the site's visitors come through this session
	NoticeStandby = "standby" // public to private: they come through another one
	NoticeChoice  = "choice"  // private to public: Hello.Choice is Host now
)

const headerVersion = 1

// A Header opens every stream.
//
//	u8 version = 1
//	u8 kind
//	u8 n, n bytes   service   1 to 64 for connect, notice, flow and file, 1 to 65 for operate, 0 for announce and discover
//	u8 n, n bytes   scheme    0 to 16 of a-z
//	u8 n, n bytes   host      0 to 253 visible ASCII characters
//	u8 n, n bytes   address   n is 0, 4 or 16
//	u16 port        only if n is not 0; big-endian
type Header struct {
	Kind    Kind
	Service string         // name, for connect, flow and file, and for operate, which has some that begin with a dot; for notice one of the above
	Scheme  string         // of the listener that took the visitor: "https", "http", "tls", "tcp", "udp", "tftp"; "operate" for an operator
	Host    string         // that the visitor asked for, without port; may be ""; for NoticeChoice the text, which may have spaces; for operate the operator's name
	Visitor netip.AddrPort // may be the zero value
}

// Append appends the encoded header to b. It fails if a field is out of bounds.
func (h Header) Append(b []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	b = append(b, headerVersion, byte(h.Kind))
	for _, s := range [...]string{h.Service, h.Scheme, h.Host} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	if !h.Visitor.IsValid() {
		return append(b, 0), nil
	}
	addr := h.Visitor.Addr().Unmap().WithZone("").AsSlice()
	b = append(b, byte(len(addr)))
	b = append(b, addr...)
	return binary.BigEndian.AppendUint16(b, h.Visitor.Port()), nil
}

// DecodeHeader decodes all of b. The header does not refer to b.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) > MaxHeader {
		return Header{}, fmt.Errorf("stream header: %d bytes, more than %d", len(b), MaxHeader)
	}
	if len(b) < 2 {
		return Header{}, errHeaderShort
	}
	if b[0] != headerVersion {
		return Header{}, fmt.Errorf("stream header: version %d, this relay knows %d", b[0], headerVersion)
	}
	h := Header{Kind: Kind(b[1])}
	b = b[2:]
	for _, s := range [...]*string{&h.Service, &h.Scheme, &h.Host} {
		f, rest, ok := cutField(b)
		if !ok {
			return Header{}, errHeaderShort
		}
		*s, b = string(f), rest
	}
	addr, b, ok := cutField(b)
	if !ok {
		return Header{}, errHeaderShort
	}
	if len(addr) != 0 {
		a, ok := netip.AddrFromSlice(addr)
		if !ok || a.Is4In6() {
			return Header{}, fmt.Errorf("stream header: malformed address %x", addr)
		}
		if len(b) < 2 {
			return Header{}, errHeaderShort
		}
		h.Visitor = netip.AddrPortFrom(a, binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) != 0 {
		return Header{}, fmt.Errorf("stream header: %d bytes after its end", len(b))
	}
	return h, h.check()
}

var errHeaderShort = errors.New("stream header: truncated")

func cutField(b []byte) (field, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return nil, nil, false
	}
	n := 1 + int(b[0])
	return b[1:n], b[n:], true
}

func (h Header) check() error {
	switch h.Kind {
	case KindConnect, KindFlow, KindFile:
		if err := CheckName(h.Service); err != nil {
			return fmt.Errorf("stream header: service: %w", err)
		}
	case KindOperate:
		if err := CheckOperate(h.Service); err != nil {
			return fmt.Errorf("stream header: service: %w", err)
		}
	case KindAnnounce, KindDiscover:
		if h.Service != "" {
			return errors.New("stream header: announce or discover with a service")
		}
	case KindNotice:
		if h.Service != NoticeActive && h.Service != NoticeStandby && h.Service != NoticeChoice {
			return fmt.Errorf("stream header: unknown notice %q", clip(h.Service))
		}
	default:
		return fmt.Errorf("stream header: unknown kind %d", h.Kind)
	}
	if len(h.Scheme) > 16 {
		return errors.New("stream header: scheme is too long")
	}
	for i := range len(h.Scheme) {
		if c := h.Scheme[i]; c < 'a' || c > 'z' {
			return fmt.Errorf("stream header: malformed scheme %q", h.Scheme)
		}
	}
	if len(h.Host) > 253 {
		return errors.New("stream header: host is too long")
	}
	for i := range len(h.Host) {
		if c := h.Host[i]; c < ' ' || c == ' ' && h.Kind != KindNotice || c > '~' {
			return errors.New("stream header: malformed host")
		}
	}
	return nil
}
