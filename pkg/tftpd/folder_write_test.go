package tftpd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
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

// wantFiles fails the test unless dir has these files, name and content by turns, and no other.
func wantFiles(t testing.TB, what, dir string, want ...string) {
	t.Helper()
	var got []string
	for _, name := range names(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			t.Error(err)
		}
		got = append(got, name, string(b))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: in the folder are %.200q, want %.200q", what, got, want)
	}
}

// onStoreCore runs f on a core, and closes that: then the pool has done all that it was given.
func onStoreCore(t testing.TB, f func(l *evloop.Loop)) {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	f(core.Loop(0))
}

// Whenever an upload is ended, the old file is there as it was, and no other; or all of the new one.
func TestFolderKilled(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), 40<<10/16)
	for _, how := range []string{"abort", "close", "core"} {
		for kill := 0; kill <= len(content)/512; kill += 10 {
			f, dir := testFolder(t, map[string]string{"file": "old"})
			f.Write = "replace"
			onStoreCore(t, func(l *evloop.Loop) {
				u := &storeUser{}
				sent := make(chan struct{})
				u.opened = func(u *storeUser) {
					u.drain = func() {}
					n := 0
					var timer evloop.Timer
					var step func()
					step = func() { // a block a turn, so that the disk is at work in between
						if n == kill {
							switch how {
							case "abort":
								u.end.Abort(fs.ErrInvalid)
								u.end.CloseWrite()
							case "close":
								u.end.Close()
								u.end.CloseWrite()
							}
							u.end.Write(content)
							close(sent)
							return
						}
						u.end.Write(content[n*512 : (n+1)*512])
						n++
						if n%16 == 0 {
							l.Arm(&timer, 0, step)
							return
						}
						l.Post(step)
					}
					step()
				}
				u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
				<-sent
				if how == "core" {
					return // nobody ends it
				}
				if err := u.wait(t); err == nil || u.eof {
					t.Errorf("%s: %v", how, err)
				}
			})
			if how == "core" {
				// Nothing is at work that could remove it: it is removed a day later. It must not be at the file's place.
				for _, name := range names(t, dir) {
					if isTemp(name) {
						os.Remove(filepath.Join(dir, name))
					}
				}
			}
			wantFiles(t, fmt.Sprintf("%s at block %d", how, kill), dir, "file", "old")
		}
	}
}

// An abort while the disk saves the file leaves either one, whole.
func TestFolderKilledSaving(t *testing.T) {
	content := strings.Repeat("new", 100000)
	old, changed := 0, 0
	for i := range 40 {
		f, dir := testFolder(t, map[string]string{"file": "old"})
		f.Write = "replace"
		onStoreCore(t, func(l *evloop.Loop) {
			u := &storeUser{onEOF: func() {}}
			u.opened = func(u *storeUser) {
				u.drain = func() {}
				u.end.Write([]byte(content))
				u.end.CloseWrite()
				turns := 0
				var later func()
				later = func() {
					if turns++; turns < i*i || i > 30 && !u.eof {
						l.Post(later)
						return
					}
					u.end.Abort(fs.ErrInvalid)
				}
				l.Post(later)
			}
			u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
			if err := u.wait(t); (err == nil) != u.eof {
				t.Errorf("%v, safe: %v", err, u.eof)
			}
			if u.eof {
				changed++
			} else {
				old++
			}
		})
		b, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil || string(b) != "old" && string(b) != content || len(names(t, dir)) != 1 {
			t.Errorf("%d bytes, %v, beside %q", len(b), err, names(t, dir))
		}
	}
	if old == 0 || changed == 0 {
		t.Errorf("%d aborted before, %d after", old, changed)
	}
}

// A file that is opened for nobody leaves nothing behind, however far that has come.
func TestFolderCancel(t *testing.T) {
	for i := range 30 {
		f, dir := testFolder(t, map[string]string{"file": "old"})
		f.Write = "replace"
		onStoreCore(t, func(l *evloop.Loop) {
			ended := make(chan struct{})
			l.Post(func() {
				cancelled := false
				var cancels []func()
				for _, write := range []bool{true, false} {
					cancels = append(cancels, f.Open(l, &Open{Name: "file", Write: write, Size: -1}, func(f *File, err error) {
						if err != nil || cancelled {
							t.Errorf("done was called after cancel, or with an error: %v", err)
							return
						}
						f.End.Abort(nil)
					}))
				}
				turns := 0
				var later func()
				later = func() {
					if turns++; turns <= i*i {
						l.Post(later)
						return
					}
					cancelled = true
					for _, cancel := range cancels {
						cancel()
					}
					close(ended)
				}
				later()
			})
			<-ended
		})
		wantFiles(t, "cancelled", dir, "file", "old")
	}
}

// A file that is too large is refused as soon as that is known.
func TestFolderMaxSize(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"file": "old"})
	f.Write, f.MaxSize = "replace", 1000
	_, err := storePut(t, l, f, &Open{Name: "file", Size: 1001}, nil, 512)
	wantCode(t, "announced", err, tftp.CodeDiskFull)
	for _, mode := range []tftp.Mode{tftp.Octet, tftp.NetASCII} {
		saved, err := storePut(t, l, f, &Open{Name: "file", Mode: mode, Size: -1}, make([]byte, 1001), 512)
		wantCode(t, "written", err, tftp.CodeDiskFull)
		if saved {
			t.Error("too large, and saved")
		}
		wantFiles(t, "too large", dir, "file", "old")
	}
	// A CR that turns out to be the last byte counts, too.
	_, err = storePut(t, l, f, &Open{Name: "file", Mode: tftp.NetASCII, Size: -1}, []byte(strings.Repeat("x", 1000)+"\r"), 512)
	wantCode(t, "written", err, tftp.CodeDiskFull)
	wantFiles(t, "too large", dir, "file", "old")
	if saved, err := storePut(t, l, f, &Open{Name: "file", Mode: tftp.NetASCII, Size: -1}, []byte(strings.Repeat("x", 999)+"\r\n"), 512); !saved {
		t.Errorf("as large as it may be: %v", err)
	}
}

// Each of several uploads of one name is whole, and the last one stays; or the first one, where none may be replaced.
func TestFolderConcurrent(t *testing.T) {
	l := storeLoop(t)
	for _, write := range []string{"new", "replace"} {
		f, dir := testFolder(t, nil)
		f.Write = write
		const n = 20
		users := make([]*storeUser, n)
		ready := make(chan struct{})
		opened := 0
		for i := range users {
			u := &storeUser{}
			users[i] = u
			u.opened = func(u *storeUser) {
				u.drain = func() {}
				if opened++; opened < n {
					return
				}
				for i, u := range users { // all are open before the first one is written
					u.end.Write(bytes.Repeat([]byte{byte('a' + i)}, 100000))
					u.end.CloseWrite()
				}
				close(ready)
			}
			u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
		}
		<-ready
		saved := 0
		for _, u := range users {
			switch err := u.wait(t); {
			case u.eof:
				saved++
			default:
				wantCode(t, "the second one", err, tftp.CodeExists)
			}
		}
		if write == "new" && saved != 1 || write == "replace" && saved != n {
			t.Errorf("%s: %d of %d are saved", write, saved, n)
		}
		b, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil || len(b) != 100000 || bytes.Count(b, b[:1]) != len(b) || len(names(t, dir)) != 1 {
			t.Errorf("%s: %d bytes, of several: %.20q, %v, beside %q", write, len(b), b, err, names(t, dir))
		}
	}
}

// Where the file system has no hard links, a new file still replaces none.
func TestFolderNoLinks(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, nil)
	f.Write = "new"
	put := func(meanwhile func()) (bool, error) {
		u := &storeUser{}
		u.opened = func(u *storeUser) {
			u.drain = func() {}
			meanwhile()
			u.end.(*folderWrite).temp.link = func(string, string) error { return &os.LinkError{Op: "link", Err: errors.ErrUnsupported} }
			u.end.Write([]byte("new"))
			u.end.CloseWrite()
		}
		u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
		err := u.wait(t)
		return u.eof, err
	}
	if saved, err := put(func() {}); !saved {
		t.Error(err)
	}
	wantFiles(t, "new", dir, "file", "new")
	os.Remove(filepath.Join(dir, "file"))
	_, err := put(func() { os.WriteFile(filepath.Join(dir, "file"), []byte("other"), 0o644) })
	wantCode(t, "exists", err, tftp.CodeExists)
	wantFiles(t, "exists", dir, "file", "other")
}

// What becomes of the name while a file is written is seen when it gets it.
func TestFolderOvertaken(t *testing.T) {
	l := storeLoop(t)
	for _, write := range []string{"new", "replace"} {
		f, dir := testFolder(t, map[string]string{"sub/x": "x"})
		f.Write = write
		u := &storeUser{}
		u.opened = func(u *storeUser) {
			u.drain = func() {}
			if err := os.Mkdir(filepath.Join(dir, "sub/file"), 0o755); err != nil {
				t.Error(err)
			}
			u.end.Write([]byte("new"))
			u.end.CloseWrite()
		}
		u.open(l, f, &Open{Name: "sub/file", Write: true, Size: -1})
		wantCode(t, write+": a folder of that name", u.wait(t), tftp.CodeExists)
		wantFiles(t, write, dir, "sub/x", "x")
		if runtime.GOOS == "windows" {
			continue // an open folder stays where it is
		}
		// The folder is moved away, and another one is in its place: the file stays with the first.
		u = &storeUser{}
		u.opened = func(u *storeUser) {
			u.drain = func() {}
			os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, "moved"))
			os.Symlink("..", filepath.Join(dir, "sub"))
			u.end.Write([]byte("new"))
			u.end.CloseWrite()
		}
		u.open(l, f, &Open{Name: "sub/y", Write: true, Size: -1})
		if err := u.wait(t); err != nil {
			t.Error(err)
		}
		os.Remove(filepath.Join(dir, "sub"))
		wantFiles(t, write, dir, "moved/x", "x", "moved/y", "new")
		if got := names(t, filepath.Dir(dir)); len(got) != 3 {
			t.Errorf("beside the folder: %q", got)
		}
	}
}

// What a crash has left goes when the first file is written, if it is old; what only looks like it stays.
func TestFolderTidy(t *testing.T) {
	temp := tempPrefix + strings.Repeat("a", 26)
	files := map[string]string{temp: "young", "old": "x", tempPrefix + "notes": "x", "a/b/" + temp: "old", temp + "b": "x", "file": "x"}
	f, dir := testFolder(t, files)
	f.Write = "new"
	for _, name := range names(t, dir) {
		age := 25 * time.Hour
		if name == temp {
			age = 23 * time.Hour
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(dir, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	onStoreCore(t, func(l *evloop.Loop) {
		if _, err := storeGet(t, l, f, &Open{Name: "file", Size: -1}); err != nil {
			t.Error(err)
		}
	})
	if got := names(t, dir); len(got) != len(files) {
		t.Errorf("by reading: %q", got)
	}
	onStoreCore(t, func(l *evloop.Loop) {
		if _, err := storePut(t, l, f, &Open{Name: "new", Size: -1}, []byte("x"), 1); err != nil {
			t.Error(err)
		}
	})
	wantFiles(t, "tidied", dir, temp, "young", temp+"b", "x", tempPrefix+"notes", "x", "file", "x", "new", "x", "old", "x")
	then := time.Now().Add(-25 * time.Hour)
	os.Chtimes(filepath.Join(dir, temp), then, then)
	for _, ago := range []time.Duration{leftover - time.Hour, leftover + time.Hour} { // not for each upload, but again
		f.tidied.Store(time.Now().Add(-ago).UnixNano())
		onStoreCore(t, func(l *evloop.Loop) {
			_, err := storePut(t, l, f, &Open{Name: "new", Size: -1}, []byte("x"), 1)
			wantCode(t, "the second upload", err, tftp.CodeExists)
		})
		if _, err := os.Stat(filepath.Join(dir, temp)); (err != nil) != (ago > leftover) {
			t.Errorf("%v after the last look: %v", ago, err)
		}
	}
}

// The end of a file that is written says what a connection says, in the same order.
func TestFolderWriteEnd(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, nil)
	f.Write = "replace"
	// Paused: nothing is said until it is resumed.
	u := &storeUser{}
	var w *folderWrite
	u.opened = func(u *storeUser) {
		u.drain = func() {}
		w = u.end.(*folderWrite)
		w.Pause()
		w.Write([]byte("one"))
		w.CloseWrite()
		w.CloseWrite()
		w.Write([]byte("more"))
		var later func()
		later = func() {
			if !w.saved {
				l.Post(later)
				return
			}
			if u.eof {
				t.Error("an end was told while paused")
			}
			w.SetHandler(u)
			w.Resume()
		}
		later()
	}
	u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
	if err := u.wait(t); err != nil || !u.eof {
		t.Errorf("resumed: %v", err)
	}
	wantFiles(t, "resumed", dir, "file", "one")
	// Closed after CloseWrite: it is saved, and OnClose says so.
	u = &storeUser{}
	u.opened = func(u *storeUser) {
		u.end.Write([]byte("two"))
		u.end.CloseWrite()
		u.end.Close()
		u.end.Close()
	}
	u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
	if err := u.wait(t); err != nil || u.eof {
		t.Errorf("closed: %v, end %v", err, u.eof)
	}
	wantFiles(t, "closed", dir, "file", "two")
	// A writer that is faster than the disk hears when that has caught up.
	u = &storeUser{}
	drained := 0
	u.opened = func(u *storeUser) {
		u.drain = func() {
			if drained++; u.end.Pending() > lowMark {
				t.Errorf("%d bytes wait at OnDrain", u.end.Pending())
			}
			if drained == 3 {
				u.end.CloseWrite()
				return
			}
			for u.end.Pending() <= u.end.HighMark() {
				u.end.Write(make([]byte, 1000))
			}
		}
		u.drain()
	}
	u.open(l, f, &Open{Name: "file", Write: true, Size: -1})
	if err := u.wait(t); err != nil || !u.eof || drained != 3 {
		t.Errorf("drained %d times: %v", drained, err)
	}
}
