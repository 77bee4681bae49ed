package http2

import (
	"errors"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// carrier joins a Conn to a connection of an event loop, as a server's visitor and a client's target do.
type carrier struct {
	conn *evloop.Conn
	c    *Conn
	err  error // of Receive
	over func(error)
}

func (x *carrier) OnData(b []byte) int {
	used, err := x.c.Receive(b, x.conn.Loop().Now())
	if err != nil {
		x.err = err
		x.conn.Close()
	}
	return used
}

func (x *carrier) OnEOF() {
	x.c.Close(errLost)
	x.conn.Close()
}

func (x *carrier) OnDrain() { x.c.Flush() }

func (x *carrier) OnClose(err error) {
	x.c.Close(errLost)
	if x.over != nil {
		x.over(err)
	}
}

func (x *carrier) OnOutput() { x.conn.Loop().AfterTurn(x.c.Flush) }

var errLost = errors.New("connection lost")

// testServer answers requests by their path.
type testServer struct {
	carrier
}

func (v *testServer) OnReject(s *Stream, err *http1.Error) {
	s.Respond(&http1.Response{Status: err.Status, ContentLength: -1}, true)
}

func field(name, value string) http1.Field {
	return http1.Field{Name: []byte(name), Value: []byte(value)}
}

func (v *testServer) OnRequest(s *Stream, req *http1.Request, end bool) {
	x := &testExchange{s: s}
	s.SetHandler(x)
	res := &http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}
	switch string(req.Path) {
	case "/echo": // with trailers
		x.echo = true
		if cookie := http1.Get(req.Fields, "cookie"); cookie != nil {
			res.Fields = append(res.Fields, http1.Field{Name: []byte("X-Cookie"), Value: cookie})
		}
		s.Respond(res, false)
	case "/early":
		s.Respond(&http1.Response{Status: 103, ContentLength: -1, Fields: []http1.Field{field("Link", "</a.css>")}}, false)
		s.Respond(&http1.Response{Status: 100, ContentLength: -1}, false)
		res.Fields = append(res.Fields, field("Connection", "close"), field("Keep-Alive", "1"))
		s.Respond(res, false)
		s.Write([]byte("late"))
		s.CloseWrite()
	case "/bytes":
		x.left, _ = strconv.Atoi(string(req.Query))
		res.Framing, res.ContentLength = http1.Length, int64(x.left)
		if string(req.Method) == "HEAD" {
			x.left = 0
		}
		s.Respond(res, x.left == 0)
		x.OnDrain()
	case "/upload":
		x.count = true
	case "/reset":
		s.Reset(CodeRefused)
	case "/ws":
		if string(req.Upgrade) != "websocket" {
			s.Respond(&http1.Response{Status: 400, ContentLength: -1}, true)
			return
		}
		x.echo = true
		s.Respond(&http1.Response{Status: 101, ContentLength: -1, Upgrade: req.Upgrade, Fields: []http1.Field{field("Sec-WebSocket-Accept", "x"), field("A", "b")}}, false)
	default:
		res.Framing, res.ContentLength = http1.Length, 5
		s.Respond(res, false)
		s.Write([]byte("hello"))
		s.CloseWrite()
	}
}

type testExchange struct {
	s     *Stream
	echo  bool
	count bool
	n     int64
	left  int // to be written
}

var zeros = make([]byte, 40<<10)

func (x *testExchange) OnData(b []byte) int {
	x.n += int64(len(b))
	if x.echo {
		x.s.Write(b)
		if x.s.Pending() > x.s.HighMark() {
			x.s.Pause()
		}
	}
	return len(b)
}

func (x *testExchange) OnEOF() {
	switch {
	case x.echo:
		x.s.WriteTrailers(append(x.s.Trailers(), field("X-Count", strconv.FormatInt(x.n, 10))))
	case x.count:
		body := strconv.FormatInt(x.n, 10)
		x.s.Respond(&http1.Response{Status: 200, Framing: http1.Length, ContentLength: int64(len(body))}, false)
		x.s.Write([]byte(body))
		x.s.CloseWrite()
	}
}

func (x *testExchange) OnDrain() {
	x.s.Resume()
	for x.left > 0 && x.s.Pending() <= x.s.HighMark() {
		n := min(x.left, len(zeros))
		x.s.Write(zeros[:n])
		if x.left -= n; x.left == 0 {
			x.s.CloseWrite()
		}
	}
}

func (x *testExchange) OnClose(error) {}

// serve runs a server on a loop of its own and returns its address.
func serve(t testing.TB, e *Endpoint) string {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	l, err := core.Listen("tcp", "127.0.0.1:0", func(conn *evloop.Conn) {
		v := new(testServer)
		v.conn = conn
		v.c = e.Server(conn, v, conn.Loop().Now())
		conn.SetHandler(v)
	})
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}
