package tftpd

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// originGet reads a file of a Store.
func originGet(l *evloop.Loop, s Store, r *Open) (*far, error) {
	f := &far{loop: l, closed: make(chan error, 1)}
	l.Post(func() {
		s.Open(l, r, func(file *File, err error) {
			if err != nil {
				f.closed <- err
				return
			}
			f.end, f.opened = file.End, file
			f.end.SetHandler(f)
		})
	})
	err := <-f.closed
	return f, err
}

// originPut writes a file. before runs on the loop between all of its bytes and the end, which it may replace by another one.
func originPut(l *evloop.Loop, s Store, r *Open, b []byte, part int, before func(evloop.End)) error {
	r.Write = true
	f := &far{loop: l, closed: make(chan error, 1), rest: b, part: part, before: before}
	l.Post(func() {
		s.Open(l, r, func(file *File, err error) {
			if err != nil {
				f.closed <- err
				return
			}
			f.end = file.End
			f.end.SetHandler(f)
			f.OnDrain()
		})
	})
	return <-f.closed
}

// allClosed waits until nothing is open: files are closed on the pool, after their End has had its OnClose.
func allClosed(l *evloop.Loop, o *Origin) {
	for o.open.Load() > 0 {
		turn := make(chan struct{})
		l.Post(func() { l.Go(func() {}, func() { close(turn) }) })
		<-turn
	}
}

// spools counts the temporary files that are there. They are without a name where the system can do that.
func spools(t *testing.T, dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestOrigin(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir)
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{}
		e.options = e.modern
		o := &Origin{Server: e.start(t), Prefix: "boot/x"}
		for _, want := range [][]byte{nil, bytesOf(1), bytesOf(512), bytesOf(1_000_000)} {
			for _, part := range []int{1000, 200_000} {
				var before []string
				err := originPut(l, o, &Open{Name: "y/f", Size: -1}, want, part, func(evloop.End) { before = e.asked() })
				if err != nil {
					t.Fatalf("put %d bytes: %v", len(want), err)
				}
				if got, ok := e.has("boot/x/y/f"); !ok || !bytes.Equal(got, want) {
					t.Errorf("put %d bytes: %d are there", len(want), len(got))
				}
				if len(e.asked()) != len(before)+1 {
					t.Errorf("before all of %d bytes had come the server was asked %q", len(want), before)
				}
			}
			f, err := originGet(l, o, &Open{Name: "y/f", Size: -1, Have: "old"})
			if err != nil || !bytes.Equal(f.got, want) {
				t.Fatalf("get %d bytes: %d, %v", len(want), len(f.got), err)
			}
			size := int64(len(want))
			if size == 0 {
				size = -1 // as of servers that do not know
			}
			if file := f.opened.(*File); file.Size != size || file.Version != "" || file.Same {
				t.Errorf("%+v", file)
			}
		}
		allClosed(l, o)
	})
	if n := spools(t, dir); n > 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// Text is for the server to convert.
func TestOriginNetASCII(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{files: map[string][]byte{"f": []byte("a\r\nb\r\x00")}}
		o := &Origin{Server: e.start(t)}
		f, err := originGet(l, o, &Open{Name: "f", Mode: tftp.NetASCII})
		if err != nil || string(f.got) != "a\r\nb\r\x00" {
			t.Errorf("%q, %v", f.got, err)
		}
		if err := originPut(l, o, &Open{Name: "g", Mode: tftp.NetASCII, Size: -1}, []byte("x\r\n"), 9, nil); err != nil {
			t.Error(err)
		}
		if b, _ := e.has("g"); string(b) != "x\r\n" {
			t.Errorf("%q", b)
		}
		for _, r := range e.asked() {
			if !strings.Contains(r, " netascii") || strings.Contains(r, "tsize") {
				t.Errorf("asked %q", r)
			}
		}
	})
}

// The server's own words stay where they are.
func TestOriginErrors(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		for _, test := range []struct {
			said tftp.Code
			want *tftp.Error // nil: it is for our log
		}{
			{tftp.CodeNotFound, errNotFound},
			{tftp.CodeAccess, errAccess},
			{tftp.CodeNoUser, errAccess},
			{tftp.CodeDiskFull, errDiskFull},
			{tftp.CodeExists, errExists},
			{tftp.CodeUndefined, nil},
			{tftp.CodeIllegal, nil},
		} {
			for _, at := range []int{0, 2} {
				e := &elsewhere{files: map[string][]byte{"f": bytesOf(200_000)}, fail: &tftp.Error{Code: test.said, Text: "/srv/secret"}, failAt: at}
				o := &Origin{Server: e.start(t)}
				_, read := originGet(l, o, &Open{Name: "f", Size: -1})
				written := originPut(l, o, &Open{Name: "up", Size: -1}, bytesOf(200_000), 10_000, nil)
				for _, err := range []error{read, written} {
					var said *tftp.Error
					switch is := errors.As(err, &said); {
					case err == nil:
						t.Errorf("error %d at block %d: there is none", test.said, at)
					case is && said != test.want, !is && test.want != nil:
						t.Errorf("error %d at block %d: %v", test.said, at, err)
					case !is && !strings.Contains(err.Error(), o.Server):
						t.Errorf("the log is to say which server it is: %v", err)
					}
				}
				allClosed(l, o)
			}
		}
	})
}

// What is not whole, or is too large, does not reach the server.
func TestOriginCut(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir)
	mine := errors.New("mine")
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{}
		o := &Origin{Server: e.start(t), MaxSize: 300_000}
		for name, end := range map[string]func(evloop.End){
			"abort": func(e evloop.End) { e.Abort(mine) },
			"close": func(e evloop.End) { e.Close() },
		} {
			for _, n := range []int{0, 1000, 300_000} {
				err := originPut(l, o, &Open{Name: "f", Size: -1}, bytesOf(n), 1000, end)
				if err == nil || name == "abort" && err != mine {
					t.Errorf("%s after %d bytes: %v", name, n, err)
				}
			}
		}
		for name, r := range map[string]*Open{"announced": {Name: "f", Size: 300_001}, "not announced": {Name: "f", Size: -1}} {
			if err := originPut(l, o, r, bytesOf(300_001), 1000, nil); err != error(errTooLarge) {
				t.Errorf("too large, %s: %v", name, err)
			}
		}
		if err := originPut(l, o, &Open{Name: strings.Repeat("x", 401), Size: -1}, nil, 1, nil); err != error(errAccess) {
			t.Errorf("a long name: %v", err)
		}
		if got := e.asked(); len(got) > 0 {
			t.Errorf("the server was asked %q", got)
		}
		if err := originPut(l, o, &Open{Name: "f", Size: 300_000}, bytesOf(300_000), 1000, nil); err != nil {
			t.Errorf("the largest file there may be: %v", err)
		}
		allClosed(l, o)
	})
	if n := spools(t, dir); n > 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// There is a bound for what is open.
func TestOriginBusy(t *testing.T) {
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		e := &elsewhere{files: map[string][]byte{"f": bytesOf(200_000)}}
		o := &Origin{Server: e.start(t), MaxTransfers: 2}
		var refused []error
		f := &far{loop: l, closed: make(chan error, 2)}
		l.Post(func() {
			var cancels []func()
			for range 3 {
				cancels = append(cancels, o.Open(l, &Open{Name: "f"}, func(_ *File, err error) { refused = append(refused, err) }))
			}
			if !slices.Equal(refused, []error{errTooMany}) {
				t.Errorf("%v", refused)
			}
			cancels[0]() // makes room at once
			o.Open(l, &Open{Name: "up", Write: true, Size: -1}, func(file *File, err error) {
				if err != nil {
					f.closed <- err
					return
				}
				file.End.SetHandler(f)
				f.end, f.part = file.End, 1
				f.OnDrain()
			})
			cancels[1]()
		})
		if err := <-f.closed; err != nil {
			t.Error(err)
		}
		allClosed(l, o)
		for range 3 {
			if _, err := originGet(l, o, &Open{Name: "f"}); err != nil {
				t.Error(err)
			}
		}
	})
}

// Files go through one server and a second one behind it, many at a time, each of which wants its own.
func TestOriginChain(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		serve := func(s Store) string {
			share := &Share{Loop: l, Store: s, Write: true}
			srv := &Server{Find: func(name string, _ netip.AddrPort) (*Share, string, *tftp.Error) { return share, name, nil }}
			if err := srv.Listen(l, "udp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(srv.Close)
			return srv.Addr().String()
		}
		folder, dir := testFolder(t, nil)
		folder.Write = "new"
		o := &Origin{Server: serve(folder)}
		front := serve(o)
		var all sync.WaitGroup
		for i := range 24 {
			all.Go(func() {
				name := fmt.Sprint("f", i)
				want := bytesOf(i * i * 700)
				c := &Client{Options: tftp.Options{Block: []int{0, 512, 1468, 8000}[i%4]}, Plain: i%5 == 0}
				if err := clientPut(l, c, front, name, want, 3000); err != nil {
					t.Errorf("put %d bytes: %v", len(want), err)
					return
				}
				err := clientPut(l, c, front, name, want, 3000)
				if said, ok := errors.AsType[*tftp.Error](err); !ok || said.Code != tftp.CodeExists || said.Text != errExists.Text {
					t.Errorf("put again: %v", err)
				}
				if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, want) {
					t.Errorf("%s has %d bytes of %d: %v", name, len(b), len(want), err)
				}
				got, _, err := clientGet(l, c, front, name, nil)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("get %d bytes: %d, %v", len(want), len(got), err)
				}
				_, _, err = clientGet(l, c, front, "no"+name, nil)
				if said, ok := errors.AsType[*tftp.Error](err); !ok || said.Code != tftp.CodeNotFound {
					t.Errorf("get what is not there: %v", err)
				}
			})
		}
		all.Wait()
		allClosed(l, o)
	})
}

// Many machines that ask for a file at once are read it once.
func TestOriginStorm(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, l *evloop.Loop) {
		want := bytesOf(500_000)
		e := &elsewhere{files: map[string][]byte{"f": want}}
		e.options = e.modern
		share := &Share{Loop: l, Store: &Origin{Server: e.start(t), MaxTransfers: 4}}
		share.Library = NewLibrary(l, share.Store, NewCache(1<<20))
		srv := &Server{Find: func(name string, _ netip.AddrPort) (*Share, string, *tftp.Error) { return share, name, nil }}
		if err := srv.Listen(l, "udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		defer srv.Close()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if got, _, err := clientGet(l, new(Client), srv.Addr().String(), "f", nil); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		all.Wait()
		if n := len(e.asked()); n > 10 { // one every two seconds, which on a busy machine may be several
			t.Errorf("the server was asked %d times", n)
		}
	})
}
