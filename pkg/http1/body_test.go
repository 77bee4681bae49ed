package http1

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// decode feeds in to a body in pieces that end at the given cuts and returns the payload and
// everything there is to know about the end.
func decode(f Framing, length int64, in string, cuts ...int) (payload, end string) {
	var d Body
	d.Reset(f, length)
	var out strings.Builder
	var kept []byte
	total := 0
	for i := 0; i <= len(cuts); i++ {
		stop := len(in)
		if i < len(cuts) {
			stop = cuts[i]
		}
		kept = append(kept, in[total+len(kept):stop]...)
		for {
			p, used, done, err := d.Next(kept)
			out.Write(p)
			total += used
			if err != nil {
				return out.String(), "error: " + err.Error()
			}
			if done {
				end := fmt.Sprintf("done at %d", total)
				for _, f := range d.Trailers {
					end += fmt.Sprintf(" %s=%s", f.Name, f.Value)
				}
				return out.String(), end
			}
			kept = kept[used:]
			if used == 0 {
				break
			}
		}
	}
	if err := d.EOF(); err != nil {
		return out.String(), err.Error()
	}
	return out.String(), "done at EOF"
}

var bodies = []struct {
	name    string
	framing Framing
	length  int64
	in      string
	payload string
	end     string
}{
	{"none", NoBody, -1, "next", "", "done at 0"},
	{"length", Length, 5, "hellonext", "hello", "done at 5"},
	{"length 0", Length, 0, "next", "", "done at 0"},
	{"length cut short", Length, 5, "hell", "hell", "unexpected EOF"},
	{"until close", UntilClose, -1, "hello", "hello", "done at EOF"},
	{"chunks", Chunked, -1, "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nnext", "hello world", "done at 26"},
	{"no chunk", Chunked, -1, "0\r\n\r\n", "", "done at 5"},
	{"hexadecimal", Chunked, -1, "0a\r\n0123456789\r\n00\r\n\r\n", "0123456789", "done at 22"},
	{"extension", Chunked, -1, "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", "hello", "done at 27"},
	{"trailers", Chunked, -1, "5\r\nhello\r\n0\r\nX-Sum: 1 \r\nY:\r\n\r\n", "hello", "done at 30 X-Sum=1 Y="},
	{"cut in chunk", Chunked, -1, "5\r\nhel", "hel", "unexpected EOF"},
	{"cut before the end", Chunked, -1, "5\r\nhello\r\n0\r\n", "hello", "unexpected EOF"},
	{"not hexadecimal", Chunked, -1, "g\r\n", "", "error: invalid chunk size"},
	{"empty size", Chunked, -1, "\r\n", "", "error: invalid chunk size"},
	{"0x", Chunked, -1, "0x5\r\nhello\r\n", "", "error: invalid chunk size"},
	{"negative", Chunked, -1, "-5\r\nhello\r\n", "", "error: invalid chunk size"},
	{"space behind the size", Chunked, -1, "5 \r\nhello\r\n", "", "error: invalid chunk size"},
	{"size overflow", Chunked, -1, "ffffffffffffffff\r\n", "", "error: invalid chunk size"},
	{"size wraps", Chunked, -1, "10000000000000005\r\nhello\r\n", "", "error: invalid chunk size"},
	{"zeros without end", Chunked, -1, "00000000000000000005\r\nhello\r\n", "", "error: invalid chunk size"},
	{"bare LF behind the size", Chunked, -1, "5\nhello\r\n", "", "error: invalid chunk size"},
	{"bare CR behind the size", Chunked, -1, "5\rhello\r\n", "", "error: invalid chunk size"},
	{"bare LF in extension", Chunked, -1, "5;\nhello\r\n", "", "error: invalid chunk size"},
	{"long extension", Chunked, -1, "5;" + strings.Repeat("a", 300) + "\r\n", "", "error: chunk extensions too long"},
	{"long extensions", Chunked, -1, strings.Repeat("1;"+strings.Repeat("a", 199)+"\r\nx\r\n", 40), strings.Repeat("x", 20), "error: chunk extensions too long"},
	{"chunk too long", Chunked, -1, "5\r\nhello!\r\n", "hello", "error: chunk does not end with CRLF"},
	{"bare LF behind the chunk", Chunked, -1, "5\r\nhello\n0\r\n\r\n", "hello", "error: chunk does not end with CRLF"},
	{"bare LF in trailers", Chunked, -1, "0\r\nX: y\n\r\n", "", "error: bare LF in head"},
	{"folded trailer", Chunked, -1, "0\r\nX: y\r\n z\r\n\r\n", "", "error: whitespace before field name"},
	{"Content-Length in trailers", Chunked, -1, "0\r\nContent-Length: 5\r\n\r\n", "", "error: field not allowed in trailers"},
	{"X-Forwarded-For in trailers", Chunked, -1, "0\r\nX-Forwarded-For: 1\r\n\r\n", "", "error: field not allowed in trailers"},
	{"long trailers", Chunked, -1, "0\r\nX: " + strings.Repeat("a", 5000) + "\r\n\r\n", "", "error: trailers too long"},
	{"many trailers", Chunked, -1, "0\r\n" + strings.Repeat("X: y\r\n", 40) + "\r\n", "", "error: too many fields"},
}

func TestBody(t *testing.T) {
	for _, test := range bodies {
		payload, end := decode(test.framing, test.length, test.in)
		if payload != test.payload || end != test.end {
			t.Errorf("%s: %q, %s; want %q, %s", test.name, payload, end, test.payload, test.end)
		}
	}
}

func TestBodySplit(t *testing.T) {
	for _, test := range bodies {
		all := make([]int, len(test.in))
		for i := range test.in {
			all[i] = i
			payload, end := decode(test.framing, test.length, test.in, i)
			if payload != test.payload || end != test.end {
				t.Fatalf("%s: cut at %d: %q, %s", test.name, i, payload, end)
			}
		}
		payload, end := decode(test.framing, test.length, test.in, all...)
		if payload != test.payload || end != test.end {
			t.Fatalf("%s: byte by byte: %q, %s", test.name, payload, end)
		}
	}
}

func TestAppendChunk(t *testing.T) {
	b := AppendChunk(nil, []byte("hello"))
	b = AppendChunk(b, nil)
	b = AppendChunk(b, []byte(strings.Repeat("x", 300)))
	b = AppendLastChunk(b, []Field{{[]byte("X-Sum"), []byte("7")}})
	payload, end := decode(Chunked, -1, string(b))
	if payload != "hello"+strings.Repeat("x", 300) || !strings.HasSuffix(end, "X-Sum=7") {
		t.Fatalf("%q: %s", b, end)
	}
}

func TestBodyEOF(t *testing.T) {
	var d Body
	if !d.Done() || d.EOF() != nil {
		t.Error("the zero Body is not empty")
	}
	d.Reset(Length, 1)
	if d.Done() || d.EOF() != io.ErrUnexpectedEOF {
		t.Error("EOF within a body goes unnoticed")
	}
}
