//go:build linux

package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawH2 is a visitor over HTTP/2 that sends whatever the test wants, frame by frame.
// It belongs to one goroutine.
type rawH2 struct {
	*http2.Framer
	conn  *tls.Conn
	block bytes.Buffer
	enc   *hpack.Encoder

	answers  map[uint32]*answer
	settings map[http2.SettingID]uint32 // of the relay; nil until they came
	window   int64                      // what the relay takes on the connection
	windows  map[uint32]int64           // and on streams, over the initial one
	goaway   *http2.GoAwayFrame
}

// answer is what came on a stream.
type answer struct {
	status  string
	fields  []hpack.HeaderField
	body    []byte
	trailer []hpack.HeaderField
	ended   bool           // by the relay, in order
	reset   *http2.ErrCode // by the relay
}

// field returns a field of the head.
func (a *answer) field(name string) string {
	for _, f := range a.fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// dialH2 connects to a name at the relay's address, from the i-th address of dialFrom, and
// says hello with these settings.
func dialH2(t testing.TB, i int, addr, host string, settings ...http2.Setting) *rawH2 {
	t.Helper()
	return h2Over(t, dialFrom(t, i, addr), host, settings...)
}

func h2Over(t testing.TB, nc net.Conn, host string, settings ...http2.Setting) *rawH2 {
	t.Helper()
	c := tls.Client(nc, &tls.Config{RootCAs: caPool(), ServerName: host, NextProtos: []string{"h2"}})
	c.SetDeadline(time.Now().Add(waitLimit))
	if err := c.Handshake(); err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Fatalf("%s: protocol %q, want h2", host, p)
	}
	r := &rawH2{conn: c, Framer: http2.NewFramer(c, c), answers: map[uint32]*answer{}, window: 65535, windows: map[uint32]int64{}}
	r.AllowIllegalWrites = true
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.enc = hpack.NewEncoder(&r.block)
	io.WriteString(c, http2.ClientPreface)
	r.WriteSettings(settings...)
	return r
}

// encode is a block of fields, whatever is in them. It has to be sent.
func (r *rawH2) encode(fields ...[2]string) []byte {
	r.block.Reset()
	for _, f := range fields {
		r.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return bytes.Clone(r.block.Bytes())
}

// headers sends a block of fields.
func (r *rawH2) headers(stream uint32, end bool, fields ...[2]string) error {
	b := r.encode(fields...)
	first := b[:min(len(b), 16384)]
	err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(b)})
	for b = b[len(first):]; len(b) > 0 && err == nil; {
		n := min(len(b), 16384)
		err = r.WriteContinuation(stream, n == len(b), b[:n])
		b = b[n:]
	}
	return err
}

// get are the fields of a request for a path of a host.
func get(host, path string, more ...[2]string) [][2]string {
	return append([][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", path}}, more...)
}

// next reads a frame and does what a visitor has to do about it.
func (r *rawH2) next() (http2.Frame, error) {
	f, err := r.ReadFrame()
	if err != nil {
		return nil, err
	}
	at := func() *answer {
		id := f.Header().StreamID
		if r.answers[id] == nil {
			r.answers[id] = &answer{}
		}
		return r.answers[id]
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			break
		}
		r.settings = map[http2.SettingID]uint32{}
		f.ForeachSetting(func(s http2.Setting) error { r.settings[s.ID] = s.Val; return nil })
		r.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			r.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			r.window += int64(f.Increment)
		} else {
			r.windows[f.StreamID] += int64(f.Increment)
		}
	case *http2.GoAwayFrame:
		g := *f
		r.goaway = &g
	case *http2.MetaHeadersFrame:
		a := at()
		switch {
		case f.PseudoValue("status") == "":
			a.trailer = f.RegularFields()
		case f.PseudoValue("status")[0] != '1':
			a.status, a.fields = f.PseudoValue("status"), f.RegularFields()
		}
		a.ended = a.ended || f.StreamEnded()
	case *http2.DataFrame:
		a := at()
		a.body = append(a.body, f.Data()...)
		a.ended = a.ended || f.StreamEnded()
	case *http2.RSTStreamFrame:
		a, code := at(), f.ErrCode
		a.reset = &code
	}
	return f, nil
}

var errGoAway = errors.New("GOAWAY")

// await reads until a stream is over. The error is errGoAway when the relay has given up
// the connection before.
func (r *rawH2) await(stream uint32) (*answer, error) {
	for {
		if a := r.answers[stream]; a != nil && (a.ended || a.reset != nil) {
			return a, nil
		}
		if _, err := r.next(); err != nil {
			if r.goaway != nil {
				return nil, fmt.Errorf("%w %v %q: %w", errGoAway, r.goaway.ErrCode, r.goaway.DebugData(), err)
			}
			return nil, err
		}
	}
}

// hello reads the relay's settings.
func (r *rawH2) hello(t testing.TB) {
	t.Helper()
	for r.settings == nil {
		if _, err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
}
