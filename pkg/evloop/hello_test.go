package evloop

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// message is a ClientHello, as a handshake message, with these extensions.
func message(extensions ...[]byte) []byte {
	b := []byte{1, 0, 0, 0, 3, 3}
	b = append(b, make([]byte, 32)...)  // random
	b = append(b, 0)                    // no session
	b = append(b, 0, 2, 0x13, 0x01)     // TLS_AES_128_GCM_SHA256
	b = append(b, 1, 0)                 // no compression
	all := slices.Concat(extensions...) // RFC 8446, section 4.1.2
	b = binary.BigEndian.AppendUint16(b, uint16(len(all)))
	b = append(b, all...)
	b[1], b[2], b[3] = byte((len(b)-4)>>16), byte((len(b)-4)>>8), byte(len(b)-4)
	return b
}

func extension(typ uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// serverName is the extension of RFC 6066, section 3, with these names.
func serverName(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0)
		list = binary.BigEndian.AppendUint16(list, uint16(len(n)))
		list = append(list, n...)
	}
	return extension(0, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...))
}

func padding(n int) []byte { return extension(21, make([]byte, n)) }

// records puts a handshake message into records of up to size bytes.
func records(message []byte, size int) (b []byte) {
	for part := range slices.Chunk(message, size) {
		b = append(b, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		b = append(b, part...)
	}
	return b
}

// peek has a connection peek at the pieces, and the end of them, and returns what comes of it.
func peek(t *testing.T, pieces ...[]byte) (sni string, err error) {
	t.Helper()
	type result struct {
		sni string
		err error
	}
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		w := newWire()
		done := make(chan result, 2)
		run(l, func() {
			c := w.attach(l)
			c.PeekClientHello(func(name string, _ []string, err error) {
				done <- result{name, err}
				c.Abort(nil)
			})
		})
		for _, b := range pieces {
			wireConn{w}.Write(b)
		}
		wireConn{w}.CloseWrite()
		r := <-done
		sni, err = r.sni, r.err
	})
	return sni, err
}

// TestHelloNames shows which names are taken from a ClientHello, and what is refused, however it is cut.
func TestHelloNames(t *testing.T) {
	const name = "mail.example.com"
	long := strings.Repeat("a", 300)
	for title, tt := range map[string]struct {
		hello []byte // the message
		sni   string
		alert tls.AlertError // 0: it is taken
	}{
		"one name":             {message(serverName(name)), name, 0},
		"no name":              {message(), "", 0},
		"behind others":        {message(padding(7), serverName(name)), name, 0},
		"upper case":           {message(serverName("MAIL.Example.com")), "MAIL.Example.com", 0},
		"an address":           {message(serverName("192.0.2.1")), "192.0.2.1", 0},
		"NUL in it":            {message(serverName("mail\x00.example.com")), "mail\x00.example.com", 0},
		"very long name":       {message(serverName(long)), long, 0},
		"encrypted hello":      {message(serverName("public.example.com"), extension(0xfe0d, make([]byte, 40))), "public.example.com", 0},
		"larger than a record": {message(serverName(name), padding(20_000)), name, 0},
		"almost too large":     {message(serverName(name), padding(60_000)), name, 0},

		"dot at the end":           {message(serverName(name + ".")), "", alertDecodeError},
		"two names":                {message(serverName(name, "other.example.com")), "", alertDecodeError},
		"two extensions":           {message(serverName(name), serverName(name)), "", alertDecodeError},
		"empty name":               {message(serverName("")), "", alertDecodeError},
		"empty list":               {message(extension(0, []byte{0, 0})), "", alertDecodeError},
		"empty extension":          {message(extension(0, nil)), "", alertDecodeError},
		"name longer than it":      {message(extension(0, []byte{0, 6, 0, 0, 9, 'a', 'b', 'c'})), "", alertDecodeError},
		"list longer than it":      {message(extension(0, []byte{0, 9, 0, 0, 3, 'a', 'b', 'c'})), "", alertDecodeError},
		"extension longer than it": {append(message(serverName(name))[:50], 0xff), "", alertDecodeError},
		"short":                    {[]byte{1, 0, 0, 0}, "", alertDecodeError},
		"no hello":                 {[]byte{2, 0, 0, 2, 3, 3}, "", alertUnexpectedMessage},
		"too large":                {message(serverName(name), padding(65_000), padding(1000)), "", alertIllegalParameter},
		"another message follows":  {append(message(serverName(name)), 1, 0, 0, 0), "", alertUnexpectedMessage},
	} {
		if title == "extension longer than it" { // its length is that of what is left
			tt.hello[3] = byte(len(tt.hello) - 4)
		}
		whole := records(tt.hello, 16<<10)
		cuts := map[string][][]byte{"at once": {whole}, "in segments": slices.Collect(slices.Chunk(whole, 37))}
		if len(tt.hello) < 4000 {
			cuts["byte by byte"] = slices.Collect(slices.Chunk(whole, 1))
			cuts["records of a byte"] = [][]byte{records(tt.hello, 1)}
			cuts["records of 3 bytes, in pairs"] = slices.Collect(slices.Chunk(records(tt.hello, 3), 2))
		}
		for how, pieces := range cuts {
			if title == "another message follows" && how != "at once" && how != "in segments" && how != "byte by byte" {
				continue // the other message is in a record of its own, and nobody's business here
			}
			sni, err := peek(t, pieces...)
			var refused *HelloError
			switch {
			case tt.alert == 0 && (err != nil || sni != tt.sni):
				t.Errorf("%s, %s: name %q, %v; want %q", title, how, sni, err, tt.sni)
			case tt.alert == 0:
			case !errors.As(err, &refused):
				t.Errorf("%s, %s: name %q, %v; want it refused", title, how, sni, err)
			case refused.Alert != tt.alert && tt.alert != alertDecodeError: // crypto/tls has its own idea
				t.Errorf("%s, %s: alert %v, want %v", title, how, refused.Alert, tt.alert)
			}
		}
	}
}

// TestHelloRefused shows what is refused before there is a whole message, and with which alert.
func TestHelloRefused(t *testing.T) {
	hello := message(serverName("mail.example.com"))
	for title, tt := range map[string]struct {
		send  []byte
		alert tls.AlertError
	}{
		"HTTP":                {[]byte("GET"), alertUnexpectedMessage},
		"SSL 2":               {[]byte{0x80, 0x2e, 1, 3, 1}, alertProtocolVersion},
		"version 4":           {[]byte{22, 4}, alertProtocolVersion},
		"an alert":            {[]byte{21, 3, 1, 0, 2, 2, 0}, alertUnexpectedMessage},
		"application data":    {[]byte{23, 3, 3, 0, 1}, alertUnexpectedMessage},
		"empty record":        {[]byte{22, 3, 1, 0, 0}, alertUnexpectedMessage},
		"long record":         {[]byte{22, 3, 1, 0x40, 1}, alertRecordOverflow},
		"another message":     {[]byte{22, 3, 1, 0, 50, 11}, alertUnexpectedMessage},
		"long message":        {[]byte{22, 3, 1, 0, 50, 1, 1, 0, 1}, alertIllegalParameter},
		"empty in the middle": {append(records(hello[:20], 20), 22, 3, 1, 0, 0), alertUnexpectedMessage},
		"alert in the middle": {append(records(hello[:20], 20), 21, 3, 1, 0, 2, 1, 0), alertUnexpectedMessage},
		"too many records":    {records(message(serverName("mail.example.com"), padding(20_000)), 1), alertIllegalParameter},
	} {
		_, err := peek(t, tt.send)
		if e := new(HelloError); !errors.As(err, &e) || e.Alert != tt.alert {
			t.Errorf("%s: %v, want alert %d", title, err, tt.alert)
		}
	}
	if _, err := peek(t, records(hello, 30)[:40]); err != io.ErrUnexpectedEOF {
		t.Errorf("end in the middle: %v", err)
	}
}

// TestRefuseTLS has a client of crypto/tls hear the alert.
func TestRefuseTLS(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		ended := make(chan error, 1)
		nc := peer(t, core, func(c *Conn) {
			c.SetHandler(&events{closed: func(err error) { ended <- err }})
			c.PeekClientHello(func(string, []string, error) { c.RefuseTLS(112) })
		})
		err := tls.Client(nc, clientConfig()).Handshake()
		if op := new(net.OpError); !errors.As(err, &op) || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("the client says: %v", err)
		}
		nc.Close()
		if err := <-ended; err != nil {
			t.Errorf("OnClose(%v)", err)
		}
	})
}

// FuzzClientHello compares what is taken from a stream with what a server of crypto/tls takes from the same one: a
// connection that is routed by another name than it is served by would be a hole.
func FuzzClientHello(f *testing.F) {
	name := serverName("mail.example.com")
	for _, m := range [][]byte{
		message(name), message(), message(name, name), message(serverName("a", "b")), message(serverName("a.")), message(name, padding(300)),
		message(extension(16, []byte{0, 3, 2, 'h', '2'}), name), message(name, extension(0xfe0d, make([]byte, 40))),
	} {
		for _, size := range []int{1, 3, 100, 16 << 10} {
			f.Add(records(m, size), uint16(7))
		}
		f.Add(append(records(m, 16<<10), 20, 3, 3, 0, 1, 1), uint16(1))
		f.Add(append(records(m, 16<<10), records(m, 50)...), uint16(1))
	}
	f.Add(clientHello(f), uint16(100))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Add([]byte{0x80, 0x2e, 1, 3, 1}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		// As the bytes come in, the first verdict stands.
		var whole bool
		var err error
		n := 0
		for n < len(b) && !whole && err == nil {
			n = min(n+1+int(step), len(b))
			whole, err = wholeHello(b[:n])
		}
		if w, e := wholeHello(b); w != whole || (e == nil) != (err == nil) {
			t.Fatalf("after %d bytes: %v, %v; after all %d: %v, %v", n, whole, err, len(b), w, e)
		}
		var theirs *tls.ClientHelloInfo
		tls.Server(&helloConn{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			theirs = h
			return nil, errPeeked
		}}).Handshake()
		if !whole {
			if err == nil && theirs != nil {
				t.Fatalf("a hello for %q that is not whole to us", theirs.ServerName)
			}
			return
		}
		sni, alpn, err := parseHello(b[:n])
		switch {
		case err != nil && theirs == nil:
		case err != nil || theirs == nil:
			t.Fatalf("ours: %q, %v; theirs: %v", sni, err, theirs)
		case sni != theirs.ServerName || !slices.Equal(alpn, theirs.SupportedProtos):
			t.Fatalf("ours: %q %q, theirs: %q %q", sni, alpn, theirs.ServerName, theirs.SupportedProtos)
		}
	})
}

// BenchmarkClientHello is what it costs to look at a hello, before anything else is decided.
func BenchmarkClientHello(b *testing.B) {
	hello := clientHello(b)
	b.ReportAllocs()
	for b.Loop() {
		if whole, err := wholeHello(hello); !whole || err != nil {
			b.Fatal(err)
		}
		if sni, _, err := parseHello(hello); sni != "relay.test" || err != nil {
			b.Fatal(sni, err)
		}
	}
}
