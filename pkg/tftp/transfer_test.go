package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// file returns a file of so many bytes, no two blocks of which are alike.
func file(n int64) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	return b
}

// memory is a Source that has some of its bytes already.
type memory struct {
	t     testing.TB
	b     []byte
	ready int64
	acked func() int64
}

func (m *memory) Append(dst []byte, off int64, n int) ([]byte, State) {
	if off < m.acked() {
		m.t.Errorf("byte %d is asked for, although %d are not needed any more", off, m.acked())
	}
	end := off + int64(n)
	if end > m.ready && m.ready < int64(len(m.b)) {
		return dst, Wait
	}
	if end >= int64(len(m.b)) {
		return append(dst, m.b[min(off, int64(len(m.b))):]...), End
	}
	return append(dst, m.b[off:end]...), More
}

// A script is a transfer that is driven line by line. Lines are what comes in or happens, or, after "<", what goes out or
// is called, all of it and in this order:
//
//	serve RRQ name [option=value …]   Serve, with the file of the script
//	dial WRQ name [option=value …]    Dial
//	> ACK 1                           a packet comes; DATA 2 has block 2 of the file, as the options have it
//	+1s                               time passes
//	ready 1000                        so many bytes are there, and Wake
//	again, hold, release, confirm, fail CODE TEXT
//	< DATA 2 512                      a packet goes out: block and length
//	< complete, < closed, < closed timeout, < closed error CODE TEXT
type script struct {
	t        *testing.T
	tr       *Transfer
	cfg      Config
	file     []byte
	ready    int64 // of the file; -1: all
	holdAt   int64 // bytes after which Sink calls Hold; 0: never
	now      time.Time
	out      []string
	sunk     []byte
	closings int
}

func (s *script) log(format string, args ...any) { s.out = append(s.out, fmt.Sprintf(format, args...)) }

func (s *script) run(text string) {
	s.t.Helper()
	s.now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		line, _, _ = strings.Cut(line, "//")
		line = strings.TrimSpace(line)
		if want, ok := strings.CutPrefix(line, "< "); ok {
			if len(s.out) == 0 {
				s.t.Fatalf("line %d: nothing, want %q", i+1, want)
			}
			if s.out[0] != want {
				s.t.Fatalf("line %d: %q, want %q", i+1, s.out, want)
			}
			s.out = s.out[1:]
			continue
		}
		if line == "" {
			continue
		}
		if len(s.out) > 0 {
			s.t.Fatalf("before line %d (%s): %q is too much", i+1, line, s.out)
		}
		s.do(line)
	}
	if len(s.out) > 0 {
		s.t.Fatalf("at the end: %q is too much", s.out)
	}
}

func (s *script) do(line string) {
	words := strings.Fields(line)
	switch words[0] {
	case "serve", "dial":
		s.start(words)
	case ">":
		s.tr.Receive(s.packet(words[1:]), s.now)
	case "ready":
		s.cfg.Source.(*memory).ready, _ = strconv.ParseInt(words[1], 10, 64)
		s.tr.Wake(s.now)
	case "again":
		s.tr.Again(s.now)
	case "hold":
		s.tr.Hold(true, s.now)
	case "release":
		s.tr.Hold(false, s.now)
	case "confirm":
		s.tr.Confirm(s.now)
	case "fail":
		code, _ := strconv.Atoi(words[1])
		s.tr.Fail(&Error{Code: Code(code), Text: strings.Join(words[2:], " ")}, s.now)
	default:
		d, err := time.ParseDuration(strings.TrimPrefix(words[0], "+"))
		if err != nil {
			s.t.Fatalf("%q is no line of a script", line)
		}
		until := s.now.Add(d)
		for {
			at := s.tr.Deadline()
			if at.IsZero() || at.After(until) {
				break
			}
			if at.Before(s.now) {
				s.t.Fatalf("the deadline is %v ago", s.now.Sub(at))
			}
			s.now = at
			s.tr.Tick(s.now)
			if s.tr.Deadline().Equal(at) {
				s.t.Fatal("Tick has not moved the deadline")
			}
		}
		s.now = until
		s.tr.Tick(s.now)
	}
}

func (s *script) start(words []string) {
	req := Request{Op: OpRead, Name: words[2]}
	if words[1] == "WRQ" {
		req.Op = OpWrite
	}
	size := int64(len(s.file))
	for _, w := range words[3:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "netascii":
			req.Mode = NetASCII
		case "nosize":
			size = -1
		default:
			if !req.Options.parse([]byte(name + "\x00" + value + "\x00")) {
				s.t.Fatalf("%s is no option", w)
			}
		}
	}
	s.cfg.Send = func(b []byte) { s.log("%s", s.show(b)) }
	s.cfg.Closed = func(err error) {
		s.closings++
		var e *Error
		switch {
		case s.closings > 1:
			s.t.Error("Closed is called again")
		case err == nil:
			s.log("closed")
		case errors.Is(err, ErrTimeout):
			s.log("closed timeout")
		case errors.As(err, &e):
			s.log("%s", strings.TrimSpace(fmt.Sprintf("closed error %d %s", e.Code, e.Text)))
		}
	}
	if (req.Op == OpRead) == (words[0] == "serve") {
		m := &memory{t: s.t, b: s.file, ready: s.ready, acked: func() int64 { return 0 }}
		if s.ready < 0 {
			m.ready = int64(len(s.file))
		}
		s.cfg.Source = m
	} else {
		s.cfg.Sink = func(b []byte) {
			s.sunk = append(s.sunk, b...)
			if !bytes.HasPrefix(s.file, s.sunk) {
				s.t.Fatalf("Sink got something else than the file after %d bytes", len(s.sunk))
			}
			if s.holdAt > 0 && int64(len(s.sunk)) >= s.holdAt {
				s.holdAt = 0
				s.tr.Hold(true, s.now)
			}
		}
		s.cfg.Complete = func() {
			if len(s.sunk) != len(s.file) {
				s.t.Errorf("complete with %d of %d bytes", len(s.sunk), len(s.file))
			}
			s.log("complete")
		}
	}
	if words[0] == "serve" {
		s.tr = Serve(s.cfg, req, size, s.now)
	} else {
		s.tr = Dial(s.cfg, req, size, s.now)
	}
	if m, ok := s.cfg.Source.(*memory); ok {
		m.acked = s.tr.Acked
	}
}

// show writes a packet as scripts have it.
func (s *script) show(b []byte) string {
	op := opcode(b)
	switch op {
	case OpData:
		number, block := binary.BigEndian.Uint16(b[2:]), b[4:]
		at := bytes.Index(s.file, block)
		if want := (int(number) - 1) * s.blockSize(); len(block) > 16 && number > 0 && at != want && len(s.file) < 1<<16 {
			s.t.Errorf("DATA %d has bytes from %d, want %d", number, at, want)
		}
		return fmt.Sprintf("DATA %d %d", number, len(block))
	case OpAck:
		return fmt.Sprintf("ACK %d", binary.BigEndian.Uint16(b[2:]))
	case OpError:
		e, _ := parseError(b)
		return fmt.Sprintf("ERROR %d %s", e.Code, e.Text)
	case OpOptionAck:
		return strings.TrimSpace("OACK " + pairs(b[2:]))
	}
	r, err := ParseRequest(b)
	if err != nil {
		s.t.Fatalf("%q: %v", b, err)
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", op, r.Name, r.Mode, pairs(r.Options.append(nil))))
}

func pairs(b []byte) string {
	var out []string
	for words := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"); len(words) > 1; words = words[2:] {
		out = append(out, words[0]+"="+words[1])
	}
	return strings.Join(out, " ")
}

// packet makes one of what a script says.
func (s *script) packet(words []string) []byte {
	n := 0
	if len(words) > 1 {
		n, _ = strconv.Atoi(words[1])
	}
	switch words[0] {
	case "ACK":
		return appendBlock(nil, OpAck, uint16(n))
	case "DATA":
		b := appendBlock(nil, OpData, uint16(n))
		if len(words) > 2 { // some other length
			k, _ := strconv.Atoi(words[2])
			return append(b, make([]byte, k)...)
		}
		off := (n - 1) * s.blockSize()
		return append(b, s.file[min(off, len(s.file)):min(off+s.blockSize(), len(s.file))]...)
	case "ERROR":
		return AppendError(nil, &Error{Code: Code(n), Text: strings.Join(words[2:], " ")}, MaxRequest)
	case "OACK":
		b := []byte{0, 6}
		for _, w := range words[1:] {
			name, value, _ := strings.Cut(w, "=")
			b = append(b, name+"\x00"+value+"\x00"...)
		}
		return b
	}
	b, err := strconv.Unquote(words[0])
	if err != nil {
		s.t.Fatalf("%q is no packet", words)
	}
	return []byte(b)
}

func (s *script) blockSize() int {
	if s.tr == nil || s.tr.phase == asking {
		return DefaultBlock
	}
	o := s.tr.Options()
	return o.blockSize()
}

func TestTranscripts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		file   int64
		set    func(s *script) // nil: nothing special
		script string
	}{
		// What real clients do.
		{"tftp-hpa gets", 1025, nil, `
			serve RRQ f
			< DATA 1 512
			> ACK 1
			< DATA 2 512
			> ACK 2
			< DATA 3 1
			> ACK 3
			< closed`},
		{"tftp-hpa puts", 512, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"curl gets", 512, nil, `
			serve RRQ f tsize=0 blksize=512 timeout=6
			< OACK blksize=512 timeout=6 tsize=512
			> ACK 0
			< DATA 1 512
			> ACK 1
			< DATA 2 0
			> ACK 2
			< closed`},
		{"curl puts", 513, nil, `
			serve WRQ f tsize=513 blksize=512 timeout=6
			< OACK blksize=512 timeout=6 tsize=513
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"iPXE gets", 1500, nil, `
			serve RRQ f blksize=1432 tsize=0
			< OACK blksize=1432 tsize=1500
			> ACK 0
			< DATA 1 1432
			> ACK 1
			< DATA 2 68
			> ACK 2
			< closed`},
		{"busybox gets nothing", 0, nil, `
			serve RRQ f tsize=0 blksize=65464
			< OACK blksize=65464 // curl would not take a size of 0
			> ACK 0
			< DATA 1 0
			> ACK 1
			< closed`},
		{"atftp gets by windows", 16*6 + 3, nil, `
			serve RRQ f tsize=0 blksize=16 timeout=2 windowsize=4
			< OACK blksize=16 windowsize=4 timeout=2 tsize=99
			> ACK 0
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			< DATA 4 16
			> ACK 4
			< DATA 5 16
			< DATA 6 16
			< DATA 7 3
			> ACK 7
			< closed`},
		{"atftp puts by windows", 16*6 + 3, nil, `
			serve WRQ f tsize=99 blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4 tsize=99
			> DATA 1
			> DATA 2
			> DATA 3
			> DATA 4
			< ACK 4
			> DATA 5
			> DATA 6
			> DATA 7
			< complete
			confirm
			< ACK 7
			< closed`},
		{"a boot ROM asks for the size, and gives up", 5000, nil, `
			serve RRQ f tsize=0
			< OACK tsize=5000
			> ERROR 0 TFTP Aborted
			< closed error 0 TFTP Aborted
			+1m`},
		{"tftp-hpa acknowledges an ERROR", 5000, nil, `
			serve RRQ f
			< DATA 1 512
			fail 2 No.
			< ERROR 2 No.
			< closed error 2 No.
			> ACK 1
			> ACK 0
			+1m`},

		// Options.
		{"what asks for too much gets less", 9, func(s *script) { s.cfg.MaxBlock = 1468 }, `
			serve RRQ f blksize=65464 windowsize=65535
			< OACK blksize=1468 windowsize=44
			> ACK 0
			< DATA 1 9
			> ACK 1
			< closed`},
		{"MaxBlock is no more than was asked for", 9, func(s *script) { s.cfg.MaxBlock = 1468 }, `
			serve RRQ f blksize=8
			< OACK blksize=8
			> ACK 0
			< DATA 1 8
			> ACK 1
			< DATA 2 1
			> ACK 2
			< closed`},
		{"a size that is not known is not answered", 9, nil, `
			serve RRQ f tsize=0 nosize
			< DATA 1 9
			> ACK 1
			< closed`},
		{"netascii has no size", 9, nil, `
			serve RRQ f tsize=0 netascii timeout=3
			< OACK timeout=3
			> ACK 0
			< DATA 1 9
			> ACK 1
			< closed`},
		{"roll-over is mirrored", 9, nil, `
			serve RRQ f rollover=1
			< OACK rollover=1
			> ACK 0
			< DATA 1 9
			> ACK 1
			< closed`},
		{"a size that makes the answer longer than the request is left out for an unproven peer", 1 << 20, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f tsize=0 // 18 bytes, and the answer would have 15
			< OACK tsize=1048576
			> ACK 0
			< DATA 1 512
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},

		// Loss.
		{"DATA is repeated after a second, and the back-off ends with a round trip that was measured", 2000, nil, `
			serve RRQ f
			< DATA 1 512
			+999ms
			+1ms
			< DATA 1 512
			+1999ms
			+1ms
			< DATA 1 512
			+10ms
			> ACK 1
			< DATA 2 512
			+3999ms // Karn: block 1 has told nothing
			+1ms
			< DATA 2 512
			> ACK 2
			< DATA 3 512
			+10ms
			> ACK 3 // that is 10 ms
			< DATA 4 464
			+200ms
			< DATA 4 464
			> ACK 4
			< closed`},
		{"a negotiated timeout is the first one", 2000, nil, `
			serve RRQ f timeout=2
			< OACK timeout=2
			+1999ms
			+1ms
			< OACK timeout=2
			+3999ms
			+1ms
			< OACK timeout=2
			> ACK 0
			< DATA 1 512
			+6999ms // no more than this
			+1ms
			< DATA 1 512
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"a peer that says nothing is given up after 30 s", 2000, nil, `
			serve RRQ f
			< DATA 1 512
			> ACK 1
			< DATA 2 512
			+29999ms
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			+1ms
			< ERROR 0 No answer came for too long.
			< closed timeout
			+1h`},
		{"a duplicated ACK doubles nothing", 2000, nil, `
			serve RRQ f
			< DATA 1 512
			> ACK 1
			< DATA 2 512
			> ACK 1
			+150ms
			> ACK 1
			> ACK 0
			> ACK 2
			< DATA 3 512
			> ACK 1
			> ACK 2
			> ACK 2
			> ACK 3
			< DATA 4 464
			> ACK 4
			< closed
			> ACK 4
			> ACK 3`},
		{"an ACK of what was not sent is ignored", 2000, nil, `
			serve RRQ f blksize=512
			< OACK blksize=512
			> ACK 1
			> ACK 65535
			> ACK 0
			< DATA 1 512
			> ACK 2
			> ACK 65535
			> ACK 1
			< DATA 2 512
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"the first ACK of a WRQ is lost", 600, nil, `
			serve WRQ f
			< ACK 0
			+700ms
			again
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 1 // the ACK is under way
			+1s
			> DATA 1 // it was lost
			< ACK 1
			again // what is late
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"the OACK of a WRQ is lost", 600, nil, `
			serve WRQ f blksize=512
			< OACK blksize=512
			+6s
			< OACK blksize=512
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"the last ACK is lost", 600, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed
			+5s
			> DATA 2
			< ACK 2
			> DATA 2
			+6s
			> DATA 2
			< ACK 2
			+9999ms
			> DATA 2
			< ACK 2
			> ERROR 0 late
			+1m
			> DATA 2 // forgotten`},
		{"repeated requests", 600, nil, `
			serve RRQ f
			< DATA 1 512
			again
			+499ms
			again
			+1ms
			again
			< DATA 1 512
			again
			> ACK 1
			< DATA 2 88
			+100ms
			again
			> ACK 2
			< closed
			again`},
		{"a repeated request after the answer to its options", 600, nil, `
			serve RRQ f blksize=1024
			< OACK blksize=1024
			+760ms
			again
			< OACK blksize=1024
			> ACK 0
			< DATA 1 600
			+760ms
			again
			> ACK 0
			> ACK 1
			< closed`},

		// Windows.
		{"the first block of a window is lost", 16 * 9, nil, `
			serve RRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+10ms
			> ACK 0
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			< DATA 4 16
			+1ms
			> ACK 0 // a duplicate on the way
			+9ms
			> ACK 0 // a gap
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			< DATA 4 16
			+1ms
			> ACK 0
			+9ms
			> ACK 4
			< DATA 5 16
			< DATA 6 16
			< DATA 7 16
			< DATA 8 16
			+10ms
			> ACK 6 // 7 was lost
			< DATA 7 16
			< DATA 8 16
			< DATA 9 16
			< DATA 10 0
			+10ms
			> ACK 8 // and now?
			< DATA 9 16
			< DATA 10 0
			+1ms
			> ACK 9 // once per round trip
			+9ms
			> ACK 10
			< closed`},
		{"a window is repeated when nothing comes", 16 * 3, nil, `
			serve RRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+10ms
			> ACK 0
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			< DATA 4 0
			+999ms // what the option acknowledgement took says nothing about a window
			+1ms
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			< DATA 4 0
			> ACK 4
			< closed`},
		{"a gap is acknowledged once per round trip", 16 * 12, nil, `
			serve WRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+10ms
			> DATA 1
			> DATA 3
			< ACK 1
			> DATA 4
			+10ms
			> DATA 3 // 2 is lost again
			< ACK 1
			> DATA 4
			> DATA 5
			+10ms
			> DATA 2
			> DATA 4
			< ACK 2
			> DATA 3
			> DATA 5
			> DATA 4
			> DATA 5
			> DATA 6
			< ACK 6
			> DATA 8
			+10ms
			> DATA 7
			> DATA 8
			> DATA 9
			> DATA 10
			< ACK 10
			> DATA 9
			> DATA 10
			> DATA 11
			> DATA 12
			> DATA 13
			< complete
			confirm
			< ACK 13
			< closed`},
		{"what comes twice in a window is no reason for an ACK", 16 * 9, nil, `
			serve WRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+300ms
			> DATA 1
			> DATA 1
			> DATA 2
			> DATA 3
			> DATA 1
			> DATA 2
			> DATA 3
			> DATA 4
			< ACK 4
			+200ms
			> DATA 1 // the ACK was lost
			+99ms
			> DATA 2
			+1ms
			> DATA 3
			< ACK 4
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"what is beyond the window is nothing", 16 * 9, nil, `
			serve WRQ f blksize=16 windowsize=2
			< OACK blksize=16 windowsize=2
			> DATA 3
			> DATA 9
			> DATA 1
			> DATA 2
			< ACK 2
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"the end of a window is lost", 16 * 9, nil, `
			serve WRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+10ms
			> DATA 1
			> DATA 2
			+399ms
			+1ms
			< ACK 2
			> DATA 3
			> DATA 4
			> DATA 5
			> DATA 6
			< ACK 6
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"a short block in a gap is not the end", 16*2 + 3, nil, `
			serve WRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			> DATA 3
			< OACK blksize=16 windowsize=4
			> DATA 1
			> DATA 2
			> DATA 3
			< complete
			confirm
			< ACK 3
			< closed`},

		// Waiting.
		{"a source that stalls", 1100, func(s *script) { s.ready = 600 }, `
			serve RRQ f
			< DATA 1 512
			+10ms
			> ACK 1
			+1499ms
			+1ms
			< DATA 1 512
			> ACK 1
			+1500ms
			< DATA 1 512
			> ACK 1
			+42s
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			ready 700 // not enough
			ready 1100
			< DATA 2 512
			> ACK 1
			+200ms
			< DATA 2 512
			> ACK 2
			< DATA 3 76
			> ACK 3
			< closed`},
		{"a source that has nothing yet", 100, func(s *script) { s.ready = 0 }, `
			serve RRQ f timeout=1
			+20s
			again // atftp takes no OACK twice, so it gets none yet
			> ACK 0
			+20s
			ready 0
			ready 100
			< OACK timeout=1
			again
			+1s
			< OACK timeout=1
			> ACK 0
			< DATA 1 100
			> ACK 1
			< closed`},
		{"a source stalls in mid-window", 16 * 9, func(s *script) { s.ready = 16 * 2 }, `
			serve RRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			+10ms
			> ACK 0
			< DATA 1 16
			< DATA 2 16
			ready 48
			< DATA 3 16
			+999ms
			+1ms
			< DATA 1 16
			< DATA 2 16
			< DATA 3 16
			> ACK 3
			+3s
			< DATA 3 16
			> ACK 3
			ready 64
			< DATA 4 16
			fail 0 x
			< ERROR 0 x
			< closed error 0 x`},
		{"a sink that holds", 512*3 + 1, func(s *script) { s.holdAt = 1024 }, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			> DATA 2 // never in answer to a packet
			> DATA 3 // which was not asked for
			+1499ms
			> DATA 2
			+1ms
			< ACK 1
			+45s
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			< ACK 1
			release
			< ACK 2
			> DATA 3
			< ACK 3
			> DATA 4
			< complete
			confirm
			< ACK 4
			< closed`},
		{"a sink that holds in mid-window gets the rest of it", 16 * 9, func(s *script) { s.holdAt = 32 }, `
			serve WRQ f blksize=16 windowsize=4
			< OACK blksize=16 windowsize=4
			> DATA 1
			> DATA 2
			> DATA 3
			> DATA 4
			> DATA 5
			release
			< ACK 4
			hold
			release
			> DATA 5
			hold
			> DATA 7
			release
			fail 3 The disk is full.
			< ERROR 3 The disk is full.
			< closed error 3 The disk is full.
			confirm
			hold
			release`},
		{"a store that takes its time", 600, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			> DATA 2
			+2999ms
			> DATA 2 // busybox takes any ACK for the last one, and comes every 2 s
			+2999ms
			+1ms
			< ACK 1
			+3s
			< ACK 1
			hold
			confirm
			< ACK 2
			< closed
			fail 0 too late
			+1m`},
		{"a store that fails at the end", 600, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			fail 3 The disk is full.
			< ERROR 3 The disk is full.
			< closed error 3 The disk is full.
			> DATA 2`},
		{"confirmed before its end", 600, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1
			< ACK 1
			confirm
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},

		// Errors.
		{"a block that is too long", 600, nil, `
			serve WRQ f
			< ACK 0
			> DATA 1 513
			< ERROR 4 The block is longer than agreed.
			< closed error 4 The block is longer than agreed.`},
		{"garbage", 600, nil, `
			serve RRQ f
			< DATA 1 512
			> ""
			> "\x00"
			> "\x00\x04"
			> "\x00\x04\x00"
			> "\x00\x05\x00"
			> "\x00\x06blksize\x00"
			> "\x00\x09\x00\x01\x00\x01"
			> "\x00\x01f\x00octet\x00"
			> DATA 1
			> "\x00\x04\x00\x01trailing"
			< DATA 2 88
			> "\x00\x05\x00\x00"
			< closed error 0`},

		// Who may be forged.
		{"unproven, without options: one block, and again by the request alone", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f
			< DATA 1 512
			> ACK 0
			+5s
			again
			< DATA 1 512
			again
			+5s
			< closed timeout
			again`},
		{"unproven, with options: three answers, then silence", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f blksize=512
			< OACK blksize=512
			+1s
			< OACK blksize=512
			+2s
			< OACK blksize=512
			+6999ms
			+1ms
			< closed timeout`},
		{"unproven, which writes", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve WRQ f
			< ACK 0
			+9999ms
			< ACK 0
			+1ms
			< closed timeout`},
		{"unproven: an ERROR is no longer than the request", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f
			< DATA 1 512
			fail 0 The site is not connected.
			< ERROR 0 The s
			< closed error 0 The site is not connected.`},
		{"proven by one packet, with nothing of the file acknowledged: a window four times, then silence", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f windowsize=2
			< OACK windowsize=2
			> ACK 0
			< DATA 1 512
			< DATA 2 512
			+1s
			< DATA 1 512
			< DATA 2 512
			+2s
			< DATA 1 512
			< DATA 2 512
			+4s
			< DATA 1 512
			< DATA 2 512
			+2999ms
			+1ms
			< closed timeout`},
		{"the same, with a sign of life", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f blksize=512
			< OACK blksize=512
			> ACK 0
			< DATA 1 512
			+9999ms
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			< DATA 1 512
			> ACK 0
			+9s
			< DATA 1 512
			> ACK 1
			< DATA 2 512`},
		{"proven by its first ACK", 2000, func(s *script) { s.cfg.Unproven = true }, `
			serve RRQ f
			< DATA 1 512
			+3s
			> ACK 1
			< DATA 2 512
			+7s
			< DATA 2 512
			+23s
			< DATA 2 512
			< DATA 2 512
			< DATA 2 512
			< ERROR 0 No answer came for too long.
			< closed timeout`},

		// Clients.
		{"a client gets from a server without options", 600, nil, `
			dial RRQ f blksize=1468 windowsize=16 tsize=0
			< RRQ f octet blksize=1468 windowsize=16 tsize=0
			> DATA 2 0 // of what was before
			> ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"a client gets", 3000, nil, `
			dial RRQ f blksize=1468 windowsize=16 tsize=0 timeout=3
			< RRQ f octet blksize=1468 windowsize=16 timeout=3 tsize=0
			+1s
			< RRQ f octet blksize=1468 windowsize=16 timeout=3 tsize=0
			> OACK blksize=1024 windowsize=2 tsize=3000
			< ACK 0
			> OACK blksize=1024 windowsize=2 tsize=3000
			+100ms
			> OACK blksize=1024 windowsize=2 tsize=3000
			< ACK 0
			> DATA 1
			> OACK blksize=1024 windowsize=2 tsize=3000
			> DATA 2
			< ACK 2
			> DATA 3
			< complete
			confirm
			< ACK 3
			< closed
			+200ms
			> DATA 3
			< ACK 3`},
		{"a client puts", 1500, nil, `
			dial WRQ f blksize=1468 windowsize=16 tsize=0
			< WRQ f octet blksize=1468 windowsize=16 tsize=1500
			> OACK blksize=1468 tsize=1500
			< DATA 1 1468
			> OACK blksize=1468 tsize=1500
			+1s
			< DATA 1 1468
			> ACK 1
			< DATA 2 32
			> ACK 2
			< closed`},
		{"a client puts to a server without options", 600, nil, `
			dial WRQ f blksize=1468 windowsize=16 tsize=0 nosize
			< WRQ f octet blksize=1468 windowsize=16
			> ACK 1
			> ACK 0
			< DATA 1 512
			> ACK 1
			< DATA 2 88
			> ACK 2
			< closed`},
		{"a client whose server keeps it waiting for the last ACK", 100, nil, `
			dial WRQ f
			< WRQ f octet
			> ACK 0
			< DATA 1 100
			+10ms
			+1s
			< DATA 1 100
			> ACK 0
			+2s
			< DATA 1 100
			> ACK 0
			+28s
			< DATA 1 100
			< DATA 1 100
			< DATA 1 100
			< DATA 1 100
			> ACK 0
			+8s
			< DATA 1 100
			> ACK 1
			< closed`},
		{"a server that refuses options gets the request without", 600, nil, `
			dial RRQ f blksize=1468 tsize=0
			< RRQ f octet blksize=1468 tsize=0
			+5s
			< RRQ f octet blksize=1468 tsize=0
			< RRQ f octet blksize=1468 tsize=0
			> ERROR 8 No options.
			< RRQ f octet
			+1s
			< RRQ f octet
			> ERROR 8 Still none.
			< closed error 8 Still none.`},
		{"another error is not about options", 600, nil, `
			dial RRQ f blksize=1468 tsize=0
			< RRQ f octet blksize=1468 tsize=0
			> ERROR 1 File not found
			< closed error 1 File not found`},
		{"an OACK with what was not asked for", 600, nil, `
			dial RRQ f blksize=1468
			< RRQ f octet blksize=1468
			> OACK blksize=1468 tsize=600
			< ERROR 8 The options are not those that were asked for.
			< closed error 8 The options are not those that were asked for.`},
		{"an OACK with what nobody knows", 600, nil, `
			dial RRQ f blksize=1468
			< RRQ f octet blksize=1468
			> OACK blksize=1468 multicast=1
			< ERROR 8 The options are not those that were asked for.
			< closed error 8 The options are not those that were asked for.`},
		{"an OACK with more than was asked for", 600, nil, `
			dial RRQ f blksize=1468
			< RRQ f octet blksize=1468
			> OACK blksize=1469
			< ERROR 8 The options are not those that were asked for.
			< closed error 8 The options are not those that were asked for.`},
		{"an OACK that agrees to nothing", 600, nil, `
			dial RRQ f blksize=1468
			< RRQ f octet blksize=1468
			> OACK
			< ACK 0
			> DATA 1
			< ACK 1
			> DATA 2
			< complete
			confirm
			< ACK 2
			< closed`},
		{"a client that asks for netascii does not ask for the size", 600, nil, `
			dial RRQ f netascii tsize=0 windowsize=65535
			< RRQ f netascii windowsize=32767
			fail 0 nobody is told, since nobody has answered
			< closed error 0 nobody is told, since nobody has answered`},
		{"a server that does not answer", 600, nil, `
			dial RRQ f
			< RRQ f octet
			+29999ms
			< RRQ f octet
			< RRQ f octet
			< RRQ f octet
			< RRQ f octet
			< RRQ f octet
			< RRQ f octet
			+1ms
			< closed timeout`},
		{"a client whose server falls silent", 1600, nil, `
			dial RRQ f
			< RRQ f octet
			> DATA 1
			< ACK 1
			+10ms
			> DATA 2
			< ACK 2
			+5999ms
			+1ms
			< ACK 2 // in case that the other one was lost, but not before tftp-hpa has repeated its block
			+23999ms
			< ACK 2
			< ACK 2
			< ACK 2
			+1ms
			< ERROR 0 No answer came for too long.
			< closed timeout`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{t: t, file: file(tt.file), ready: -1}
			if tt.set != nil {
				tt.set(s)
			}
			s.run(tt.script)
		})
	}
}

// TestTransferSize keeps a transfer small: a server has thousands. What a window costs is kept by the Source alone, from Acked on.
func TestTransferSize(t *testing.T) {
	if n := unsafe.Sizeof(Transfer{}); n > 480 {
		t.Errorf("a Transfer has %d bytes", n)
	}
}
