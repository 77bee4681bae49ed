//go:build unix

package tftpd

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/pkg/tftp"
)

// What is no file is not opened, let alone waited for.
func TestFolderSpecial(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"file": "x"})
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o666); err != nil {
		t.Skip(err)
	}
	os.Symlink("pipe", filepath.Join(dir, "topipe"))
	t.Chdir(dir) // the path of a socket is short
	socket, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	special := []string{"pipe", "topipe", "socket"}
	if exec.Command("mknod", filepath.Join(dir, "device"), "c", "1", "5").Run() == nil { // /dev/zero
		special = append(special, "device")
	}
	for _, f.IgnoreCase = range []bool{false, true} {
		for _, name := range special {
			_, err := storeGet(t, l, f, &Open{Name: name, Size: -1})
			wantCode(t, "read "+name, err, tftp.CodeAccess)
			_, err = storeGet(t, l, f, &Open{Name: name + "/x", Size: -1})
			wantCode(t, "read below "+name, err, tftp.CodeNotFound)
			for _, write := range []string{"new", "replace"} {
				f.Write = write
				code := tftp.CodeAccess
				if write == "new" {
					code = tftp.CodeExists
				}
				_, err = storePut(t, l, f, &Open{Name: name, Size: -1}, []byte("x"), 1)
				wantCode(t, write+" "+name, err, code)
				_, err = storePut(t, l, f, &Open{Name: name + "/x", Size: -1}, []byte("x"), 1)
				wantCode(t, write+" below "+name, err, tftp.CodeNotFound)
			}
		}
	}
	if info, err := os.Lstat("pipe"); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("the pipe is %v, %v", info, err)
	}
}

// While links change all the time, nothing but the files of the folder is read, whole, and nothing outside is written.
func TestFolderSwapped(t *testing.T) {
	t.Parallel()
	l := storeLoop(t)
	content := strings.Repeat("inside", 50000)
	f, dir := testFolder(t, map[string]string{"a/file": content, "b/file": content})
	f.Write = "replace"
	outside := filepath.Join(filepath.Dir(dir), "outside")
	os.Mkdir(outside, 0o777)
	os.WriteFile(filepath.Join(outside, "file"), []byte("secret"), 0o666)
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o666); err != nil {
		t.Skip(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		link := filepath.Join(dir, "link")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			os.Symlink([]string{"a", "../outside", "b", outside, "pipe", "a/file"}[i%6], link+"2")
			os.Rename(link+"2", link)
		}
	}()
	read, written := 0, 0
	for end := time.Now().Add(time.Second); time.Now().Before(end) || read == 0 || written == 0; {
		u, err := storeGet(t, l, f, &Open{Name: "link/file", Size: -1})
		if err == nil {
			read++
			if string(u.data) != content {
				t.Fatalf("read %d bytes: %.20q", len(u.data), u.data)
			}
		}
		if saved, _ := storePut(t, l, f, &Open{Name: "link/file", Size: -1}, []byte(content), 100000); saved {
			written++
		}
	}
	close(stop)
	<-stopped
	if b, err := os.ReadFile(filepath.Join(outside, "file")); err != nil || string(b) != "secret" || len(names(t, outside)) != 1 {
		t.Errorf("outside are %q: %.20q, %v", names(t, outside), b, err)
	}
	for _, name := range names(t, filepath.Dir(dir)) {
		if isTemp(name) {
			t.Errorf("%s is left over", name)
		}
	}
}

// A file keeps its permissions and its other names; a new one gets the usual ones.
func TestFolderMode(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"file": "old"})
	f.Write = "replace"
	path := filepath.Join(dir, "file")
	if err := os.Link(path, filepath.Join(dir, "other")); err != nil {
		t.Skip(err)
	}
	root := os.Geteuid() == 0
	for _, mode := range []fs.FileMode{0o600, 0o640, 0o666, 0o755, 0o644 | fs.ModeSetuid} {
		if root {
			os.Chown(path, 1234, 2345)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := storePut(t, l, f, &Open{Name: "file", Size: -1}, []byte("new"), 512); err != nil {
			t.Error(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != mode.Perm() {
			t.Errorf("mode %v became %v, %v", mode, info.Mode(), err)
		}
		if s := info.Sys().(*syscall.Stat_t); root && (s.Uid != 1234 || s.Gid != 2345) {
			t.Errorf("owner %d:%d", s.Uid, s.Gid)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "other")); string(b) != "old" {
		t.Errorf("its other name has %q", b)
	}
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	if _, err := storePut(t, l, f, &Open{Name: "new", Size: -1}, []byte("new"), 512); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "new")); err != nil || info.Mode() != 0o640 {
		t.Errorf("a new file has %v, %v", info, err)
	}
}

// What the relay may not touch it does not, and the log says so, but not for each that asks.
func TestFolderPermissions(t *testing.T) {
	if os.Geteuid() == 0 {
		asNobody(t)
		return
	}
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"unreadable": "x", "readonly": "x", "closed/x": "x", "fixed/x": "x", "file": "x"})
	var logged bytes.Buffer
	f.Log = slogTo(&logged)
	for name, mode := range map[string]fs.FileMode{"unreadable": 0, "readonly": 0o444, "closed": 0, "fixed": 0o555} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(filepath.Join(dir, "closed"), 0o755)
	defer os.Chmod(filepath.Join(dir, "fixed"), 0o755)
	for _, f.IgnoreCase = range []bool{false, true} {
		for _, name := range []string{"unreadable", "closed/x", "closed/none"} {
			_, err := storeGet(t, l, f, &Open{Name: name, Size: -1})
			wantCode(t, "read "+name, err, tftp.CodeAccess, dir)
		}
		f.Write = "new"
		for _, name := range []string{"closed/x", "closed/none", "fixed/none"} {
			_, err := storePut(t, l, f, &Open{Name: name, Size: -1}, []byte("y"), 1)
			wantCode(t, "new "+name, err, tftp.CodeAccess, dir)
		}
		f.Write = "replace"
		for _, name := range []string{"readonly", "unreadable", "closed/x", "fixed/x", "fixed/none"} {
			_, err := storePut(t, l, f, &Open{Name: name, Size: -1}, []byte("y"), 1)
			wantCode(t, "replace "+name, err, tftp.CodeAccess, dir)
		}
	}
	os.Chmod(filepath.Join(dir, "closed"), 0o755)
	os.Chmod(filepath.Join(dir, "unreadable"), 0o644)
	wantFiles(t, "without permission", dir, "closed/x", "x", "file", "x", "fixed/x", "x", "readonly", "x", "unreadable", "x")
	if n := strings.Count(logged.String(), "change its permissions"); n != 1 {
		t.Errorf("logged %d times: %s", n, &logged)
	}
}

// asNobody runs the test again as somebody who may not do everything.
func asNobody(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	exe = filepath.Join(dir, "test")
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(dir, "temp")
	if err := errors.Join(os.Mkdir(temp, 0o777), os.Chmod(temp, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) {
		t.Skip(err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}
