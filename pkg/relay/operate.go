package relay

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Services that a private relay answers by itself for operators, see KindOperate. Their names begin with a dot, as those
// of no other service do.
const (
	ServicePing  = ".ping"  // sends back what it is sent
	ServiceBench = ".bench" // takes (BenchSink) or sends (BenchSource) as much as the path lets through
	ServiceSocks = ".socks" // OperateRequest.Address, as far as the site allows
)

// What OperateRequest.Address says for ServiceBench.
const (
	BenchSink   = "sink"   // takes all, and answers the end of it with the number of bytes, 8 of them, big-endian
	BenchSource = "source" // sends until the operator ends its own direction, BenchTime at most
)

// MaxOperateText bounds the text of an OperateError, in bytes, and MaxAddress an OperateRequest.Address.
const (
	MaxOperateText = 512
	MaxAddress     = 300
)

// MaxOperateKeys bounds the keys in an OperateReply.
const MaxOperateKeys = 48

// An OperateHello is the first message on a link of an operator, whose token was in the request for the upgrade. A
// Welcome answers it.
type OperateHello struct {
	Version  int    `json:"version"`            // WireVersion
	Session  string `json:"session,omitempty"`  // 16 bytes in hex: the session to go on with, or ""
	Resume   string `json:"resume,omitempty"`   // 32 bytes in hex: the secret that came with it, or ""
	Software string `json:"software,omitempty"` // for people
}

// An OperateReply is the first that the public relay writes on a stream of KindOperate that an operator has opened.
// Behind it are the bytes of the private relay, of which it understands none.
type OperateReply struct {
	Error *OperateError `json:"error,omitempty"` // if not nil, there is nothing behind it
	Keys  []string      `json:"keys,omitempty"`  // of the site: its private relays have these, as far as the public relay knows
}

// An OperateRequest is what an operator first writes to a private relay, in the TLS on a stream of KindOperate.
type OperateRequest struct {
	Service string `json:"service"`           // as in the header of the stream
	Network string `json:"network,omitempty"` // "tcp", also if empty, or "udp": datagrams, each behind its length in two bytes
	Address string `json:"address,omitempty"` // for ServiceSocks HOST:PORT, for ServiceBench what to do
	Probe   bool   `json:"probe,omitempty"`   // only say whether it could be: the target is not asked
}

// An OperateAnswer answers an OperateRequest. Without Error the bytes of the target are behind it.
type OperateAnswer struct {
	Error  *OperateError `json:"error,omitempty"`
	Scheme string        `json:"scheme,omitempty"` // of the target: "tcp", "http", "file", …
}

// An OperateError tells an operator why there is no connection. It travels.
type OperateError struct {
	Code OperateCode `json:"code"`
	Text string      `json:"text"` // for people; visible ASCII
}

func (e *OperateError) Error() string { return e.Text }

// An OperateCode says of what sort an OperateError is.
type OperateCode string

// The codes of an OperateError.
const (
	OperateNotFound    OperateCode = "not-found"   // there is no such service
	OperateForbidden   OperateCode = "forbidden"   // this operator may not
	OperateNetwork     OperateCode = "network"     // the service has datagrams and not a stream, or the other way round, or neither
	OperateUnreachable OperateCode = "unreachable" // the target is not reachable, or its name is unknown
	OperateRefused     OperateCode = "refused"     // the target refused the connection
	OperateTimeout     OperateCode = "timeout"     // the target did not answer in time
	OperateOverload    OperateCode = "overload"    // there are too many already
	OperateAway        OperateCode = "away"        // the site has no private relay connected
	OperateInternal    OperateCode = "internal"    // a fault of the relay that says so
)

// NewOperateError makes an error whose text is fit to travel.
func NewOperateError(code OperateCode, format string, args ...any) *OperateError {
	text := fmt.Sprintf(format, args...)
	return &OperateError{Code: code, Text: strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, text[:min(len(text), MaxOperateText)])}
}

// CheckOperate reports what is wrong with the name of a service that an operator wants: that of a service of the site, or
// one of those whose name begins with a dot.
func CheckOperate(name string) error {
	if rest, ok := strings.CutPrefix(name, "."); ok {
		return CheckName(rest)
	}
	return CheckName(name)
}

// AppendOperate appends a message to dst as it is on a stream: behind its length in two bytes. v is valid.
func AppendOperate[T OperateRequest | OperateAnswer | OperateReply](dst []byte, v T) []byte {
	b, err := json.Marshal(v)
	if err != nil || len(b) > MaxMessage {
		panic(fmt.Sprintf("BUG: %d bytes of an operator's message, %v", len(b), err)) // there is nothing in these types that can fail
	}
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

// CutOperate cuts what AppendOperate has made from the beginning of b. If there is not all of it, message is nil. It
// fails as soon as it is longer than it may be.
func CutOperate(b []byte) (message, rest []byte, err error) {
	if len(b) < 2 {
		return nil, b, nil
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > MaxMessage {
		return nil, nil, fmt.Errorf("operate: a message of %d bytes, want 1 to %d", n, MaxMessage)
	}
	if len(b) < 2+n {
		return nil, b, nil
	}
	return b[2 : 2+n], b[2+n:], nil
}

// DecodeOperateHello decodes and checks an OperateHello. The error is always a *Refusal, to be sent back.
func DecodeOperateHello(b []byte) (OperateHello, error) {
	var h OperateHello
	if err := decodeJSON(b, MaxMessage, "hello", &h); err != nil {
		return OperateHello{}, malformed(err)
	}
	switch {
	case h.Version != WireVersion:
		older := "update the relay"
		if h.Version < WireVersion {
			older = "update tunnelctl"
		}
		return OperateHello{}, &Refusal{Code: RefuseVersion, Message: fmt.Sprintf("the operator speaks version %d, the public relay version %d: %s", h.Version, WireVersion, older)}
	case (h.Session == "") != (h.Resume == ""):
		return OperateHello{}, malformed(errors.New("hello: session and resume come together"))
	case h.Session != "" && (!isHex(h.Session, 16) || !isHex(h.Resume, 32)):
		return OperateHello{}, malformed(errors.New("hello: malformed session or resume"))
	case !isSoftware(h.Software):
		return OperateHello{}, malformed(errors.New("hello: malformed software"))
	}
	return h, nil
}

// DecodeOperateRequest decodes and checks a message.
func DecodeOperateRequest(message []byte) (OperateRequest, error) {
	var r OperateRequest
	if err := decodeJSON(message, MaxMessage, "operate request", &r); err != nil {
		return OperateRequest{}, err
	}
	return r, r.Check()
}

// Check reports what is wrong with r.
func (r OperateRequest) Check() error {
	switch {
	case CheckOperate(r.Service) != nil:
		return fmt.Errorf("operate request: service: %w", CheckOperate(r.Service))
	case r.Network != "" && r.Network != "tcp" && r.Network != "udp":
		return fmt.Errorf("operate request: unknown network %q", clip(r.Network))
	case len(r.Address) > MaxAddress || !isPrintable(r.Address):
		return errors.New("operate request: malformed address")
	}
	return nil
}

// DecodeOperateAnswer decodes and checks a message.
func DecodeOperateAnswer(message []byte) (OperateAnswer, error) {
	var a OperateAnswer
	if err := decodeJSON(message, MaxMessage, "operate answer", &a); err != nil {
		return OperateAnswer{}, err
	}
	if len(a.Scheme) > 16 || !isPrintable(a.Scheme) {
		return OperateAnswer{}, errors.New("operate answer: malformed scheme")
	}
	return a, a.Error.check("operate answer")
}

// DecodeOperateReply decodes and checks a message.
func DecodeOperateReply(message []byte) (OperateReply, error) {
	var r OperateReply
	if err := decodeJSON(message, MaxMessage, "operate reply", &r); err != nil {
		return OperateReply{}, err
	}
	if len(r.Keys) > MaxOperateKeys {
		return OperateReply{}, fmt.Errorf("operate reply: %d keys, more than %d", len(r.Keys), MaxOperateKeys)
	}
	for _, k := range r.Keys {
		if !isKey(k) {
			return OperateReply{}, errors.New("operate reply: malformed key")
		}
	}
	return r, r.Error.check("operate reply")
}

// check reports what is wrong with e, which may be nil.
func (e *OperateError) check(what string) error {
	if e == nil {
		return nil
	}
	if e.Code == "" || len(e.Code) > 32 || !isPrintable(string(e.Code)) || len(e.Text) > MaxOperateText || !isPrintable(e.Text) {
		return fmt.Errorf("%s: malformed error", what)
	}
	return nil
}
