package http2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"culvert.dev/pkg/http1"
)

// over checks what must be so when a connection has ended, whatever came.
func (w *wire) over() {
	w.c.Close(errLost)
	for _, r := range w.streams {
		if !r.closed {
			w.t.Errorf("stream %d was not closed", r.s.ID())
		}
	}
	if w.c.n != 0 || w.c.queued != 0 || w.c.due.head != nil || w.c.ready.head != nil || w.c.out != nil {
		w.t.Errorf("left over: %+v", w.c)
	}
}

// Whatever a client sends, however it is cut: no panic, all streams end, what happens is the same, and what is accepted
// means the same when it goes on as HTTP/1.1 (see wire.OnRequest).
func FuzzServer(f *testing.F) {
	w := newWire(f)
	f.Add(session(w), uint16(40), uint16(90))
	f.Add([]byte(preface+string(settings())), uint16(3), uint16(30))
	for _, head := range []string{getHead, postHead + "te: trailers", getHead + "host: a.test\nx-forwarded-for: 1", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a\n:path: /"} {
		w := newWire(f)
		b := append([]byte(preface), settings()...)
		b = append(b, w.head(1, false, head)...)
		b = append(b, data(1, 10, false)...)
		f.Add(append(b, w.head(1, true, "a: b")...), uint16(50), uint16(60))
	}
	w = newWire(f)
	f.Add(append([]byte(preface+string(settings())), w.head(1, true, postHead)...), uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, i, j uint16) {
		x, y := int(i)%(len(b)+1), int(j)%(len(b)+1)
		if whole, cut := play(t, b), play(t, b, min(x, y), max(x, y)); whole != cut {
			t.Fatalf("whole:\n%s\ncut at %d and %d:\n%s", whole, x, y, cut)
		}
		w := newWire(t)
		w.c = w.e.Server(&w.out, w, w.now)
		w.answer = func(s *Stream, req *http1.Request) { // and an echo
			s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
			s.Write(zeros[:int(s.ID())*1000%len(zeros)])
			switch s.ID() % 8 {
			case 1:
				s.CloseWrite()
			case 3:
				s.Close()
			case 5:
				s.Reset(CodeInternal)
			}
		}
		w.feed(b)
		w.over()
	})
}

func FuzzClient(f *testing.F) {
	w := newWire(f)
	b := settings()
	b = append(b, w.head(1, false, ":status: 100")...)
	b = append(b, w.head(1, false, ":status: 200\ncontent-length: 5")...)
	b = append(b, data(1, 5, true)...)
	b = append(b, w.head(3, true, ":status: 204")...)
	b = append(b, w.head(5, false, ":status: 200")...)
	b = append(b, data(5, 50, false)...)
	b = append(b, w.head(5, true, "grpc-status: 0")...)
	f.Add(b, uint16(20))
	f.Add(append(settings(), frame(typeGoAway, 0, 0, make([]byte, 8)...)...), uint16(11))
	f.Add(append(settings(settingWindow, 10), frame(typeReset, 0, 3, 0, 0, 0, 7)...), uint16(11))
	f.Fuzz(func(t *testing.T, b []byte, i uint16) {
		w := newWire(t)
		w.c = w.e.Client(&w.out, w, w.now)
		w.request("GET", true)
		w.request("HEAD", true)
		w.request("POST", false).s.Write(zeros)
		w.request("POST", false).s.Close()
		cut := int(i) % (len(b) + 1)
		w.feed(b[:cut], b[cut:])
		w.over()
	})
}

// Our decoder takes what that of x/net takes, and reads the same.
func FuzzDecode(f *testing.F) {
	for _, b := range []string{ // rfc7541#appendix-C
		"\x40\x0acustom-key\x0dcustom-header",
		"\x04\x0c/sample/path", "\x10\x08password\x06secret", "\x82",
		"\x82\x86\x84\x41\x0fwww.example.com\x82\x86\x84\xbe\x58\x08no-cache",
		"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
		"\x20\x3f\xe1\x1f\x82", "\x3f\x30\x40\x01a\x01b\xbe\xbf",
	} {
		f.Add([]byte(b), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		ours := table{max: tableSize}
		var want, got []string
		theirs := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { want = append(want, fmt.Sprintf("%q: %q", f.Name, f.Value)) })
		n := int(cut) % (len(b) + 1)
		for _, block := range [][]byte{b[:n], b[n:]} { // two blocks, one table
			want, got = nil, nil
			_, err := theirs.Write(block)
			if e := theirs.Close(); err == nil {
				err = e
			}
			var h head
			e := ours.decode(block, &h, 1<<30)
			if e == errLateSize || err != nil && strings.Contains(err.Error(), "MUST occur") {
				return // x/net minds neither the place, in an empty table, nor that there may be two
			}
			if (e != nil) != (err != nil) {
				t.Fatalf("%q: %v; x/net: %v", block, e, err)
			}
			if err != nil {
				return
			}
			for _, f := range h.fields {
				got = append(got, fmt.Sprintf("%q: %q", f.Name, f.Value))
			}
			if len(want) <= maxFields && strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Fatalf("%q; x/net: %q", got, want)
			}
			size := uint32(0)
			for i := range ours.ents {
				size += uint32(len(ours.name(&ours.ents[i])) + len(ours.value(&ours.ents[i])) + entrySize)
			}
			if size != ours.size || size > ours.max || cap(ours.text) > 4*tableSize {
				t.Fatalf("size %d, counted %d of %d; holds %d bytes", size, ours.size, ours.max, cap(ours.text))
			}
		}
	})
}

// What our encoder makes of any fields reads back, by x/net's decoder and by ours.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("content-type\ntext/html\nset-cookie\na\ncontent-type\ntext/html\n:status\n200\nx\ny\nx\nz\nx\ny"), uint16(4096))
	f.Add([]byte("a\n"+strings.Repeat("b", 300)+"\n"+strings.Repeat("c", 600)+"\nd\na\nb\nlast-modified\nnow"), uint16(100))
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		lines := bytes.Split(in, []byte("\n"))
		enc := encoder{table: table{max: tableSize}}
		ours := table{max: tableSize}
		var read []hpack.HeaderField
		theirs := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { read = append(read, f) })
		var block []byte
		var h head
		for i := 0; i+1 < len(lines); i += 2 {
			if i == 6 {
				enc.setMax(uint32(size))
				enc.setMax(tableSize)
			}
			name, value := lines[i], lines[i+1]
			read = read[:0]
			block = enc.field(enc.begin(block[:0]), name, value)
			if _, err := theirs.Write(block); err != nil {
				t.Fatal(err)
			}
			if err := theirs.Close(); err != nil {
				t.Fatal(err)
			}
			if e := ours.decode(block, &h, 1<<30); e != nil {
				t.Fatal(e)
			}
			if len(read) != 1 || read[0].Name != string(name) || read[0].Value != string(value) {
				t.Fatalf("%q: %q became %v", name, value, read)
			}
			if string(h.fields[0].Name) != string(name) || string(h.fields[0].Value) != string(value) || ours.size != enc.size {
				t.Fatalf("%q: %q became %q", name, value, h.fields)
			}
		}
	})
}
