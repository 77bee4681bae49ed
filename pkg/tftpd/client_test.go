package tftpd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// elsewhere is another TFTP server, in the plainest way: a goroutine and a socket for each transfer, one block at a time.
type elsewhere struct {
	// Set before the first request.
	options func(asked map[string]string) (answer map[string]string, refuse *tftp.Error) // nil: none is known
	first   func(c *net.UDPConn, to net.Addr)                                            // before the first answer
	fail    *tftp.Error                                                                  // is the answer to everything
	failAt  int                                                                          // or to this block, if not 0
	silent  bool

	t     *testing.T
	conn  net.PacketConn
	group sync.WaitGroup

	mu       sync.Mutex
	files    map[string][]byte
	requests []string // op, name, mode, and the options in order
	errors   []tftp.Code
}

// at starts the server on an address of this machine.
func (e *elsewhere) at(t *testing.T, address string) string {
	e.t = t
	if e.files == nil {
		e.files = map[string][]byte{}
	}
	var err error
	if e.conn, err = net.ListenPacket("udp", address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.conn.Close()
		e.group.Wait()
	})
	e.group.Go(e.serve)
	return e.conn.LocalAddr().String()
}

func (e *elsewhere) start(t *testing.T) string { return e.at(t, "127.0.0.1:0") }

func (e *elsewhere) serve() {
	buf := make([]byte, 1024)
	for {
		n, from, err := e.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		words := strings.Split(string(buf[2:n]), "\x00")
		op := map[byte]string{1: "read", 2: "write"}[buf[1]]
		e.mu.Lock()
		e.requests = append(e.requests, op+" "+strings.TrimSpace(strings.Join(words, " ")))
		e.mu.Unlock()
		if op == "" || e.silent {
			continue
		}
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: e.conn.LocalAddr().(*net.UDPAddr).IP})
		if err != nil {
			e.t.Error(err)
			return
		}
		asked := map[string]string{"name": words[0]}
		for i := 2; i+1 < len(words); i += 2 {
			asked[words[i]] = words[i+1]
		}
		e.group.Go(func() {
			defer c.Close()
			defer context.AfterFunc(e.t.Context(), func() { c.Close() })()
			e.transfer(&elsewherePeer{c, from, e}, op, words[0], asked)
		})
	}
}

// elsewherePeer is the other side of one transfer.
type elsewherePeer struct {
	*net.UDPConn
	to net.Addr
	of *elsewhere
}

func (p *elsewherePeer) say(parts ...any) {
	var b []byte
	for _, part := range parts {
		switch part := part.(type) {
		case tftp.Opcode:
			b = binary.BigEndian.AppendUint16(b, uint16(part))
		case int:
			b = binary.BigEndian.AppendUint16(b, uint16(part))
		case string:
			b = append(append(b, part...), 0)
		case []byte:
			b = append(b, part...)
		}
	}
	p.WriteTo(b, p.to)
}

func (p *elsewherePeer) refuse(e *tftp.Error) { p.say(tftp.OpError, int(e.Code), e.Text) }

// hear returns the block number and the rest of the next packet of a kind. Others that come are skipped, an ERROR ends it.
func (p *elsewherePeer) hear(op tftp.Opcode) (number int, rest []byte, ok bool) {
	buf := make([]byte, 4+tftp.MaxBlock)
	p.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return 0, nil, false
		}
		got := tftp.Opcode(binary.BigEndian.Uint16(buf))
		switch {
		case from.String() != p.to.String() || n < 4:
		case got == tftp.OpError:
			p.of.mu.Lock()
			p.of.errors = append(p.of.errors, tftp.Code(binary.BigEndian.Uint16(buf[2:])))
			p.of.mu.Unlock()
			return 0, nil, false
		case got == op:
			return int(binary.BigEndian.Uint16(buf[2:])), buf[4:n], true
		}
	}
}

func (e *elsewhere) transfer(p *elsewherePeer, op, name string, asked map[string]string) {
	if e.first != nil {
		e.first(p.UDPConn, p.to)
	}
	if e.fail != nil && e.failAt == 0 {
		p.refuse(e.fail)
		return
	}
	block := tftp.DefaultBlock
	var agreed []any
	if e.options != nil && len(asked) > 1 {
		answer, refuse := e.options(asked)
		if refuse != nil {
			p.refuse(refuse)
			return
		}
		agreed = append(agreed, tftp.OpOptionAck)
		for name, value := range answer {
			agreed = append(agreed, name, value)
		}
		if b := answer["blksize"]; b != "" {
			fmt.Sscan(b, &block)
		}
	}
	if op == "read" {
		e.mu.Lock()
		file, ok := e.files[name]
		e.mu.Unlock()
		if !ok {
			p.refuse(&tftp.Error{Code: tftp.CodeNotFound, Text: "/srv/secret/" + name + " is not here"})
			return
		}
		if agreed != nil {
			p.say(agreed...)
			if n, _, ok := p.hear(tftp.OpAck); !ok || n != 0 {
				return
			}
		}
		for i := 1; ; i++ {
			n := min(block, len(file))
			if e.fail != nil && e.failAt == i {
				p.refuse(e.fail)
				return
			}
			p.say(tftp.OpData, i, file[:n])
			for {
				k, _, ok := p.hear(tftp.OpAck)
				if !ok {
					return
				}
				if k == i&0xffff {
					break
				}
			}
			if file = file[n:]; n < block {
				return
			}
		}
	}
	if agreed == nil {
		agreed = []any{tftp.OpAck, 0}
	}
	p.say(agreed...)
	var file []byte
	for i := 1; ; i++ {
		k, b, ok := p.hear(tftp.OpData)
		if !ok {
			return
		}
		if k != i&0xffff { // repeated by a machine that is busy
			p.say(tftp.OpAck, k)
			i--
			continue
		}
		if e.fail != nil && e.failAt == i {
			p.refuse(e.fail)
			return
		}
		file = append(file, b...)
		if len(b) < block { // known before it is acknowledged
			e.mu.Lock()
			e.files[name] = file
			e.mu.Unlock()
		}
		p.say(tftp.OpAck, i)
		if len(b) < block {
			return
		}
	}
}

func (e *elsewhere) asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

func (e *elsewhere) has(name string) ([]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, ok := e.files[name]
	return b, ok
}

func (e *elsewhere) remove(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.files, name)
}

// modern agrees to blksize and tsize.
func (e *elsewhere) modern(asked map[string]string) (map[string]string, *tftp.Error) {
	answer := map[string]string{}
	for name, value := range asked {
		switch name {
		case "blksize":
			answer[name] = value
		case "tsize":
			answer[name] = value
			if b, ok := e.has(asked["name"]); ok {
				answer[name] = fmt.Sprint(len(b))
			}
		}
	}
	return answer, nil
}

// strict refuses all options, as some servers do.
func strict(map[string]string) (map[string]string, *tftp.Error) {
	return nil, &tftp.Error{Code: tftp.CodeOptions, Text: "no options here"}
}

// eachLoop runs a test on a loop of each kind.
func eachLoop(t *testing.T, f func(t *testing.T, l *evloop.Loop)) {
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable=%v", portable), func(t *testing.T) {
			core, err := evloop.New(evloop.Config{Loops: 1, Portable: portable})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { core.Close() })
			f(t, core.Loop(0))
		})
	}
}

// far is the handler of the End of a file, for tests. Its funcs run on the loop.
type far struct {
	loop   *evloop.Loop
	end    evloop.End
	got    []byte
	rest   []byte           // is to be written; CloseWrite follows
	part   int              // bytes of a Write
	before func(evloop.End) // if not nil: called before CloseWrite
	paused bool
	onData func(*far)
	eof    bool
	closed chan error
	opened any // *Remote or *File
}

func (f *far) OnData(b []byte) int {
	if f.paused {
		panic("OnData while paused")
	}
	n := len(b)
	if n > 1000 {
		n -= 100 // the rest comes again
	}
	f.got = append(f.got, b[:n]...)
	if f.onData != nil {
		f.onData(f)
	}
	if n < len(b) {
		f.end.Pause()
		f.loop.Post(f.resume)
	}
	return n
}

func (f *far) resume() {
	if !f.paused {
		f.end.Resume()
	}
}

func (f *far) OnEOF() { f.eof = true; f.end.CloseWrite() }

func (f *far) OnDrain() {
	for len(f.rest) > 0 {
		if f.end.Pending() > f.end.HighMark() {
			return
		}
		n := min(f.part, len(f.rest))
		f.end.Write(f.rest[:n])
		f.rest = f.rest[n:]
	}
	if f.before != nil {
		f.before(f.end)
	}
	f.end.CloseWrite()
}

func (f *far) OnClose(err error) {
	if err == nil && !f.eof {
		err = io.ErrUnexpectedEOF
	}
	f.closed <- err
}

// clientGet gets a file and returns it with what the server has agreed to.
func clientGet(l *evloop.Loop, c *Client, server, name string, prepare func(*far)) ([]byte, *far, error) {
	f := &far{loop: l, closed: make(chan error, 1)}
	l.Post(func() {
		c.Get(l, server, name, func(r *Remote, err error) {
			if err != nil {
				f.closed <- err
				return
			}
			f.end, f.opened = r, r
			if prepare != nil {
				prepare(f)
			}
			r.SetHandler(f)
		})
	})
	err := <-f.closed
	return f.got, f, err
}

// clientPut puts a file, in parts of such a size.
func clientPut(l *evloop.Loop, c *Client, server, name string, b []byte, part int) error {
	f := &far{loop: l, closed: make(chan error, 1), rest: b, part: part}
	l.Post(func() {
		c.Put(l, server, name, int64(len(b)), func(r *Remote, err error) {
			if err != nil {
				f.closed <- err
				return
			}
			f.end = r
			r.SetHandler(f)
			f.OnDrain()
		})
	})
	return <-f.closed
}

func bytesOf(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// A file arrives whole, whatever the server makes of options.
func TestClient(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		for _, kind := range []string{"old", "modern", "strict"} {
			e := &elsewhere{}
			switch kind {
			case "modern":
				e.options = e.modern
			case "strict":
				e.options = strict
			}
			server := e.start(t)
			for _, n := range []int{0, 1, 511, 512, 513, 1024, 300_001} {
				name := fmt.Sprint("f", n)
				want := bytesOf(n)
				for _, part := range []int{n + 1, 100, 70_000} {
					e.remove(name)
					if err := clientPut(l, new(Client), server, name, want, part); err != nil {
						t.Fatalf("%s, put %d bytes: %v", kind, n, err)
					}
					if got, ok := e.has(name); !ok || !bytes.Equal(got, want) {
						t.Fatalf("%s: put %d bytes in parts of %d: the server has %d, %v", kind, n, part, len(got), ok)
					}
				}
				got, f, err := clientGet(l, new(Client), server, name, nil)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s: get %d bytes: got %d, %v", kind, n, len(got), err)
				}
				size := int64(-1)
				if kind == "modern" && n > 0 {
					size = int64(n)
				}
				if r := f.opened.(*Remote); r.Size() != size {
					t.Errorf("%s: size is %d, want %d", kind, r.Size(), size)
				}
			}
		}
	})
}

// What is asked for is what the fields of Client say.
func TestClientAsks(t *testing.T) {
	for _, test := range []struct {
		client Client
		write  bool
		want   string
	}{
		{Client{}, false, "read f octet blksize 65464 tsize 0"}, // of the loopback interface, of which one fills a window
		{Client{}, true, "write f octet blksize 65464 tsize 3"},
		{Client{Plain: true}, false, "read f octet"},
		{Client{Mode: tftp.NetASCII}, false, "read f netascii blksize 65464"},
		{Client{Options: tftp.Options{Block: 1000}}, true, "write f octet blksize 1000 windowsize 16 tsize 3"},
		{Client{Options: tftp.Options{Block: 1468, Window: 64, Timeout: 3, HasRollover: true, Rollover: 1}}, false, "read f octet blksize 1468 windowsize 64 timeout 3 tsize 0 rollover 1"},
		{Client{Options: tftp.Options{Block: 70000, Window: 1000}}, false, "read f octet blksize 65464 windowsize 64 tsize 0"},
	} {
		eachLoop(t, func(t *testing.T, l *evloop.Loop) {
			e := &elsewhere{fail: &tftp.Error{Code: tftp.CodeAccess, Text: "no"}}
			server := e.start(t)
			var err error
			if test.write {
				err = clientPut(l, &test.client, server, "f", []byte("abc"), 3)
			} else {
				_, _, err = clientGet(l, &test.client, server, "f", nil)
			}
			var said *tftp.Error
			if !errors.As(err, &said) || !said.Remote || said.Code != tftp.CodeAccess || said.Text != "no" {
				t.Errorf("%v", err)
			}
			if got := e.asked(); len(got) != 1 || got[0] != test.want {
				t.Errorf("asked %q, want %q", got, test.want)
			}
		})
	}
}

// A file that is not as long as the server has said is not whole.
func TestClientSize(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		for said, good := range map[string]bool{"1999": false, "2000": true, "2001": false, "0": true, "512": false} {
			e := &elsewhere{files: map[string][]byte{"f": bytesOf(2000)}}
			e.options = func(map[string]string) (map[string]string, *tftp.Error) {
				return map[string]string{"tsize": said}, nil
			}
			got, _, err := clientGet(l, new(Client), e.start(t), "f", nil)
			if good && (err != nil || len(got) != 2000) || !good && !errors.Is(err, errSize) {
				t.Errorf("said %s: %d bytes, %v", said, len(got), err)
			}
		}
	})
}

// A reader that pauses is waited for, and gets nothing meanwhile.
func TestClientPause(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		want := bytesOf(200_000)
		e := &elsewhere{files: map[string][]byte{"f": want}}
		pauses := 0
		got, _, err := clientGet(l, new(Client), e.start(t), "f", func(f *far) {
			f.onData = func(f *far) {
				if pauses++; pauses%50 == 1 {
					f.paused = true
					f.end.Pause()
					l.Post(func() {
						l.Post(func() {
							f.paused = false
							f.end.Resume()
						})
					})
				}
			}
		})
		if err != nil || !bytes.Equal(got, want) || pauses < 100 {
			t.Errorf("%d bytes, %v, %d pauses", len(got), err, pauses)
		}
	})
}

// The first answer of a server names its port. What comes from others changes nothing.
func TestClientStrangers(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		want := bytesOf(3000)
		e := &elsewhere{files: map[string][]byte{"f": want}}
		told := make(chan []byte, 10)
		e.first = func(_ *net.UDPConn, to net.Addr) {
			other, err := net.ListenPacket("udp", "127.0.0.2:0") // another machine, so to speak
			if err != nil {
				t.Log(err) // not every system has more than one loopback address
				return
			}
			defer other.Close()
			other.WriteTo([]byte("\x00\x05\x00\x00forged\x00"), to)
			other.WriteTo([]byte("\x00\x03\x00\x01forged"), to)
		}
		got, _, err := clientGet(l, new(Client), e.start(t), "f", func(f *far) {
			c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", f.opened.(*Remote).sock.LocalAddr().Port()))
			if err != nil {
				t.Error(err)
				return
			}
			c.Write([]byte("\x00\x05\x00\x00forged\x00")) // an ERROR is not answered
			c.Write([]byte("\x00\x03\x00\x02forged"))
			f.end.Pause()
			go func() {
				defer c.Close()
				defer l.Post(f.end.Resume)
				b := make([]byte, 100)
				c.SetReadDeadline(time.Now().Add(time.Minute))
				n, _ := c.Read(b)
				told <- b[:n]
			}()
		})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if b := <-told; !bytes.HasPrefix(b, []byte{0, 5, 0, 5}) || len(b) > 10 {
			t.Errorf("another port was told %q, want error 5 that is no longer than what it answers", b)
		}
	})
}

// Who does not answer is not waited for, and the next address is asked.
func TestClientSilence(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		deaf := (&elsewhere{silent: true}).start(t)
		c := &Client{Patience: 200 * time.Millisecond}
		if _, _, err := clientGet(l, c, deaf, "f", nil); !errors.Is(err, ErrSilent) {
			t.Errorf("%v", err)
		}
		good := (&elsewhere{files: map[string][]byte{"f": []byte("x")}}).start(t)
		f := &far{loop: l, closed: make(chan error, 1)}
		l.Post(func() {
			r := &Remote{client: &Client{Patience: 2 * time.Second}, loop: l, server: "name", req: tftp.Request{Op: tftp.OpRead, Name: "f"}, size: -1, done: func(r *Remote, err error) {
				if err != nil {
					f.closed <- err
					return
				}
				f.end = r
				r.SetHandler(f)
			}}
			r.try([]netip.AddrPort{netip.MustParseAddrPort(deaf), netip.MustParseAddrPort(good)})
		})
		if err := <-f.closed; err != nil || string(f.got) != "x" {
			t.Errorf("%q, %v", f.got, err)
		}
		if runtime.GOOS == "linux" { // which says at once that nobody listens
			if _, _, err := clientGet(l, &Client{Patience: time.Hour}, "127.0.0.1:1", "f", nil); !errors.Is(err, ErrSilent) || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v", err)
			}
		}
		_, port, _ := net.SplitHostPort(good)
		if got, _, err := clientGet(l, new(Client), "localhost:"+port, "f", nil); err != nil || string(got) != "x" {
			t.Errorf("by name: %q, %v", got, err)
		}
		if _, _, err := clientGet(l, new(Client), "localhost", "f", nil); err == nil {
			t.Error("an address without a port is taken")
		}
	})
}

// A transfer that is aborted, or closed before its end, is over for the server as well.
func TestClientAbort(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		mine := errors.New("mine")
		for _, test := range []struct {
			name string
			stop func(evloop.End)
			want error
		}{
			{"abort", func(e evloop.End) { e.Abort(mine) }, mine},
			{"close", func(e evloop.End) { e.Close() }, io.ErrUnexpectedEOF},
		} {
			e := &elsewhere{files: map[string][]byte{"f": bytesOf(100_000)}}
			server := e.start(t)
			_, _, err := clientGet(l, new(Client), server, "f", func(f *far) {
				f.onData = func(f *far) { test.stop(f.end) }
			})
			if err != test.want {
				t.Errorf("%s: %v, want %v", test.name, err, test.want)
			}
			f := &far{loop: l, closed: make(chan error, 1)}
			l.Post(func() {
				new(Client).Put(l, server, "up", -1, func(r *Remote, err error) {
					if err != nil {
						f.closed <- err
						return
					}
					r.SetHandler(f)
					r.Write(make([]byte, 1000))
					test.stop(r)
				})
			})
			if err := <-f.closed; err != test.want {
				t.Errorf("%s, put: %v, want %v", test.name, err, test.want)
			}
			e.conn.Close()
			e.group.Wait() // every transfer of it is over
			if _, ok := e.has("up"); ok || !slices.Equal(e.errors, []tftp.Code{0, 0}) {
				t.Errorf("%s: the server was told %v, has a file: %v", test.name, e.errors, ok)
			}
		}
	})
}

// After cancel there is no answer.
func TestClientCancel(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{silent: true}
		server := e.start(t)
		_, port, _ := net.SplitHostPort(server)
		for _, server := range []string{server, "localhost:" + port} {
			done := make(chan struct{})
			l.Post(func() {
				cancel := (&Client{Patience: 50 * time.Millisecond}).Get(l, server, "f", func(*Remote, error) { t.Error("done was called") })
				cancel()
				cancel()
				var later evloop.Timer
				l.Arm(&later, 200*time.Millisecond, func() { close(done) })
			})
			<-done
		}
	})
}

// An ERROR in the middle ends a transfer with what the server has said.
func TestClientError(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{files: map[string][]byte{"f": bytesOf(5000)}, fail: &tftp.Error{Code: tftp.CodeDiskFull, Text: "full"}, failAt: 3}
		server := e.start(t)
		_, _, err := clientGet(l, &Client{Plain: true}, server, "f", nil)
		put := clientPut(l, &Client{Plain: true}, server, "up", bytesOf(5000), 1000)
		for _, err := range []error{err, put} {
			var said *tftp.Error
			if !errors.As(err, &said) || *said != (tftp.Error{Code: tftp.CodeDiskFull, Text: "full", Remote: true}) {
				t.Errorf("%v", err)
			}
		}
	})
}
