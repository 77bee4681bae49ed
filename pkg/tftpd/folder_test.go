package tftpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// storeLoop is a loop for stores, of a core that ends with the test.
func storeLoop(t testing.TB) *evloop.Loop {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	return core.Loop(0)
}

// storeUser is somebody who reads or writes a file of a store.
type storeUser struct {
	loop *evloop.Loop
	file *File
	end  evloop.End

	data   []byte             // what has come
	eof    bool               // OnEOF was called
	use    func(b []byte) int // instead of taking all that comes
	onEOF  func()             // instead of Close
	drain  func()             // OnDrain
	result chan error         // of Open if that fails, else of OnClose
	opened func(u *storeUser) // what is done first
}

func (u *storeUser) OnData(b []byte) int {
	if u.use != nil {
		return u.use(b)
	}
	u.data = append(u.data, b...)
	clear(b) // it is the handler's
	return len(b)
}

func (u *storeUser) OnEOF() {
	u.eof = true
	if u.onEOF != nil {
		u.onEOF()
		return
	}
	u.end.Close()
}

func (u *storeUser) OnDrain() { u.drain() }

func (u *storeUser) OnClose(err error) { u.result <- err }

// open opens a file; u.result tells how it ended.
func (u *storeUser) open(l *evloop.Loop, s Store, r *Open) {
	u.loop, u.result = l, make(chan error, 1)
	l.Post(func() {
		s.Open(l, r, func(f *File, err error) {
			if err != nil {
				u.result <- err
				return
			}
			u.file, u.end = f, f.End
			if f.Same {
				u.result <- nil
				return
			}
			f.End.SetHandler(u)
			if u.opened != nil {
				u.opened(u)
			}
		})
	})
}

func (u *storeUser) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-u.result:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the store says nothing")
		return nil
	}
}

// storeGet reads a file whole.
func storeGet(t testing.TB, l *evloop.Loop, s Store, r *Open) (*storeUser, error) {
	t.Helper()
	u := &storeUser{}
	u.open(l, s, r)
	err := u.wait(t)
	if err == nil && !u.eof && !u.file.Same {
		t.Errorf("%s: it ended in order without an end of file", r.Name)
	}
	return u, err
}

// storePut writes a file in pieces of so many bytes, as fast as the store takes them.
func storePut(t testing.TB, l *evloop.Loop, s Store, r *Open, content []byte, piece int) (saved bool, err error) {
	t.Helper()
	r.Write = true
	u := &storeUser{}
	u.opened = func(u *storeUser) {
		rest := content
		u.drain = func() {
			for len(rest) > 0 && u.end.Pending() <= u.end.HighMark() {
				n := min(piece, len(rest))
				b := bytes.Clone(rest[:n])
				u.end.Write(b)
				clear(b) // it was lent
				rest = rest[n:]
			}
			if len(rest) == 0 {
				u.end.CloseWrite()
				u.drain = func() {}
			}
		}
		u.drain()
	}
	u.open(l, s, r)
	err = u.wait(t)
	return u.eof, err
}

// testFolder is a folder with files, and a secret beside it.
func testFolder(t testing.TB, files map[string]string) (f *Folder, dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "tftp")
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(dir, 0o755)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return &Folder{Root: root}, dir
}

// wantCode fails the test unless err is a *tftp.Error of code that tells nothing of the site.
func wantCode(t testing.TB, what string, err error, code tftp.Code, secrets ...string) {
	t.Helper()
	e, ok := errors.AsType[*tftp.Error](err)
	if !ok || e.Code != code {
		t.Errorf("%s: %v, want code %d", what, err, code)
		return
	}
	for _, s := range secrets {
		if strings.Contains(e.Text, s) {
			t.Errorf("%s: %q tells %q", what, e.Text, s)
		}
	}
}

// slogTo is a log of plain lines.
func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// contents are sizes around what is read and written at a time.
func contents() [][]byte {
	var all [][]byte
	for _, n := range []int{0, 1, 511, 512, 513, chunk - 1, chunk, chunk + 1, 2 * chunk, 3*chunk + 7, 5 << 20} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i>>8 ^ i*7)
		}
		all = append(all, b)
	}
	return all
}

func TestFolderRead(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, nil)
	for _, content := range contents() {
		name := filepath.Join(dir, "file")
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
		u, err := storeGet(t, l, f, &Open{Name: "file", Size: -1})
		if err != nil || !bytes.Equal(u.data, content) || u.file.Size != int64(len(content)) {
			t.Errorf("%d bytes: %d of %d, %v", len(content), len(u.data), u.file.Size, err)
		}
	}
}

// A reader that pauses, keeps, resumes and changes hands gets all bytes once, in order.
func TestFolderReadAtLeisure(t *testing.T) {
	l := storeLoop(t)
	content := contents()[10]
	f, _ := testFolder(t, map[string]string{"file": string(content)})
	u := &storeUser{}
	var got []byte
	n := 0
	u.use = func(b []byte) int {
		n++
		used := min(len(b), 1+n*7919%200000)
		got = append(got, b[:used]...)
		clear(b[:used])
		if n%3 == 0 || used < len(b) { // or the end of the file finds the rest unused
			u.end.Pause()
			l.Post(u.end.Resume)
		}
		if n%5 == 0 {
			u.end.SetHandler(u)
		}
		return used
	}
	u.open(l, f, &Open{Name: "file", Size: -1})
	if err := u.wait(t); err != nil || !u.eof || !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d, %v", len(got), len(content), err)
	}
}

// A reader that has stopped holds one piece, however long the file is, and its abort frees it.
func TestFolderReadPaused(t *testing.T) {
	l := storeLoop(t)
	f, _ := testFolder(t, map[string]string{"file": string(contents()[10])})
	u := &storeUser{}
	var r *folderRead
	stopped := make(chan struct{})
	u.use = func(b []byte) int {
		r = u.end.(*folderRead)
		u.end.Pause()
		close(stopped)
		return len(b)
	}
	u.open(l, f, &Open{Name: "file", Size: -1})
	<-stopped
	for { // a read that is under way comes back
		posted := make(chan bool)
		l.Post(func() { posted <- r.busy })
		if !<-posted {
			break
		}
		runtime.Gosched()
	}
	l.Post(func() {
		if r.off > 2*chunk {
			t.Errorf("%d bytes were read for a reader that wants none", r.off)
		}
		u.end.Abort(fs.ErrInvalid)
		u.end.Resume()
	})
	if err := u.wait(t); err != fs.ErrInvalid {
		t.Errorf("aborted: %v", err)
	}
	waitClosed(t, l, r.file)
}

// waitClosed waits until the pool of l has closed f.
func waitClosed(t testing.TB, l *evloop.Loop, f *os.File) {
	t.Helper()
	for range 20000 {
		if _, err := f.Stat(); errors.Is(err, fs.ErrClosed) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%s was not closed", filepath.Base(f.Name()))
}

func TestFolderVersion(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"file": "one", "other": "two"})
	u, err := storeGet(t, l, f, &Open{Name: "file", Size: -1})
	v := u.file.Version
	if err != nil || v == "" || len(v) > MaxVersion {
		t.Fatalf("version %q, %v", v, err)
	}
	if u, err := storeGet(t, l, f, &Open{Name: "file", Size: -1, Have: v}); err != nil || !u.file.Same || u.file.End != nil || u.file.Version != v || u.file.Size != 3 {
		t.Errorf("the same file: %+v, %v", u.file, err)
	}
	// Another content of the same length, at the same time, under the same name.
	info, err := os.Stat(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	then := info.ModTime()
	os.Chtimes(filepath.Join(dir, "other"), then, then)
	if err := os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" {
		if u, err := storeGet(t, l, f, &Open{Name: "file", Size: -1, Have: v}); err != nil || u.file.Same || string(u.data) != "two" {
			t.Errorf("another file: %+v, %q, %v", u.file, u.data, err)
		}
	}
	// What was written this moment is never the same: it may be written again without getting a later time.
	os.WriteFile(filepath.Join(dir, "file"), []byte("new"), 0o644)
	info, _ = os.Stat(filepath.Join(dir, "file"))
	now := info.ModTime()
	young, settled := version(info, now)
	if old, later := version(info, now.Add(time.Minute)); settled || !later || young == old || len(young) > MaxVersion {
		t.Errorf("version %q (%v), later %q (%v)", young, settled, old, later)
	}
}

// A file that changes while it is read does not look like a whole one.
func TestFolderChange(t *testing.T) {
	l := storeLoop(t)
	for what, change := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 3*chunk) },
		"grown": func(path string) error {
			return os.WriteFile(path, make([]byte, 6<<20), 0o644)
		},
		"overwritten": func(path string) error { return os.WriteFile(path, make([]byte, 5<<20), 0o644) },
	} {
		f, dir := testFolder(t, map[string]string{"file": string(contents()[10])})
		u := &storeUser{}
		changed := false
		u.use = func(b []byte) int {
			if !changed {
				changed = true
				u.end.Pause()
				if err := change(filepath.Join(dir, "file")); err != nil {
					t.Error(err)
				}
				u.end.Resume()
			}
			return len(b)
		}
		u.open(l, f, &Open{Name: "file", Size: -1})
		err := u.wait(t)
		if _, said := errors.AsType[*tftp.Error](err); err == nil || said || u.eof {
			t.Errorf("%s: %v, end %v", what, err, u.eof)
		}
	}
	// One that gets another file's name is read to its end.
	f, dir := testFolder(t, map[string]string{"file": string(contents()[10]), "new": "new"})
	u := &storeUser{}
	n := 0
	u.use = func(b []byte) int {
		if n == 0 {
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "file")); err != nil && runtime.GOOS != "windows" {
				t.Error(err)
			}
		}
		n += len(b)
		return len(b)
	}
	u.open(l, f, &Open{Name: "file", Size: -1})
	if err := u.wait(t); err != nil || n != 5<<20 {
		t.Errorf("replaced: %d bytes, %v", n, err)
	}
}

func TestFolderNetASCII(t *testing.T) {
	l := storeLoop(t)
	for _, text := range []string{"", "\n", "\r", "\r\n", "a\nb\r\nc\rd", strings.Repeat("line\n", 100000), strings.Repeat("\n", 3*chunk), strings.Repeat("\r", chunk+1),
		strings.Repeat("x", chunk-1) + "\r\n" + strings.Repeat("y", chunk-1) + "\r"} {
		f, dir := testFolder(t, map[string]string{"text": text})
		f.Write = "new"
		u, err := storeGet(t, l, f, &Open{Name: "text", Mode: tftp.NetASCII, Size: -1})
		if err != nil || u.file.Size != -1 {
			t.Errorf("%.20q: size %d, %v", text, u.file.Size, err)
		}
		if want := string(new(tftp.EncodeNetASCII).Append(nil, []byte(text))); string(u.data) != want {
			t.Errorf("%.20q: read %d bytes, want %d", text, len(u.data), len(want))
		}
		for i, piece := range []int{1 << 20, 512, 511} {
			name := fmt.Sprintf("copy%d", i)
			if saved, err := storePut(t, l, f, &Open{Name: name, Mode: tftp.NetASCII, Size: -1}, u.data, piece); !saved || err != nil {
				t.Errorf("%.20q: %v", text, err)
			}
			if b, _ := os.ReadFile(filepath.Join(dir, name)); string(b) != text {
				t.Errorf("%.20q: %d bytes came back, want %d", text, len(b), len(text))
			}
		}
	}
	// A CR at the very end is one.
	f, dir := testFolder(t, nil)
	f.Write = "new"
	storePut(t, l, f, &Open{Name: "text", Mode: tftp.NetASCII, Size: -1}, []byte("a\r\nb\r"), 100)
	if b, _ := os.ReadFile(filepath.Join(dir, "text")); string(b) != "a\nb\r" {
		t.Errorf("%q", b)
	}
}

// names are those of the files below dir.
func names(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			all = append(all, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	slices.Sort(all)
	return all
}

func TestFolderWrite(t *testing.T) {
	l := storeLoop(t)
	for i, content := range contents() {
		f, dir := testFolder(t, map[string]string{"sub/file": "old"})
		for _, test := range []struct {
			write, name string
			code        tftp.Code
		}{
			{"", "sub/file", tftp.CodeAccess},
			{"", "new", tftp.CodeAccess},
			{"new", "sub/file", tftp.CodeExists},
			{"new", "sub", tftp.CodeAccess},
			{"replace", "sub", tftp.CodeAccess},
			{"new", "none/file", tftp.CodeNotFound},
			{"new", "sub/file/x", tftp.CodeNotFound},
			{"replace", "sub/file/x", tftp.CodeNotFound},
		} {
			f.Write = test.write
			saved, err := storePut(t, l, f, &Open{Name: test.name, Size: -1}, content, 512)
			wantCode(t, test.write+" "+test.name, err, test.code, dir)
			if saved {
				t.Errorf("%s %s: saved", test.write, test.name)
			}
		}
		f.Write = "new"
		if saved, err := storePut(t, l, f, &Open{Name: "sub/new", Size: int64(len(content))}, content, 512); !saved || err != nil {
			t.Errorf("new: %v", err)
		}
		f.Write = "replace"
		for _, name := range []string{"sub/file", "other"} {
			if saved, err := storePut(t, l, f, &Open{Name: name, Size: -1}, content, 1+i*100000); !saved || err != nil {
				t.Errorf("replace %s: %v", name, err)
			}
		}
		if got := names(t, dir); !slices.Equal(got, []string{"other", "sub/file", "sub/new"}) {
			t.Errorf("in the folder: %q", got)
		}
		for _, name := range names(t, dir) {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, content) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(b), len(content), err)
			}
		}
	}
}
