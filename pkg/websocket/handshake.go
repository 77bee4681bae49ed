package websocket

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha1" // what RFC 6455 prescribes; nothing depends on its strength
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
)

// maxResponse bounds the answer to the opening handshake, in bytes.
const maxResponse = 8 << 10

// NewKey returns a random Sec-WebSocket-Key.
func NewKey() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

// AcceptKey computes Sec-WebSocket-Accept (rfc6455#section-4.2.2).
func AcceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// AppendRequest appends a client's opening handshake for a path on a host.
func AppendRequest(b []byte, host, path, key string) []byte {
	return fmt.Appendf(b, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", path, host, key)
}

// AppendResponse appends a server's answer to a request with that key. protocol is
// the one that was chosen of those in the request's Sec-WebSocket-Protocol; "": none.
func AppendResponse(b []byte, key, protocol string) []byte {
	b = fmt.Appendf(b, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\n", AcceptKey(key))
	if protocol != "" {
		b = fmt.Appendf(b, "Sec-WebSocket-Protocol: %s\r\n", protocol)
	}
	return append(b, "\r\n"...)
}

// CheckRequest checks a GET request of HTTP/1.1 as rfc6455#section-4.2.1 asks and
// returns its key. get returns the value of a header field, with the values of a
// repeated one joined by commas, or "".
func CheckRequest(get func(name string) string) (key string, err error) {
	if !hasToken(get("Upgrade"), "websocket") {
		return "", errors.New("websocket: request: no Upgrade: websocket")
	}
	if !hasToken(get("Connection"), "upgrade") {
		return "", errors.New("websocket: request: no Connection: Upgrade")
	}
	if v := get("Sec-WebSocket-Version"); v != "13" {
		return "", fmt.Errorf("websocket: request: version %.10q, want 13", v)
	}
	key = get("Sec-WebSocket-Key")
	if b, err := base64.StdEncoding.DecodeString(key); err != nil || len(b) != 16 {
		return "", errors.New("websocket: request: malformed Sec-WebSocket-Key")
	}
	return key, nil
}

// A StatusError is the answer of a server that did not switch protocols.
type StatusError struct {
	Code   int
	Status string // "404 Not Found"
}

func (e *StatusError) Error() string { return "answered " + e.Status }

// ReadResponse looks for the whole answer to a request with that key at the start
// of b and returns its length, or 0 if more is needed. The error is a *StatusError
// for a status other than 101; other answers that are not what rfc6455#section-4.1
// asks for have other errors.
func ReadResponse(b []byte, key string) (n int, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if !bytes.HasPrefix(b, []byte("HTTP/1.1 ")[:min(len(b), 9)]) {
			return 0, errors.New("websocket: response: is not HTTP/1.1")
		}
		if len(b) > maxResponse {
			return 0, fmt.Errorf("websocket: response: more than %d bytes", maxResponse)
		}
		return 0, nil
	}
	n = end + 4
	if n > maxResponse {
		return 0, fmt.Errorf("websocket: response: more than %d bytes", maxResponse)
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b[:n])), nil)
	if err != nil {
		return 0, fmt.Errorf("websocket: response: %w", err)
	}
	res.Body.Close()
	get := func(name string) string { return strings.Join(res.Header[textproto.CanonicalMIMEHeaderKey(name)], ",") }
	switch {
	case res.ProtoMajor != 1 || res.ProtoMinor != 1:
		return 0, errors.New("websocket: response: is not HTTP/1.1")
	case res.StatusCode != 101:
		return 0, &StatusError{res.StatusCode, fmt.Sprintf("%d %s", res.StatusCode, http.StatusText(res.StatusCode))}
	case !hasToken(get("Upgrade"), "websocket") || !hasToken(get("Connection"), "upgrade"):
		return 0, errors.New("websocket: response: does not upgrade to websocket")
	case get("Sec-WebSocket-Accept") != AcceptKey(key):
		return 0, errors.New("websocket: response: wrong Sec-WebSocket-Accept")
	case get("Sec-WebSocket-Extensions") != "" || get("Sec-WebSocket-Protocol") != "":
		return 0, errors.New("websocket: response: has an extension or a protocol that was not asked for")
	}
	return n, nil
}

// hasToken reports whether a comma-separated list has a token, in any case.
func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(t, " \t"), token) {
			return true
		}
	}
	return false
}
