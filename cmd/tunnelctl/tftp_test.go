package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/tftp"
)

// lines is an output that grows.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
	stop func() // ends what prints it
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// await returns the first line with part in it.
func (l *lines) await(t *testing.T, part string) string {
	for late := time.After(20 * time.Second); ; {
		l.mu.Lock()
		text := l.text.String()
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.Contains(line, part) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
		select {
		case <-l.more:
		case <-late:
			t.Fatalf("no line with %q in:\n%s", part, text)
		}
	}
}

// serveTFTP runs tunnelctl tftp serve until the test ends, and returns its address and what it prints.
func serveTFTP(t *testing.T, folder string, flags ...string) (address string, out *lines) {
	out = &lines{more: make(chan struct{}, 1)}
	errs := &lines{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() {
		ended <- command(ctx, append([]string{"tftp", "serve", folder, "--listen", "127.0.0.1:0"}, flags...), strings.NewReader(""), out, errs)
	}()
	out.stop = sync.OnceFunc(func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("tftp serve: exit code %d, %s", code, &errs.text)
		}
	})
	t.Cleanup(out.stop)
	line := out.await(t, "tftp://")
	_, url, _ := strings.Cut(line, "tftp://")
	return strings.TrimSuffix(strings.TrimSpace(url), "/"), out
}

func randomFile(t *testing.T, dir, name string, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

func wantFile(t *testing.T, name string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d: %v", name, len(got), len(want), err)
	}
}

// wantNames expects these files in a folder, and no others.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("%s has %q, want %q", dir, names, want)
	}
}

// What is put can be got, with all options there are, and the last line says what was agreed.
func TestTFTP(t *testing.T) {
	folder, here := t.TempDir(), t.TempDir()
	server, out := serveTFTP(t, folder, "--write", "replace")
	for _, n := range []int{0, 1, 511, 512, 513, 700_000} {
		for options, agreed := range map[string]string{
			"":                          "blocks of 65464 bytes, windows of 1;",
			"--no-options":              "blocks of 512 bytes, windows of 1;",
			"--blksize 1468":            "blocks of 1468 bytes, windows of 16;",
			"--blksize 512 --window 64": "blocks of 512 bytes, windows of 64;",
			"--blksize 8192 --window 64 --timeout 3 --rollover 1": "blocks of 8192 bytes, windows of 8, timeout 3 s, rollover to 1;",
		} {
			want := randomFile(t, here, "mine", n)
			args := append([]string{"tftp", "put", server, filepath.Join(here, "mine"), "theirs"}, strings.Fields(options)...)
			code, stdout, stderr := tunnelctl(t.Context(), "", args...)
			if code != 0 || stdout != "" || !strings.HasPrefix(stderr, "put theirs: "+size(uint64(n))+" in ") || !strings.Contains(stderr, agreed) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("put %d %s: %d %q %q", n, options, code, stdout, stderr)
			}
			wantFile(t, filepath.Join(folder, "theirs"), want)
			args = append([]string{"tftp", "get", server, "theirs", filepath.Join(here, "back")}, strings.Fields(options)...)
			code, stdout, stderr = tunnelctl(t.Context(), "", args...)
			if code != 0 || stdout != "" || !strings.HasPrefix(stderr, "got theirs: "+size(uint64(n))+" in ") || !strings.Contains(stderr, agreed) {
				t.Errorf("get %d %s: %d %q %q", n, options, code, stdout, stderr)
			}
			wantFile(t, filepath.Join(here, "back"), want)
		}
	}
	wantNames(t, here, "back", "mine")
	wantNames(t, folder, "theirs")
	out.await(t, " put theirs: 683.6 KiB in ")
	out.await(t, " get theirs: 683.6 KiB in ")
}

// Where a file ends up.
func TestTFTPPlaces(t *testing.T) {
	folder, here := t.TempDir(), t.TempDir()
	server, _ := serveTFTP(t, folder, "--write", "new", "--ignore-case", "--ports", "20000-60000")
	if err := os.Mkdir(filepath.Join(folder, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := randomFile(t, folder, "boot/image.bin", 5000)
	t.Chdir(here)
	run := func(code int, stdin string, args ...string) (stdout, stderr string) {
		t.Helper()
		got, stdout, stderr := tunnelctl(t.Context(), stdin, append([]string{"tftp"}, args...)...)
		if got != code {
			t.Fatalf("tftp %q: exit code %d, want %d: %s", args, got, code, stderr)
		}
		return stdout, stderr
	}
	run(0, "", "get", server, "boot/image.bin")
	wantFile(t, "image.bin", want)
	if stdout, _ := run(0, "", "get", server, "/BOOT//Image.bin", "-"); stdout != string(want) {
		t.Errorf("%d bytes on stdout", len(stdout))
	}
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	run(0, "", "get", server, "boot/image.bin", "sub")
	wantFile(t, "sub/image.bin", want)
	wantNames(t, "sub", "image.bin")

	// A file that is replaced keeps its mode, and a link to it stays one.
	if runtime.GOOS != "windows" {
		if err := os.WriteFile("private", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("private", "link"); err != nil {
			t.Fatal(err)
		}
		run(0, "", "get", server, "boot/image.bin", "link")
		wantFile(t, "private", want)
		if info, err := os.Lstat("link"); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%v, %v", info, err)
		}
		if info, err := os.Stat("private"); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		os.Remove("link")
		os.Remove("private")
	}

	// stdin has no name of its own; a file has.
	run(0, "typed", "put", server, "-", "up")
	wantFile(t, filepath.Join(folder, "up"), []byte("typed"))
	run(0, "", "put", server, "image.bin")
	wantFile(t, filepath.Join(folder, "image.bin"), want)
	if _, stderr := run(2, "", "put", server, "-"); !strings.Contains(stderr, "NAME") {
		t.Error(stderr)
	}

	// What fails leaves what was there.
	if err := os.WriteFile("nothing", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr := run(1, "", "get", server, "nothing"); !strings.Contains(stderr, server+": nothing: the server answers error 1, ") || !strings.Contains(stderr, "case matters") {
		t.Error(stderr)
	}
	wantFile(t, "nothing", []byte("old"))
	if _, stderr := run(1, "", "put", server, "image.bin"); !strings.Contains(stderr, "answers error 6, ") || !strings.Contains(stderr, "choose another NAME") {
		t.Error(stderr)
	}
	if _, stderr := run(1, "", "put", server, "sub"); !strings.Contains(stderr, "is a folder") {
		t.Error(stderr)
	}
	if _, stderr := run(1, "", "put", server, "missing"); !strings.Contains(stderr, "missing") {
		t.Error(stderr)
	}
	if _, stderr := run(2, "", "get", server, "boot/"); !strings.Contains(stderr, "add FILE") {
		t.Error(stderr)
	}
	wantNames(t, ".", "image.bin", "nothing", "sub")
}

// Text has the line ends of both sides.
func TestTFTPNetASCII(t *testing.T) {
	folder := t.TempDir()
	server, _ := serveTFTP(t, folder, "--write", "new")
	const text = "one\ntwo\r\nthree\r"
	if code, _, stderr := tunnelctl(t.Context(), text, "tftp", "put", server, "-", "text", "--netascii"); code != 0 {
		t.Fatal(stderr)
	}
	if code, stdout, stderr := tunnelctl(t.Context(), "", "tftp", "get", server, "text", "-", "--netascii"); code != 0 || stdout != text {
		t.Errorf("%q, %s", stdout, stderr)
	}
}

// A server that may not be written to says so, and one that is not there is given up.
func TestTFTPRefusals(t *testing.T) {
	folder := t.TempDir()
	server, _ := serveTFTP(t, folder)
	nobody, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	t.Chdir(t.TempDir())
	for _, test := range []struct {
		args   string
		code   int
		stderr []string
	}{
		{"put " + server + " - x", 1, []string{"answers error 2, ", "--write"}},
		{"get " + nobody.LocalAddr().String() + " x --give-up 200ms", 1, []string{"nothing answers there", "200ms"}},
		{"get", 2, []string{"usage: tunnelctl tftp get HOST"}},
		{"get host:port:x y", 2, []string{"IPv6"}},
		{"get host/x y", 2, []string{"HOST:PORT"}},
		{"get host:notaport y", 2, []string{"HOST:PORT"}},
		{"get host " + strings.Repeat("x", 401), 2, []string{"too long"}},
		{"get host x --blksize 7", 2, []string{"--blksize 7: want 8 to 65464"}},
		{"get host x --window 0", 2, []string{"--window 0"}},
		{"get host x --timeout 256", 2, []string{"--timeout 256"}},
		{"get host x --rollover 2", 2, []string{"--rollover 2"}},
		{"get host x --give-up 0s", 2, []string{"--give-up"}},
		{"get host x --no-options --window 4", 2, []string{"exclude each other"}},
		{"", 2, []string{"tftp get, tftp put or tftp serve"}},
		{"serve", 2, []string{"usage: tunnelctl tftp serve FOLDER"}},
		{"serve . --write all", 2, []string{"want new"}},
		{"serve . --ports 9", 2, []string{"range of ports"}},
		{"serve . --ports 9-8", 2, []string{"range of ports"}},
		{"serve . --listen 6969", 2, []string{"ADDRESS:PORT"}},
		{"serve . --blksize 1", 2, []string{"--blksize 1"}},
		{"serve nowhere", 1, []string{"nowhere"}},
		{"serve . --listen " + nobody.LocalAddr().String(), 1, []string{"--listen names another one"}},
	} {
		code, stdout, stderr := tunnelctl(t.Context(), "", append([]string{"tftp"}, strings.Fields(test.args)...)...)
		if code != test.code || stdout != "" {
			t.Errorf("tftp %s: exit code %d, want %d; %q", test.args, code, test.code, stdout)
		}
		for _, s := range test.stderr {
			if !strings.Contains(stderr, s) {
				t.Errorf("tftp %s: %q lacks %q", test.args, stderr, s)
			}
		}
	}
	wantNames(t, ".")
	wantNames(t, folder)
}

// Ctrl-C ends a transfer for the server, too, and nothing is left of the file on either side.
func TestTFTPInterrupted(t *testing.T) {
	folder := t.TempDir()
	server, out := serveTFTP(t, folder, "--write", "new", "--verbose")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	codec := make(chan int, 1)
	go func() {
		codec <- command(ctx, []string{"tftp", "put", server, "-", "up"}, r, io.Discard, io.Discard)
	}()
	out.await(t, " put up: begins")
	if _, err := w.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if code := <-codec; code != 1 {
		t.Errorf("exit code %d", code)
	}
	out.await(t, " put up: failed after ")
	out.stop()
	wantNames(t, folder)

	// A server that sends one block and waits.
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	here := t.TempDir()
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		codec <- command(ctx, []string{"tftp", "get", conn.LocalAddr().String(), "file", filepath.Join(here, "file")}, nil, io.Discard, io.Discard)
	}()
	buf := make([]byte, 1000)
	hear := func() []byte {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if buf[1] == byte(tftp.OpRead) {
			conn.WriteTo(append([]byte{0, 3, 0, 1}, make([]byte, 512)...), from)
		}
		return buf[:n]
	}
	for hear()[1] != byte(tftp.OpAck) {
	}
	cancel()
	for hear()[1] != byte(tftp.OpError) {
	}
	if code := <-codec; code != 1 {
		t.Errorf("exit code %d", code)
	}
	wantNames(t, here)
}

// lossy is a path on which every so manieth datagram is lost, in each direction. It returns the near end.
func lossy(t *testing.T, server string, every int) string {
	near, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	var visitor net.Addr
	var mu sync.Mutex
	var group sync.WaitGroup
	t.Cleanup(func() {
		near.Close()
		far.Close()
		group.Wait()
	})
	group.Go(func() {
		buf := make([]byte, 64<<10)
		for i := 0; ; i++ {
			n, from, err := near.ReadFrom(buf)
			if err != nil {
				return
			}
			mu.Lock()
			visitor = from
			mu.Unlock()
			if i%every != every-1 {
				far.Write(buf[:n])
			}
		}
	})
	group.Go(func() {
		buf := make([]byte, 64<<10)
		for i := 0; ; i++ {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			to := visitor
			mu.Unlock()
			if i%every != every-1 {
				near.WriteTo(buf[:n], to)
			}
		}
	})
	return near.LocalAddr().String()
}

func TestTFTPLoss(t *testing.T) {
	folder, here := t.TempDir(), t.TempDir()
	server, _ := serveTFTP(t, folder, "--write", "new")
	path := lossy(t, server, 50)
	want := randomFile(t, here, "mine", 300_000)
	code, _, stderr := tunnelctl(t.Context(), "", "tftp", "put", path, filepath.Join(here, "mine"), "theirs", "--blksize", "1000", "--window", "8")
	if code != 0 || strings.Contains(stderr, " 0 retransmitted") {
		t.Fatalf("put: %d, %s", code, stderr)
	}
	wantFile(t, filepath.Join(folder, "theirs"), want)
	code, _, stderr = tunnelctl(t.Context(), "", "tftp", "get", lossy(t, server, 50), "theirs", filepath.Join(here, "back"), "--blksize", "1000", "--window", "8")
	if code != 0 || strings.Contains(stderr, " 0 retransmitted") {
		t.Fatalf("get: %d, %s", code, stderr)
	}
	wantFile(t, filepath.Join(here, "back"), want)
}

func TestTFTPServerAddress(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.7":             "10.0.0.7:69",
		"10.0.0.7:6969":        "10.0.0.7:6969",
		"boot.example":         "boot.example:69",
		"boot.example:6969":    "boot.example:6969",
		"fe80::1%eth0":         "[fe80::1%eth0]:69",
		"::1":                  "[::1]:69",
		"[::1]":                "[::1]:69",
		"[::1]:6969":           "[::1]:6969",
		"":                     "",
		":69":                  "",
		"[::1":                 "[::1]:69",
		"tftp://boot.example/": "",
	} {
		got, err := tftpServer(s)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", s, got, err, want)
		}
	}
}

// A line of progress fits into a terminal and says how long it still takes.
func TestTFTPProgress(t *testing.T) {
	now := time.Unix(1000, 0)
	m := newMeter(io.Discard, strings.Repeat("folder/", 20)+"image")
	m.line(progress{size: 10 << 20}, now)
	m.line(progress{size: 10 << 20, stats: tftp.Stats{Bytes: 1 << 20}}, now.Add(time.Second))
	got := m.line(progress{size: 10 << 20, stats: tftp.Stats{Bytes: 2 << 20, Retransmitted: 2, Duplicates: 1}}, now.Add(2*time.Second))
	if want := "…er/folder/image [==          ]  20% 2.0 MiB 1.0 MiB/s 8s left 3 again"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	m = newMeter(io.Discard, "image")
	if got, want := m.line(progress{size: -1, stats: tftp.Stats{Bytes: 5}}, now), "image 5 B 0 B/s"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	m = newMeter(io.Discard, strings.Repeat("i", 100))
	m.line(progress{}, now)
	m.line(progress{size: 1 << 50, stats: tftp.Stats{Bytes: 1}}, now.Add(time.Hour))
	if got := m.line(progress{size: 1 << 50, stats: tftp.Stats{Bytes: 1023 << 10, Retransmitted: 1e6}}, now.Add(2*time.Hour)); len([]rune(got)) > 79 {
		t.Errorf("%d wide: %q", len([]rune(got)), got)
	}
}
