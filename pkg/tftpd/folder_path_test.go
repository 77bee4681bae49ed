package tftpd

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/pkg/tftp"
)

// No name leads out of the folder, to what is not a file, or to what is being written; and what is said about it tells nothing.
func TestFolderPaths(t *testing.T) {
	l := storeLoop(t)
	temp := tempPrefix + strings.Repeat("a", 26)
	f, dir := testFolder(t, map[string]string{"file": "file", "sub/file": "sub", temp: "half", "sub/" + temp: "half", "sub/...": "dots"})
	top := filepath.Dir(dir)
	for name, to := range map[string]string{
		"in": "file", "sub/in": "../file", "sub/out": "../../secret", "up": "..", "absolute": filepath.Join(top, "secret"), "absolutein": filepath.Join(dir, "file"),
		"root": "/", "loop": "loop", "loop1": "loop2", "loop2": "loop1", "dangling": "none", "danglingout": "../none", "tofolder": "sub", "totemp": temp, "updown": "../tftp/file",
		"twice": "in", "self": ".", "deep": "self/self/self/sub/in", "back": "tofolder/../file",
	} {
		if err := os.Symlink(filepath.FromSlash(to), filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			t.Skip(err)
		}
	}
	before := names(t, top)
	const none, access, exists = tftp.CodeNotFound, tftp.CodeAccess, tftp.CodeExists
	type test struct {
		name      string
		read, new tftp.Code // what reading it says, and writing it as a new file; CodeUndefined: it is done
		replace   tftp.Code
	}
	long := strings.Repeat("x", 250)
	tests := []test{
		{"", access, access, access},
		{".", access, access, access},
		{"..", access, access, access},
		{"/", access, access, access},
		{"/file", access, access, access},
		{"//file", access, access, access},
		{"file/", access, access, access},
		{"./file", access, access, access},
		{"sub//file", access, access, access},
		{"sub/./file", access, access, access},
		{"../secret", access, access, access},
		{"../tftp/file", access, access, access},
		{"sub/../../secret", access, access, access},
		{"sub/../file", access, access, access},
		{"up/secret", access, access, access},
		{"up/tftp/file", access, access, access},
		{"up/none", access, access, access},
		{"root/etc/passwd", access, access, access},
		{filepath.Join(top, "secret"), access, access, access},
		{"/etc/passwd", access, access, access},
		{"..\\secret", access, access, access},
		{"sub\\file", access, access, access},
		{"C:/secret", access, access, access},
		{"c:secret", access, access, access},
		{"//server/share/x", access, access, access},
		{"\\\\?\\C:\\x", access, access, access},
		{"file\x00", access, access, access},
		{"file\x00.txt", access, access, access},
		{"fi\nle", access, access, access},
		{"\x7f", access, access, access},
		{"fi\xffle", access, access, access},
		{"fi\xc0\xafle", access, access, access},
		{"fi\u0085le", access, access, access},
		{strings.Repeat("x", 256), access, access, access},
		{strings.Repeat("x/", 127) + "xx", access, access, access},

		{"sub", access, access, access},
		{"tofolder", access, exists, access},
		{"self", access, exists, access},
		{"up", access, exists, access},
		{"root", access, exists, access},
		{"sub/out", access, exists, access},
		{"absolute", access, exists, access},
		{"absolutein", access, exists, access}, // os.Root follows none
		{"updown", access, exists, access},
		{"loop", access, exists, access},
		{"loop1", access, exists, access},
		{"danglingout", access, exists, access},
		{temp, access, access, access},
		{"sub/" + temp, access, access, access},
		{tempPrefix, access, access, access},
		{strings.ToUpper(temp), access, access, access},
		{".Culvert-x", access, access, access},

		{"none/file", none, none, none},
		{"file/x", none, none, none},
		{"in/x", none, none, none},
		{"dangling/x", none, none, none},
		{"loop/x", access, access, access},
		{long + "/" + long[:4], none, none, none},
		{"%2e%2e/secret", none, none, none},
		{"..%2fsecret", none, 0, 0},
		{"…", none, 0, 0},
		{"．．", none, 0, 0}, // full width
		{"~", none, 0, 0},
		{"-", none, 0, 0},
		{".hidden", none, 0, 0},
		{".culvert", none, 0, 0},
		{"é", none, 0, 0},
		{"file ", none, 0, 0},
		{"file.", none, 0, 0},
		{"con", none, 0, 0},
		{"file:stream", none, 0, 0},
		{"* ?", none, 0, 0},
		{"$(id);`id`|id", none, 0, 0},
		{long, none, 0, 0},
		{"none", none, 0, 0},
		{"sub/...", 0, exists, 0},

		{"file", 0, exists, 0},
		{"in", 0, exists, 0},
		{"sub/in", 0, exists, 0},
		{"twice", 0, exists, 0},
		{"deep", 0, exists, 0},
		{"back", 0, exists, 0},
		{"self/self/file", 0, exists, 0},
		{"tofolder/in", 0, exists, 0},
		{"dangling", none, exists, 0},
		{"totemp", 0, exists, access}, // somebody at the site wants it so
	}
	for _, ignoreCase := range []bool{false, true} {
		f.IgnoreCase = ignoreCase
		for _, test := range tests {
			if runtime.GOOS != "linux" && test.read == none && test.new == 0 {
				continue // every system has names of its own
			}
			what := fmt.Sprintf("%.40q, in any case %v", test.name, ignoreCase)
			u, err := storeGet(t, l, f, &Open{Name: test.name, Size: -1})
			if test.read != 0 {
				wantCode(t, what, err, test.read, "secret", top)
			} else if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if strings.Contains(string(u.data), "secret") {
				t.Fatalf("%s: the secret is out", what)
			}
			for write, code := range map[string]tftp.Code{"new": test.new, "replace": test.replace} {
				f.Write = write
				saved, err := storePut(t, l, f, &Open{Name: test.name, Size: -1}, []byte("written"), 512)
				if code != 0 {
					wantCode(t, what+", "+write, err, code, "secret", top)
				} else if err != nil || !saved {
					t.Errorf("%s, %s: %v", what, write, err)
				}
				if test.read == none && test.new == 0 && test.replace == 0 || test.name == "dangling" {
					os.Remove(filepath.Join(dir, strings.Replace(test.name, "dangling", "none", 1)))
				}
			}
		}
	}
	if got := names(t, top); strings.Join(got, "\n") != strings.Join(before, "\n") {
		t.Errorf("there are %q, there were %q", got, before)
	}
	if b, err := os.ReadFile(filepath.Join(top, "secret")); err != nil || string(b) != "secret" {
		t.Errorf("the secret is %q, %v", b, err)
	}
	// A file that is written by the name of a link is where the link leads to.
	for _, name := range []string{"file", "sub/file"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if want := map[string]string{"file": "written", "sub/file": "sub"}[name]; err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"in", "sub/in", "twice", "back", "dangling"} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no link any more: %v", name, err)
		}
	}
}

func TestFolderIgnoreCase(t *testing.T) {
	l := storeLoop(t)
	f, dir := testFolder(t, map[string]string{"Boot/BCD": "bcd", "Boot/Fonts/wgl4.ttf": "font", "a": "small", "A": "large", "b/x": "1", "B/y": "2", "Straße": "s", "ÄÖ": "u", "Kelvin": "k"})
	if len(names(t, dir)) != 9 {
		t.Skip("this file system tells no cases apart")
	}
	f.IgnoreCase = true
	for name, want := range map[string]string{
		"Boot/BCD": "bcd", "boot/bcd": "bcd", "BOOT/bCd": "bcd", "boot/FONTS/WGL4.TTF": "font", "a": "small", "A": "large", "straße": "s", "äö": "u", "\u212aelvin": "k",
		"b/x": "1", "B/y": "2", "b/X": "1",
		"B/x": "", "c": "", "boot": "", "boot/bcd/x": "", "boo": "", "boot/*": "", "strasse": "", "boot2/bcd": "",
	} {
		u, err := storeGet(t, l, f, &Open{Name: name, Size: -1})
		switch {
		case want == "" && name == "boot":
			wantCode(t, name, err, tftp.CodeAccess)
		case want == "":
			wantCode(t, name, err, tftp.CodeNotFound)
		case err != nil || string(u.data) != want:
			t.Errorf("%s: %q, %v", name, u.data, err)
		}
	}
	// What is there in another case is what is meant by a writer, too.
	for name, test := range map[string]struct {
		write string
		code  tftp.Code
		file  string
	}{
		"boot/bcd":     {"new", tftp.CodeExists, ""},
		"BOOT/FONTS/x": {"new", 0, "Boot/Fonts/x"},
		"BOOT/NEW":     {"new", 0, "Boot/NEW"},
		"BOOT/bcd":     {"replace", 0, "Boot/BCD"},
		"none/x":       {"replace", tftp.CodeNotFound, ""},
	} {
		f.Write = test.write
		_, err := storePut(t, l, f, &Open{Name: name, Size: -1}, []byte(name), 512)
		if test.code != 0 {
			wantCode(t, name, err, test.code)
			continue
		}
		if b, e := os.ReadFile(filepath.Join(dir, test.file)); err != nil || e != nil || string(b) != name {
			t.Errorf("%s: %v, %v: %q", name, err, e, b)
		}
	}
	// What comes and goes meanwhile is seen.
	for i := range 3 {
		path := filepath.Join(dir, "Later")
		_, err := storeGet(t, l, f, &Open{Name: "LATER", Size: -1})
		wantCode(t, "later", err, tftp.CodeNotFound)
		content := fmt.Sprint("later", i)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if u, err := storeGet(t, l, f, &Open{Name: "LATER", Size: -1}); err != nil || string(u.data) != content {
			t.Errorf("later: %q, %v", u.data, err)
		}
		os.Remove(path)
	}
}

// A huge folder costs a bounded amount of work and memory, and so do many.
func TestFolderIgnoreCaseBound(t *testing.T) {
	f, dir := testFolder(t, nil)
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("File%d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for most, want := range map[int]int{100: 100, 300: 300, maxListing: 300} {
		if l, err := list(f.Root, ".", "", most); err != nil || len(l.names) != want {
			t.Errorf("at most %d: %d, %v", most, len(l.names), err)
		}
	}
	names := make(map[string]string)
	for i := range maxListing {
		names[fmt.Sprint(i)] = ""
	}
	for i := range 100 {
		f.names.keep(fmt.Sprint(i%20), &listing{names: names})
		if n := f.names.names; n > maxListings || n != len(f.names.folders)*(maxListing+1) {
			t.Fatalf("%d names are kept of %d folders", n, len(f.names.folders))
		}
	}
}
