package private

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

// fileService is a tftp service of a folder with these files.
func fileService(t testing.TB, files relay.Files, content map[string]string) (Service, string) {
	dir := t.TempDir()
	for name, text := range content {
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Service{Service: relay.Service{
		Name: "boot", Publish: relay.Publish{Scheme: "tftp", Path: "/boot"}, Target: relay.Target{Scheme: "file", Path: dir}, Files: &files,
	}}, dir
}

// inFolder returns what is in a folder.
func inFolder(t *testing.T, dir string) map[string]string {
	found := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being removed
		} else if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = string(b)
	}
	return found
}

var fileHeader = relay.Header{Kind: relay.KindFile, Service: "boot", Scheme: "tftp", Visitor: netip.MustParseAddrPort("192.0.2.7:40000")}

// ask opens a stream for a file.
func (s *site) ask(r relay.FileRequest) *visitor {
	s.t.Helper()
	v := s.open(fileHeader)
	v.write(string(relay.AppendFile(nil, r)))
	return v
}

func (s *site) read(name string) *visitor {
	s.t.Helper()
	return s.ask(relay.FileRequest{Name: name, Mode: relay.ModeOctet, Size: -1})
}

// reply reads the next reply.
func (v *visitor) reply() relay.FileReply {
	v.site.t.Helper()
	var n [2]byte
	if _, err := io.ReadFull(v.r, n[:]); err != nil {
		v.site.t.Fatalf("no reply: %v", err)
	}
	b := make([]byte, int(n[0])<<8|int(n[1]))
	if _, err := io.ReadFull(v.r, b); err != nil {
		v.site.t.Fatalf("no reply: %v", err)
	}
	r, err := relay.DecodeFileReply(b)
	if err != nil {
		v.site.t.Fatalf("%s: %v", b, err)
	}
	return r
}

// wantError waits for a reply that refuses, and the end of the stream in good order.
func (v *visitor) wantError(code tftp.Code) {
	v.site.t.Helper()
	r := v.reply()
	if r.Error == nil || r.Error.Code != uint16(code) {
		v.site.t.Errorf("reply %+v (%+v), want error %d", r, r.Error, code)
	}
	v.wantEnd("")
}

// wantEnd waits for the rest of a stream, which ends in good order.
func (v *visitor) wantEnd(want string) {
	v.site.t.Helper()
	v.closeWrite()
	if b, err := io.ReadAll(v.r); string(b) != want || err != nil {
		v.site.t.Errorf("%d bytes (%.20q...) and %v, want %d", len(b), b, err, len(want))
	}
	if err := <-v.closed; err != nil {
		v.site.t.Errorf("stream ended with %v", err)
	}
}

// idle waits until no file of the service is open.
func (s *site) idle() {
	s.t.Helper()
	svc := s.peer.relay.services.Load().byName["boot"]
	for svc.open.Load() > 0 {
		s.do(func() {}) // and the streams' ends are on their way
	}
}

// A file comes whole behind a reply that knows its size, and ends in good order; one that is there already does not come.
func TestFileRead(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 200_000) // some windows of a stream
	service, dir := fileService(t, relay.Files{}, map[string]string{"pxelinux.0": "loader", "pxelinux.cfg/default": "a\nb\n", "empty": "", "large": large})
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "pxelinux.0"), old, old); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, service)
	for name, want := range map[string]string{"pxelinux.0": "loader", "pxelinux.cfg/default": "a\nb\n", "empty": "", "large": large} {
		v := s.read(name)
		if r := v.reply(); r.Error != nil || r.Size != int64(len(want)) || r.Version == "" || r.Same {
			t.Fatalf("%s: %+v, %+v", name, r, r.Error)
		}
		v.wantEnd(want)
	}

	v := s.ask(relay.FileRequest{Name: "pxelinux.cfg/default", Mode: relay.ModeNetASCII, Size: -1})
	if r := v.reply(); r.Error != nil || r.Size != -1 {
		t.Errorf("netascii: %+v", r)
	}
	v.wantEnd("a\r\nb\r\n")

	v = s.read("pxelinux.0")
	first := v.reply()
	v.wantEnd("loader")
	have := relay.FileRequest{Name: "pxelinux.0", Mode: relay.ModeOctet, Size: -1, Have: first.Version}
	v = s.ask(have)
	if r := v.reply(); !r.Same || r.Version != first.Version || r.Size != 6 {
		t.Errorf("the same file: %+v", r)
	}
	v.wantEnd("")
	if err := os.WriteFile(filepath.Join(dir, "pxelinux.0"), []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	v = s.ask(have)
	if r := v.reply(); r.Same || r.Version == first.Version || r.Size != 7 {
		t.Errorf("another file: %+v", r)
	}
	v.wantEnd("another")
	s.idle()
	if svc := s.peer.relay.Status().Services[0]; svc.Total != 8 || svc.Failed != 0 {
		t.Errorf("counted %+v", svc)
	}
}

// What is outside of the folder is not there, and what is no file is none.
func TestFileRefused(t *testing.T) {
	service, dir := fileService(t, relay.Files{}, map[string]string{"a": "a", "sub/b": "b", "..c": "c"})
	outside := filepath.Join(filepath.Dir(dir), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(outside)
	links := map[string]tftp.Code{}
	if runtime.GOOS != "windows" {
		for name, to := range map[string]string{"out": outside, "up": "../secret", "top": "/", "loop": "loop"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		links = map[string]tftp.Code{"out": tftp.CodeAccess, "up": tftp.CodeAccess, "top/etc/passwd": tftp.CodeAccess, "loop": tftp.CodeAccess}
	}
	s := newSite(t, service)
	maps.Copy(links, map[string]tftp.Code{
		"../secret": tftp.CodeAccess, "sub/../../secret": tftp.CodeAccess, "..": tftp.CodeAccess, "/etc/passwd": tftp.CodeAccess, "./a": tftp.CodeAccess, "a/": tftp.CodeAccess,
		"sub//b": tftp.CodeAccess, `..\secret`: tftp.CodeAccess, "C:/a": tftp.CodeAccess, "a\n": tftp.CodeAccess, "sub": tftp.CodeAccess,
		"none": tftp.CodeNotFound, "a/b": tftp.CodeNotFound, "none/a": tftp.CodeNotFound,
	})
	for _, name := range slices.Sorted(maps.Keys(links)) {
		v := s.read(name)
		r := v.reply()
		if r.Error == nil || r.Error.Code != uint16(links[name]) {
			t.Errorf("%q: %+v, %+v, want error %d", name, r, r.Error, links[name])
		} else if strings.Contains(r.Error.Text, dir) || strings.Contains(r.Error.Text, "secret") {
			t.Errorf("%q: the visitor is told %q", name, r.Error.Text)
		}
		v.wantEnd("")
	}
	// The public relay asks for what the service does not allow.
	for _, size := range []int64{-1, 0, 5} {
		s.ask(relay.FileRequest{Write: true, Name: "new", Mode: relay.ModeOctet, Size: size}).wantError(tftp.CodeAccess)
	}
	v := s.read("..c") // dots of its own are no way out
	if r := v.reply(); r.Error != nil {
		t.Errorf("..c: %+v", r.Error)
	}
	v.wantEnd("c")
	s.idle()
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a file was written that may not be")
	}
}

// What is no request ends the stream, and so does a stream of another kind.
func TestFileMalformed(t *testing.T) {
	service, _ := fileService(t, relay.Files{}, map[string]string{"a": "a"})
	s := newSite(t, service, tcpService(t, "web", "http://127.0.0.1:1"))
	for _, b := range []string{"\x00\x00", "\x10\x01", "\x00\x02{}", "\x00\x02[]", "\x00\x03\x00\x00\x00", "GET / HTTP/1.1\r\n\r\n",
		string(relay.AppendFile(nil, relay.FileRequest{Name: "a", Mode: "mail", Size: -1})),
		string(relay.AppendFile(nil, relay.FileRequest{Name: "a", Mode: relay.ModeOctet, Size: 3})),
		string(relay.AppendFile(nil, relay.FileRequest{Name: strings.Repeat("a", 256), Mode: relay.ModeOctet, Size: -1})),
	} {
		v := s.open(fileHeader)
		v.write(b)
		v.wantCode(tunnel.CodeForbidden)
	}
	v := s.open(fileHeader)
	v.write("\x00\x20{")
	v.closeWrite()
	v.wantCode(tunnel.CodeForbidden)
	// It comes in pieces.
	v = s.open(fileHeader)
	for _, b := range relay.AppendFile(nil, relay.FileRequest{Name: "a", Mode: relay.ModeOctet, Size: -1}) {
		v.write(string(b))
	}
	if r := v.reply(); r.Size != 1 {
		t.Errorf("%+v", r)
	}
	v.wantEnd("a")

	s.visit("boot").wantCode(tunnel.CodeForbidden)
	s.open(relay.Header{Kind: relay.KindFlow, Service: "boot"}).wantCode(tunnel.CodeForbidden)
	s.open(relay.Header{Kind: relay.KindFile, Service: "web"}).wantCode(tunnel.CodeForbidden)
	s.open(relay.Header{Kind: relay.KindFile, Service: "none"}).wantCode(tunnel.CodeNotFound)
	s.idle()
}

// put asks to write a file, and waits until it may.
func (s *site) put(name string, size int64) *visitor {
	s.t.Helper()
	v := s.ask(relay.FileRequest{Write: true, Name: name, Mode: relay.ModeOctet, Size: size})
	if r := v.reply(); r.Error != nil {
		s.t.Fatalf("%s may not be written: %+v", name, r.Error)
	}
	return v
}

// A file is there when the second reply says so, and not before.
func TestFileWrite(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 200_000)
	service, dir := fileService(t, relay.Files{Write: relay.WriteReplace, MaxSize: 4 << 20}, map[string]string{"old": "old"})
	s := newSite(t, service)
	for name, text := range map[string]string{"old": "new", "empty": "", "large": large} {
		v := s.put(name, int64(len(text)))
		v.write(text)
		if name == "old" {
			if b, _ := os.ReadFile(filepath.Join(dir, name)); string(b) != "old" {
				t.Errorf("the old file is %q while the new one is on its way", b)
			}
		}
		v.closeWrite()
		if r := v.reply(); r.Error != nil {
			t.Errorf("%s: %+v", name, r.Error)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != text || err != nil {
			t.Errorf("%s has %d bytes, %v", name, len(b), err)
		}
		v.wantEnd("")
	}
	v := s.ask(relay.FileRequest{Write: true, Name: "text", Mode: relay.ModeNetASCII, Size: -1})
	v.reply()
	v.write("a\r\nb\r\x00\r")
	v.write("\n")
	v.closeWrite()
	if r := v.reply(); r.Error != nil {
		t.Errorf("netascii: %+v", r.Error)
	}
	v.wantEnd("")
	s.idle()
	if want := map[string]string{"old": "new", "empty": "", "large": large, "text": "a\nb\r\n"}; !reflect.DeepEqual(inFolder(t, dir), want) {
		t.Errorf("the folder has %q", slices.Sorted(maps.Keys(inFolder(t, dir))))
	}
}

// Whatever keeps a file from being written leaves what was there, and nothing else.
func TestFileNotWritten(t *testing.T) {
	before := map[string]string{"old": "old"}
	check := func(t *testing.T, s *site, dir string) {
		s.idle()
		for len(inFolder(t, dir)) > len(before) {
			time.Sleep(time.Millisecond) // for the pool, which removes the temporary file
		}
		if found := inFolder(t, dir); !reflect.DeepEqual(found, before) {
			t.Errorf("the folder has %q", found)
		}
	}
	for name, spoil := range map[string]func(s *site, v *visitor){
		"reset": func(s *site, v *visitor) { s.do(func() { v.stream.Reset(tunnel.CodeCancelled) }) },
		"lost":  func(s *site, v *visitor) { s.do(func() { s.peer.session.Close(nil) }) },
		"forgot": func(s *site, v *visitor) {
			s.do(func() { s.far.Close(nil) })
			s.do(func() { s.peer.session.Close(nil) })
		},
		"too large": func(s *site, v *visitor) {
			v.write(strings.Repeat("x", 10_000))
			v.wantError(tftp.CodeDiskFull)
		},
		"too large at its end": func(s *site, v *visitor) {
			v.write(strings.Repeat("x", 9_995))
			v.closeWrite()
			v.wantError(tftp.CodeDiskFull)
		},
	} {
		t.Run(name, func(t *testing.T) {
			service, dir := fileService(t, relay.Files{Write: relay.WriteReplace, MaxSize: 10_000}, before)
			s := newSite(t, service)
			v := s.put("old", -1)
			v.write("new, or")
			spoil(s, v)
			check(t, s, dir)
		})
	}
	t.Run("announced", func(t *testing.T) {
		service, dir := fileService(t, relay.Files{Write: relay.WriteReplace, MaxSize: 10_000}, before)
		s := newSite(t, service)
		s.ask(relay.FileRequest{Write: true, Name: "old", Mode: relay.ModeOctet, Size: 10_001}).wantError(tftp.CodeDiskFull)
		s.ask(relay.FileRequest{Write: true, Name: "../new", Mode: relay.ModeOctet, Size: 1}).wantError(tftp.CodeAccess)
		s.ask(relay.FileRequest{Write: true, Name: "none/new", Mode: relay.ModeOctet, Size: 1}).wantError(tftp.CodeNotFound)
		check(t, s, dir)
	})
	t.Run("exists", func(t *testing.T) {
		service, dir := fileService(t, relay.Files{Write: relay.WriteNew}, before)
		s := newSite(t, service)
		s.ask(relay.FileRequest{Write: true, Name: "old", Mode: relay.ModeOctet, Size: -1}).wantError(tftp.CodeExists)
		// Somebody else was faster.
		v := s.put("raced", -1)
		v.write("ours")
		if err := os.WriteFile(filepath.Join(dir, "raced"), []byte("theirs"), 0o644); err != nil {
			t.Fatal(err)
		}
		v.closeWrite()
		v.wantError(tftp.CodeExists)
		if b, _ := os.ReadFile(filepath.Join(dir, "raced")); string(b) != "theirs" {
			t.Errorf("the file is %q", b)
		}
		os.Remove(filepath.Join(dir, "raced"))
		check(t, s, dir)
	})
}

// A writer who goes away at any moment leaves the old file, or all of the new one if that was all of it.
func TestFileKilled(t *testing.T) {
	before, after := strings.Repeat("old.", 5_000), strings.Repeat("new!", 50_000)
	service, dir := fileService(t, relay.Files{Write: relay.WriteReplace}, map[string]string{"a": before})
	s := newSite(t, service)
	kept := 0
	for at := 0; at <= len(after); at += 10_000 {
		for _, whole := range []bool{false, true} {
			v := s.put("a", int64(len(after)))
			s.do(func() {
				v.stream.Write([]byte(after[:at]))
				if whole {
					v.stream.Write([]byte(after[at:]))
					v.stream.CloseWrite()
				}
			})
			for range at / 10_000 {
				s.do(func() {}) // it is on its way, or further
			}
			s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
			s.idle()
			for len(inFolder(t, dir)) > 1 {
				time.Sleep(time.Millisecond) // for the pool, which removes the temporary file, or is renaming it
			}
			switch b, err := os.ReadFile(filepath.Join(dir, "a")); {
			case err != nil:
				t.Fatal(err)
			case string(b) == after && whole:
				kept++
				if err := os.WriteFile(filepath.Join(dir, "a"), []byte(before), 0o644); err != nil {
					t.Fatal(err)
				}
			case string(b) != before:
				t.Fatalf("%d bytes of %d were sent, and the file has %d", at, len(after), len(b))
			}
		}
	}
	t.Log(kept, "were safe before their writers went away")
}

// fakeStore is a Store that does as it is told.
type fakeStore func(l *evloop.Loop, r *tftpd.Open, done func(*tftpd.File, error)) func()

func (s fakeStore) Open(l *evloop.Loop, r *tftpd.Open, done func(*tftpd.File, error)) func() {
	return s(l, r, done)
}

// fakeEnd is what a fakeStore has opened.
type fakeEnd struct {
	handler evloop.Handler
	got     bytes.Buffer
	fin     bool
	aborted error
	closed  bool
}

func (e *fakeEnd) SetHandler(h evloop.Handler) { e.handler = h }
func (e *fakeEnd) Write(b []byte)              { e.got.Write(b) }
func (e *fakeEnd) Pending() int                { return 0 }
func (e *fakeEnd) HighMark() int               { return 1 }
func (e *fakeEnd) Pause()                      {}
func (e *fakeEnd) Resume()                     {}
func (e *fakeEnd) CloseWrite()                 { e.fin = true }
func (e *fakeEnd) Close()                      { e.closed = true }
func (e *fakeEnd) Abort(err error)             { e.aborted = err }

func fakeSite(t *testing.T, core *evloop.Core, files relay.Files, store fakeStore) *site {
	service, _ := fileService(t, files, nil)
	s := newSiteOn(t, core, service)
	s.do(func() { s.peer.relay.services.Load().byName["boot"].store = store })
	return s
}

// A store that fails is told to the visitor in words that say nothing of the site, and to the log once.
func TestFileFails(t *testing.T) {
	failed := errors.New("open /srv/secret: input/output error")
	var end *fakeEnd
	var file tftpd.File
	var err error
	s := fakeSite(t, newLoops(t), relay.Files{Write: relay.WriteReplace}, func(_ *evloop.Loop, _ *tftpd.Open, done func(*tftpd.File, error)) func() {
		if err != nil {
			done(nil, err)
			return nil
		}
		end = new(fakeEnd)
		one := file
		one.End = end
		done(&one, nil)
		return nil
	})
	t.Cleanup(s.end)
	svc := s.peer.relay.services.Load().byName["boot"]

	err = failed
	for range 2 {
		v := s.read("a")
		if r := v.reply(); r.Error == nil || *r.Error != (relay.FileError{Code: 0, Text: "The file cannot be had now."}) {
			t.Errorf("%+v", r.Error)
		}
		v.wantEnd("")
	}
	if !svc.down.Load() || svc.failed.Load() != 2 {
		t.Error("a target that is down is not counted")
	}
	err = &tftp.Error{Code: tftp.CodeNotFound, Text: "/srv/secret is not there", Remote: true}
	v := s.read("a")
	if r := v.reply(); r.Error == nil || *r.Error != (relay.FileError{Code: 1, Text: "The file cannot be had now."}) {
		t.Errorf("%+v", r.Error)
	}
	v.wantEnd("")
	err = &tftp.Error{Code: 99, Text: "\x1b[2J"}
	s.read("a").wantError(0)

	// A file that ends early is none, however it ends.
	err, file = nil, tftpd.File{Size: 10, Version: "a\nb"}
	for _, ends := range []func(){
		func() { end.handler.OnEOF() },
		func() { end.handler.OnClose(nil) },
		func() { end.handler.OnClose(failed) },
		func() { end.handler.OnClose(&tftp.Error{Code: tftp.CodeDiskFull}) },
		func() { end.handler.OnData([]byte("and more")); end.handler.OnEOF() },
	} {
		v := s.read("a")
		if r := v.reply(); r.Error != nil || r.Version != "" || r.Size != 10 {
			t.Errorf("%+v", r)
		}
		s.do(func() { end.handler.OnData([]byte("one")); ends() })
		v.wantCode(tunnel.CodeCancelled)
	}
	if svc.down.Load() {
		t.Error("a target that has answered is down")
	}
	// What is not safe is not said to be.
	for _, ends := range []func(){
		func() { end.handler.OnClose(nil) },
		func() { end.handler.OnClose(failed) },
	} {
		for _, whole := range []bool{false, true} {
			v := s.put("a", 3)
			v.write("one")
			if whole {
				v.closeWrite()
				s.do(func() {}) // it is on its way
				s.do(func() {})
			}
			s.do(ends)
			v.wantError(0)
		}
	}
	// The store has no room in the middle of a file.
	v = s.put("a", 3)
	s.do(func() { end.handler.OnClose(&tftp.Error{Code: tftp.CodeDiskFull, Text: "The disk is full."}) })
	v.wantError(tftp.CodeDiskFull)

	// The visitor goes away.
	for _, open := range []func() *visitor{func() *visitor { v := s.read("a"); v.reply(); return v }, func() *visitor { return s.put("a", 3) }} {
		v := open()
		s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
		s.idle()
		s.do(func() {
			if end.aborted == nil || end.closed {
				t.Error("what nobody wants is kept open")
			}
		})
	}
	// Bytes on the way to a file that is read mean nothing.
	v = s.read("a")
	v.reply()
	v.write("x")
	v.wantCode(tunnel.CodeForbidden)
	s.idle()
}

// Nobody waits for ever: for a request, or for a store.
func TestFileDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := 0
		s := fakeSite(t, newCore(t), relay.Files{}, func(*evloop.Loop, *tftpd.Open, func(*tftpd.File, error)) func() {
			return func() { cancelled++ }
		})
		start := time.Now()
		v := s.open(fileHeader)
		v.write("\x00")
		v.wantCode(tunnel.CodeTimeout)
		if took := time.Since(start); took < askTimeout || took > askTimeout+time.Second {
			t.Errorf("a request was waited for for %v", took)
		}
		start = time.Now()
		s.read("a").wantError(tftp.CodeUndefined)
		if took := time.Since(start); took < openTimeout || took > openTimeout+time.Second {
			t.Errorf("a store was waited for for %v", took)
		}
		v = s.read("a")
		synctest.Wait()
		s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
		synctest.Wait()
		s.do(func() {
			if cancelled != 2 {
				t.Errorf("%d opens were cancelled, want 2", cancelled)
			}
		})
		s.end()
		s.peer.relay.Core.Close()
	})
}

// A reload that changes nothing leaves a service its store; one that changes something does not.
func TestFileReload(t *testing.T) {
	service, dir := fileService(t, relay.Files{Cache: true}, map[string]string{"a": "a"})
	s := newSite(t, service)
	r := s.peer.relay
	store := func() tftpd.Store { return r.services.Load().byName["boot"].store }
	first := store()
	if err := r.Reload([]Service{service}); err != nil || store() != first {
		t.Errorf("the store of an unchanged service was replaced: %v", err)
	}
	changed := service
	changed.Files = &relay.Files{Write: relay.WriteNew}
	if err := r.Reload([]Service{changed}); err != nil || store() == first {
		t.Errorf("the store of a changed service stays: %v", err)
	}
	if err := r.Reload([]Service{service}); err != nil {
		t.Error(err)
	}
	// Another folder takes the place of the one that was there.
	if runtime.GOOS == "windows" {
		return
	}
	first = store()
	if err := errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload([]Service{service}); err != nil || store() == first {
		t.Errorf("the store of a folder that is gone stays: %v", err)
	}
	os.RemoveAll(dir + ".old")
	service.Target.Path = filepath.Join(dir, "none")
	if err := r.Reload([]Service{service}); err == nil {
		t.Error("a folder that is not there is served")
	}
}

// The files of a web server are below the path of the target, and only read.
func TestFileWeb(t *testing.T) {
	var connections sync.WaitGroup
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/images/a b/vmlinuz":
			w.Header().Set("ETag", `"1"`)
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("kernel"))
		case "/images/a b/short":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "short")
		case "/images/a b/forbidden":
			http.Error(w, "secret", http.StatusForbidden)
		default:
			http.NotFound(w, r)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			connections.Add(1)
		case http.StateClosed:
			connections.Done()
		}
	}
	srv.Start()
	defer srv.Close()
	service := Service{Service: relay.Service{Name: "boot", Publish: relay.Publish{Scheme: "tftp", Path: "/boot"}, Files: &relay.Files{}}}
	var err error
	if service.Target, err = relay.ParseTarget(srv.URL + "/images/a%20b/"); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, service)

	v := s.read("vmlinuz")
	r := v.reply()
	if r.Error != nil || r.Size != 6 || r.Version == "" {
		t.Fatalf("%+v, %+v", r, r.Error)
	}
	v.wantEnd("kernel")
	v = s.ask(relay.FileRequest{Name: "vmlinuz", Mode: relay.ModeOctet, Size: -1, Have: r.Version})
	if r := v.reply(); !r.Same {
		t.Errorf("the same file: %+v", r)
	}
	v.wantEnd("")
	s.read("none").wantError(tftp.CodeNotFound)
	s.read("forbidden").wantError(tftp.CodeAccess)
	s.ask(relay.FileRequest{Write: true, Name: "vmlinuz", Mode: relay.ModeOctet, Size: 1}).wantError(tftp.CodeAccess)
	v = s.read("short") // is not a short file
	if r := v.reply(); r.Size != 10 {
		t.Errorf("%+v", r)
	}
	v.wantCode(tunnel.CodeCancelled)
	s.idle()

	// A service that is gone keeps no connection.
	if err := s.peer.relay.Reload(nil); err != nil {
		t.Fatal(err)
	}
	connections.Wait()
}
