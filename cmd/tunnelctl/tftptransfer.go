package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
)

const (
	tftpChunk    = 64 << 10 // bytes that are read from a file at once
	tftpAhead    = 1 << 20  // bytes that have come and are not written to a file yet
	progressTime = 250 * time.Millisecond
)

var errInterrupted = errors.New("interrupted")

// tftpTransfer is one file on its way. What is of the network happens on a loop, what is of files in the goroutine of get or put.
type tftpTransfer struct {
	// immutable
	client *tftpd.Client
	server string
	name   string
	verb   string // "got" or "put"
	status io.Writer
	loop   *evloop.Loop
	wake   chan struct{} // of capacity 1: something that mu guards has changed

	// owned by loop
	remote *tftpd.Remote
	cancel func() // before there is a remote

	mu    sync.Mutex
	begun time.Time // the server has agreed; zero: not yet
	full  bool      // what comes is more than is written to the file, or what is read from it more than is sent
	in    []byte    // has come
	seen  progress
	ended bool
	err   error
}

// note changes what mu guards, and wakes the goroutine.
func (t *tftpTransfer) note(f func()) {
	t.mu.Lock()
	f()
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// start makes the loop and has the request sent. stop waits until all of that is gone.
func (t *tftpTransfer) start(size int64) (stop func() error, err error) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		return nil, err
	}
	t.loop = core.Loop(0)
	t.wake = make(chan struct{}, 1)
	t.seen.size = size
	t.loop.Post(func() {
		if t.verb == "put" {
			t.cancel = t.client.Put(t.loop, t.server, t.name, size, t.answered)
		} else {
			t.cancel = t.client.Get(t.loop, t.server, t.name, t.answered)
		}
	})
	return core.Close, nil
}

func (t *tftpTransfer) answered(remote *tftpd.Remote, err error) {
	if err != nil {
		t.OnClose(err)
		return
	}
	t.remote = remote
	remote.SetHandler(t)
	t.look()
	t.note(func() { t.begun = time.Now() })
}

// look takes a note of how far the transfer is.
func (t *tftpTransfer) look() {
	if t.remote == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen.options, t.seen.stats = t.remote.Options(), t.remote.Stats()
	if t.verb == "got" {
		t.seen.size = t.remote.Size()
	}
}

// abort ends the transfer early, with an ERROR to the server.
func (t *tftpTransfer) abort(err error) {
	t.loop.Post(func() {
		if t.remote != nil {
			t.remote.Abort(err)
			return
		}
		t.cancel()
		t.OnClose(err)
	})
}

// tftpTransfer is the handler of its remote.

func (t *tftpTransfer) OnData(b []byte) int {
	t.note(func() {
		t.in = append(t.in, b...)
		if len(t.in) > tftpAhead && !t.full {
			t.full = true
			t.remote.Pause()
		}
	})
	return len(b)
}

func (t *tftpTransfer) OnEOF()   { t.remote.Close() }
func (t *tftpTransfer) OnDrain() { t.note(func() { t.full = false }) }

func (t *tftpTransfer) OnClose(err error) {
	t.look()
	t.note(func() {
		if !t.ended {
			t.ended, t.err = true, err
		}
	})
}

// get writes what comes to a file, until all of it is there.
func (t *tftpTransfer) get(ctx context.Context, to io.Writer) error {
	stop, err := t.start(-1)
	if err != nil {
		return err
	}
	defer stop()
	meter := newMeter(t.status, t.name)
	var spare, text []byte
	var netascii tftp.DecodeNetASCII
	var failed error
	for {
		t.mu.Lock()
		b, full, ended, err := t.in, t.full, t.ended, t.err
		t.in, t.full = spare[:0], false
		t.mu.Unlock()
		if full {
			t.loop.Post(t.remote.Resume)
		}
		spare = b
		if t.client.Mode == tftp.NetASCII {
			text = netascii.Append(text[:0], b)
			if ended && err == nil {
				text = netascii.End(text)
			}
			b = text
		}
		if len(b) > 0 && failed == nil {
			if _, failed = to.Write(b); failed != nil {
				t.abort(failed)
			}
		}
		if ended {
			return t.finish(meter, cmp.Or(failed, err))
		}
		t.wait(&ctx, meter, nil)
	}
}

// put sends what comes from a file, until the server has acknowledged it all.
func (t *tftpTransfer) put(ctx context.Context, from io.Reader, size int64) error {
	stop, err := t.start(size)
	if err != nil {
		return err
	}
	defer stop()
	meter := newMeter(t.status, t.name)
	quit := make(chan struct{})
	defer close(quit)
	pieces := make(chan piece)
	go readPieces(from, t.client.Mode, pieces, quit) // one that waits for input is left behind: the process ends
	for {
		t.mu.Lock()
		ready, ended, err := !t.begun.IsZero() && !t.full, t.ended, t.err
		t.mu.Unlock()
		switch {
		case ended:
			return t.finish(meter, err)
		case !ready:
			t.wait(&ctx, meter, nil)
			continue
		}
		p, ok := t.wait(&ctx, meter, pieces)
		switch {
		case !ok:
		case p.err == nil:
			t.mu.Lock()
			t.full = true
			t.mu.Unlock()
			t.loop.Post(func() {
				t.remote.Write(p.b)
				if t.remote.Pending() <= t.remote.HighMark() {
					t.OnDrain()
				}
			})
		case p.err == io.EOF:
			pieces = nil
			t.loop.Post(t.remote.CloseWrite)
		default:
			pieces = nil
			t.abort(p.err)
		}
	}
}

// wait returns when there is something to look at, or with a piece. The end of ctx ends the transfer.
func (t *tftpTransfer) wait(ctx *context.Context, m *meter, pieces <-chan piece) (p piece, ok bool) {
	select {
	case p, ok = <-pieces:
	case <-t.wake:
	case <-m.tick():
		t.loop.Post(t.look)
		t.mu.Lock()
		seen := t.seen
		t.mu.Unlock()
		m.show(seen)
	case <-(*ctx).Done():
		*ctx = context.WithoutCancel(*ctx)
		t.abort(errInterrupted)
	}
	return p, ok
}

// finish says how it was.
func (t *tftpTransfer) finish(m *meter, err error) error {
	t.mu.Lock()
	seen, begun := t.seen, t.begun
	t.mu.Unlock()
	m.clear()
	if err != nil {
		return t.explain(err, seen)
	}
	fmt.Fprintf(t.status, "%s %s: %s; %d retransmitted, %d came twice\n", t.verb, printable(t.name), moved(seen.stats.Bytes, begun, seen.options), seen.stats.Retransmitted, seen.stats.Duplicates)
	return nil
}

// moved says how much went how fast, and in what way.
func moved(bytes int64, began time.Time, o tftp.Options) string {
	seconds := max(time.Since(began).Seconds(), 1e-6)
	return fmt.Sprintf("%s in %v, %s/s; blocks of %d bytes, windows of %d%s",
		size(uint64(bytes)), took(began), size(uint64(float64(bytes)/seconds)), cmp.Or(o.Block, tftp.DefaultBlock), max(o.Window, 1), others(o))
}

// others names the options that are agreed beside block and window.
func others(o tftp.Options) string {
	var b strings.Builder
	if o.Timeout > 0 {
		fmt.Fprintf(&b, ", timeout %d s", o.Timeout)
	}
	if o.HasRollover {
		fmt.Fprintf(&b, ", rollover to %d", o.Rollover)
	}
	return b.String()
}

// explain adds what to do next to an error.
func (t *tftpTransfer) explain(err error, seen progress) error {
	var said *tftp.Error
	var dns *net.DNSError
	so := fmt.Sprintf("%s: %s", t.server, t.name)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: nothing listens on that port: is a TFTP server running there, on another port?", t.server)
	case errors.Is(err, tftpd.ErrSilent):
		return fmt.Errorf("%s: %w: is a TFTP server there, and does UDP get through, from any port of it? --give-up waits longer than %v", t.server, err, t.client.Patience)
	case errors.Is(err, tftp.ErrTimeout):
		return fmt.Errorf("%s: the server went silent after %s: its log may say more; on a path that loses much try --blksize 512 or --window 1", so, size(uint64(seen.stats.Bytes)))
	case errors.As(err, &dns):
		return fmt.Errorf("%s: %w", t.server, err)
	case errors.As(err, &said) && said.Remote:
		return fmt.Errorf("%s: the server answers error %d, %q: %s", so, said.Code, said.Text, t.advice(said.Code))
	}
	return fmt.Errorf("%s: %w", so, err)
}

func (t *tftpTransfer) advice(code tftp.Code) string {
	switch code {
	case tftp.CodeNotFound:
		if t.verb == "put" {
			return "many servers take no new names: make the file there first, or allow it (tftpd-hpa: --create)"
		}
		return "names begin at the server's folder, and case matters to most servers"
	case tftp.CodeAccess:
		if t.verb == "put" {
			return "the server takes no such file: whether and where it does is in its configuration (tunnelctl tftp serve: --write)"
		}
		return "the server may not read the file, or does not let you"
	case tftp.CodeDiskFull:
		return "make room there, or allow larger files"
	case tftp.CodeExists:
		return "choose another NAME: the server replaces nothing"
	case tftp.CodeIllegal, tftp.CodeOptions:
		return "try --no-options"
	case tftp.CodeUnknownID:
		return "something on the way may change ports: try again"
	}
	return "its log may say more"
}

// piece is what was read of a file, or why nothing more is.
type piece struct {
	b   []byte
	err error
}

// readPieces sends what it reads. A piece is its receiver's until it takes the next one.
func readPieces(from io.Reader, mode tftp.Mode, pieces chan<- piece, quit <-chan struct{}) {
	var netascii tftp.EncodeNetASCII
	var text [2][]byte
	bufs := [2][]byte{make([]byte, tftpChunk), make([]byte, tftpChunk)}
	for i := 0; ; i ^= 1 {
		n, err := from.Read(bufs[i])
		b := bufs[i][:n]
		if mode == tftp.NetASCII {
			text[i] = netascii.Append(text[i][:0], b)
			b = text[i]
		}
		if n > 0 {
			select {
			case pieces <- piece{b: b}:
			case <-quit:
				return
			}
		}
		if err != nil {
			select {
			case pieces <- piece{err: err}:
			case <-quit:
			}
			return
		}
	}
}

// progress is how far a transfer is.
type progress struct {
	size    int64 // -1: not known
	options tftp.Options
	stats   tftp.Stats
}

// meter shows progress on a terminal, and nothing elsewhere.
type meter struct {
	w      io.Writer
	name   string
	ticker *time.Ticker // nil: no terminal
	last   int64        // bytes
	at     time.Time
	rate   float64 // bytes a second, smoothed
}

func newMeter(w io.Writer, name string) *meter {
	m := &meter{w: w, name: printable(name)}
	if r := []rune(m.name); len(r) > meterName {
		m.name = "…" + string(r[len(r)-meterName+1:])
	}
	if daemon.IsTerminal(w) {
		m.ticker = time.NewTicker(progressTime)
	}
	return m
}

func (m *meter) tick() <-chan time.Time {
	if m.ticker == nil {
		return nil
	}
	return m.ticker.C
}

func (m *meter) show(p progress) { fmt.Fprintf(m.w, "\r%s\x1b[K", m.line(p, time.Now())) }

const (
	meterName = 16
	meterBar  = 12
)

// line is less than 80 columns wide.
func (m *meter) line(p progress, now time.Time) string {
	n := p.stats.Bytes
	if d := now.Sub(m.at).Seconds(); m.at.IsZero() {
		m.last, m.at = n, now
	} else if d > 0 {
		rate := float64(n-m.last) / d
		if m.rate > 0 {
			rate = m.rate + (rate-m.rate)/8
		}
		m.last, m.at, m.rate = n, now, rate
	}
	var b strings.Builder
	b.WriteString(m.name)
	if p.size > 0 {
		part := min(float64(n)/float64(p.size), 1)
		done := int(part * meterBar)
		fmt.Fprintf(&b, " [%s%s] %3.0f%%", strings.Repeat("=", done), strings.Repeat(" ", meterBar-done), 100*part)
	}
	fmt.Fprintf(&b, " %s %s/s", size(uint64(n)), size(uint64(m.rate)))
	if p.size > n && m.rate > 0 {
		left := min(float64(p.size-n)/m.rate, 99*24*3600) // seconds
		fmt.Fprintf(&b, " %s left", age(time.Duration(left)*time.Second))
	}
	if again := p.stats.Retransmitted + p.stats.Duplicates; again > 0 {
		fmt.Fprintf(&b, " %d again", again)
	}
	return b.String()
}

func (m *meter) clear() {
	if m.ticker != nil {
		m.ticker.Stop()
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}
