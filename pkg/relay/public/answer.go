package public

import (
	"strconv"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/websocket"
)

// What answers of our own are made of, in HTTP/2 and HTTP/3. Never written to.
var (
	grpcType  = []byte("application/grpc")
	nameDate  = []byte("date")
	nameRetry = []byte("retry-after")
	valRetry  = []byte(retryAfter)
	usual     = []http1.Field{
		{Name: []byte("content-type"), Value: []byte("text/plain; charset=utf-8")},
		{Name: []byte("x-content-type-options"), Value: []byte("nosniff")},
		{Name: []byte("cache-control"), Value: []byte("no-store")},
	}
)

// compose makes the answer t to a request in HTTP/2 or HTTP/3, and returns its body:
// nil if there is none. A client of gRPC looks for its own status in the fields, and
// takes an answer that has none for another one than what it means.
func compose(res *http1.Response, t *trouble, grpc bool, now time.Time, fields []http1.Field) (body []byte) {
	*res = http1.Response{Minor: 1, Status: t.status, ContentLength: -1}
	res.Fields = append(res.Fields, http1.Field{Name: nameDate, Value: http1.AppendDate(nil, now)})
	if grpc {
		res.Status = 200
		res.Fields = append(append(res.Fields, http1.Field{Name: usual[0].Name, Value: grpcType},
			http1.Field{Name: []byte("grpc-status"), Value: strconv.AppendInt(nil, int64(grpcStatus(t.status)), 10)},
			http1.Field{Name: []byte("grpc-message"), Value: []byte(t.text)}), fields...)
		return nil
	}
	res.Fields = append(append(res.Fields, usual...), fields...)
	if t.status == 503 {
		res.Fields = append(res.Fields, http1.Field{Name: nameRetry, Value: valRetry})
	}
	res.Framing, res.ContentLength = http1.Length, int64(len(t.text)+1)
	return append([]byte(t.text), '\n')
}

// grpcStatus is what an answer of ours means to a client of gRPC. It is close to what
// gRPC itself makes of such an answer (grpc/doc/http-grpc-status-mapping.md).
func grpcStatus(status int) int {
	const (
		unknown           = 2
		deadlineExceeded  = 4
		permissionDenied  = 7
		resourceExhausted = 8
		unimplemented     = 12
		internal          = 13
		unavailable       = 14
		unauthenticated   = 16
	)
	switch status {
	case 400, 417:
		return internal
	case 401:
		return unauthenticated
	case 403:
		return permissionDenied
	case 404, 405, 501, 505:
		return unimplemented
	case 408:
		return deadlineExceeded
	case 413, 414, 431:
		return resourceExhausted
	case 421, 429, 502, 503, 504:
		return unavailable
	}
	return unknown
}

// A request for a WebSocket has no key in HTTP/2 and HTTP/3, where the handshake of
// rfc6455#section-4 has no use (rfc8441#section-5). Between a front and a back it is as in
// HTTP/1.1: a front adds the key, and checks the answer.

// addKey adds a key to req if it asks for a WebSocket, and returns it: "" if not.
func addKey(req *http1.Request) (key string) {
	if !http1.EqualFold(req.Upgrade, "websocket") {
		return ""
	}
	key = websocket.NewKey()
	req.Fields = append(http1.Remove(req.Fields, keyNames), http1.Field{Name: nameKey, Value: []byte(key)})
	return key
}

// accepts reports whether res accepts the WebSocket that was asked for with key. An
// upgrade to something else has no key.
func accepts(res *http1.Response, key string) bool {
	return key == "" || http1.EqualFold(res.Upgrade, "websocket") && string(http1.Get(res.Fields, "sec-websocket-accept")) == websocket.AcceptKey(key)
}

var keyNames = []string{"sec-websocket-key"}

var nameKey = []byte("Sec-WebSocket-Key")
