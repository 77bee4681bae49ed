//go:build linux

package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTFTPRefused asks for what there is not, or may not be written.
func TestTFTPRefused(t *testing.T) {
	t.Parallel()
	read, create := tempDir(t), tempDir(t)
	for _, folder := range []string{read, create} {
		writeFile(t, filepath.Join(folder, "old"), "old content")
	}
	upload := filepath.Join(tempDir(t), "upload")
	sum := makeFile(t, upload, 2000)
	s := configureTFTP(t, nil,
		service{"read", "tftp:///read", "file://" + read},
		service{"create", "tftp:///create", "file://" + create})
	s.more["create"] = "write = \"new\"\nmax_size = 3000\n"
	s.startPublic()
	s.startPrivate()
	large := filepath.Join(tempDir(t), "large")
	makeFile(t, large, 3001)
	t.Run("each", func(t *testing.T) {
		for _, c := range tftpClients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				fails := func(what string, err error, words string) {
					t.Helper()
					switch {
					case err == nil:
						t.Errorf("%s: no error", what)
					case strings.Contains(err.Error(), read) || strings.Contains(err.Error(), create):
						t.Errorf("%s: the client is told of the site: %v", what, err)
					case c.program == "busybox" && !strings.Contains(err.Error(), words): // the others have texts of their own
						t.Errorf("%s: %v, want %q in it", what, err, words)
					}
				}
				_, err := c.fetch(t, nil, s.tftp, "read/missing")
				fails("a missing file", err, "(1)")
				_, err = c.fetch(t, nil, s.tftp, "nowhere/old")
				fails("a file of no service", err, "(1)")
				fails("a file to a service that takes none", c.store(t, nil, s.tftp, "read/new-"+c.name, upload), "(2)")
				fails("a file that is there", c.store(t, nil, s.tftp, "create/old", upload), "(6)")
				if err := c.store(t, nil, s.tftp, "create/new-"+c.name, upload); err != nil {
					t.Error(err)
				} else if got := fileSum(filepath.Join(create, "new-"+c.name)); got != sum {
					t.Errorf("%s arrived, want %s", got, sum)
				}
				fails("the same file again", c.store(t, nil, s.tftp, "create/new-"+c.name, upload), "(6)")
				fails("a file that is too large", c.store(t, nil, s.tftp, "create/large-"+c.name, large), "(3)")
			})
		}
	})
	for _, folder := range []string{read, create} {
		if b, _ := os.ReadFile(filepath.Join(folder, "old")); string(b) != "old content" {
			t.Errorf("the old file is %q", b)
		}
	}
	onlyFiles(t, read, "old")
	names := []string{"old"}
	for _, c := range tftpClients {
		names = append(names, "new-"+c.name)
	}
	onlyFiles(t, create, names...)
}

// tricks are names that lead out of a folder, for somebody who believes them. The canary is beside the folder "files",
// and "out" is a link in it that leads to the canary's folder.
func tricks(outside string) (names []string) {
	names = []string{
		"../canary", "../../canary", "./../canary", "a/../../canary", "sub/../../canary", "/../canary", "//../canary", "files/../../canary",
		"..", ".", "", "/", "//", "../", "sub/..", "sub/../..",
		outside + "/canary", "/" + outside + "/canary", "//" + outside + "/canary", "file://" + outside + "/canary",
		`..\canary`, `..\..\canary`, `sub\..\..\canary`, `\..\canary`, `..\/canary`, `../\canary`, strings.ReplaceAll(outside, "/", `\`) + `\canary`,
		`C:\canary`, "C:/canary", "c:canary", `\\127.0.0.1\share\canary`, "//127.0.0.1/share/canary",
		"out/canary", "out/../canary", "./out/canary", "sub/../out/canary", "link",
		"%2e%2e/canary", "..%2fcanary", "%2e%2e%2fcanary", "..%00/canary", "..%5ccanary", "%252e%252e%252fcanary",
		"..\xc0\xafcanary", "\xc0\xae\xc0\xae/canary", "．．/canary", "..∕canary",
		".../canary", "..../canary", "....//canary", "..;/canary", ".. /canary", " ../canary", "../canary ", "..\t/canary", "..\n/canary", "..\r\n/canary", "..\x7f/canary",
		"~/canary", "~root/canary", "$HOME/canary", "|cat canary", "`cat canary`", "canary\x1b[2J",
		"fifo", "socket", "sub", "sub/",
		"/etc/passwd", "../../../../../../../../etc/passwd", "/proc/self/environ", "/dev/zero", "/dev/stdin",
		".culvert-1", ".culvert-", "sub/.culvert-1",
		strings.Repeat("../", 60) + "etc/passwd", strings.Repeat("a/", 120) + "x", strings.Repeat("a", 256), strings.Repeat("a", 400),
	}
	return names
}

// TestTFTPPaths asks for names that lead elsewhere, and writes to them. What is said is the same for all of them.
func TestTFTPPaths(t *testing.T) {
	t.Parallel()
	outside := tempDir(t)
	folder := filepath.Join(outside, "files")
	for _, dir := range []string{folder, filepath.Join(folder, "sub")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	canary := filepath.Join(outside, "canary")
	writeFile(t, canary, "canary")
	writeFile(t, filepath.Join(folder, "sub", "file"), "content")
	writeFile(t, filepath.Join(folder, ".culvert-1"), "canary")
	for link, to := range map[string]string{"out": outside, "link": canary, "sub/up": "../.."} {
		if err := os.Symlink(to, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(folder, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	hpa, atftpd := publicFolder(t), publicFolder(t)
	s := configureTFTP(t, nil,
		service{"root", "tftp:///", "file://" + folder},
		service{"files", "tftp:///files", "file://" + folder},
		service{"folded", "tftp:///folded", "file://" + folder},
		service{"hpa", "tftp:///hpa", "tftp://" + startTFTPD(t, nil, "tftpd-hpa", hpa)},
		service{"atftpd", "tftp:///atftpd", "tftp://" + startTFTPD(t, nil, "atftpd", atftpd)})
	for _, v := range s.services {
		s.more[v.name] = "write = true\n"
	}
	s.more["folded"] += "ignore_case = true\n"
	s.startPublic()
	s.startPrivate()
	before := listing(t, outside)

	names := append(tricks(outside), "sub/up/canary", "sub/up/files/../canary")
	t.Run("each", func(t *testing.T) {
		for _, prefix := range []string{"", "files/", "folded/", "hpa/", "atftpd/"} {
			for _, op := range []byte{opRRQ, opWRQ} {
				t.Run(fmt.Sprintf("%s%d", prefix, op), func(t *testing.T) {
					t.Parallel()
					for _, name := range names {
						if len(prefix+name) > 400 {
							continue
						}
						m := newROM(t, nil, s.tftp)
						m.send(tftpRequest(op, prefix+name))
						_, rest, err := m.next()
						var said *errTFTP
						switch {
						case errors.As(err, &said):
							if strings.Contains(said.text, "canary") || strings.Contains(said.text, "/") || strings.Contains(said.text, `\`) || said.code == 0 {
								t.Errorf("%q: %v", prefix+name, err)
							}
						case err != nil:
							t.Errorf("%q: %v", prefix+name, err)
						case op == opRRQ:
							t.Errorf("%q: it is read: %.60q", prefix+name, rest)
						default:
							// The name is one that a file may have, below the folder: it is not kept.
							m.fail()
						}
					}
				})
			}
		}
	})
	eventually(t, "the folder to be as it was", func() bool { return listing(t, outside) == before })
	for _, folder := range []string{hpa, atftpd} {
		onlyFiles(t, folder)
	}
}

// listing is what is in a folder, at any depth, and what is in the files.
func listing(t testing.TB, folder string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // a temporary file has gone meanwhile
		}
		content := []byte(nil)
		if d.Type().IsRegular() {
			content, _ = os.ReadFile(path)
		}
		fmt.Fprintf(&b, "%s %v %q\n", path, d.Type(), content)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return b.String()
}

// TestTFTPKilled ends uploads at every tenth block: by silence, by an error, by a kill. The old file stays as it is, and no
// temporary one is left.
func TestTFTPKilled(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	const old = "what was there before"
	content := make([]byte, 200*512+100)
	rand.Read(content)
	s := startTFTP(t, folder, "write = true\n")
	var names []string
	var wg sync.WaitGroup
	for blocks := 0; blocks <= 200; blocks += 10 {
		for _, way := range []string{"silence", "error"} {
			name := fmt.Sprintf("%s-%d", way, blocks)
			names = append(names, name)
			writeFile(t, filepath.Join(folder, name), old)
			wg.Go(func() {
				m := newROM(t, nil, s.tftp)
				if err := m.write(name, content, blocks); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if way == "error" {
					m.fail()
				}
			})
		}
	}
	// A program that is killed: the kernel answers for it that nobody is there.
	large := filepath.Join(tempDir(t), "large")
	makeFile(t, large, 32<<20)
	names = append(names, "killed")
	writeFile(t, filepath.Join(folder, "killed"), old)
	host, port, _ := strings.Cut(s.tftp, ":")
	at := s.link.total()
	p := start(t, "tftp", exec.Command(tool(t, "tftp", "tftp-hpa"), tftpHPA.put(host, port, "killed", large)...))
	s.link.awaitTotal(at + 1<<20)
	p.kill()
	wg.Wait()
	eventually(t, "the temporary files to go", func() bool {
		entries, err := os.ReadDir(folder)
		return err == nil && len(entries) == len(names)
	})
	for _, name := range names {
		if b, err := os.ReadFile(filepath.Join(folder, name)); err != nil || string(b) != old {
			t.Errorf("%s: %.40q, %v", name, b, err)
		}
	}
	// And one that is not ended replaces it.
	if err := newROM(t, nil, s.tftp).write("silence-0", content, -1); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(folder, "silence-0")); !bytes.Equal(b, content) {
		t.Error("an upload that was not ended is not there")
	}
}

// TestTFTPSpoofed sends ten thousand requests from addresses that never answer. None of them gets more than it has sent,
// but for the one block that a request without options cannot be spared; a client works meanwhile; and what they cost is gone
// when they are given up.
func TestTFTPSpoofed(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	sum := makeFile(t, filepath.Join(folder, "image"), 4<<20)
	s := startTFTP(t, folder, "write = true\n")
	if _, err := tftpWindow.fetch(t, nil, s.tftp, "image"); err != nil {
		t.Fatal(err)
	}
	before := s.public.rss()
	to := netip.MustParseAddrPort(s.tftp)
	relay := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	requests := [][]byte{
		tftpRequest(opRRQ, "image"),
		tftpRequest(opRRQ, "image", "tsize", "0"),
		tftpRequest(opRRQ, "image", "blksize", "8"),
		tftpRequest(opRRQ, "image", "blksize", "65464", "windowsize", "65535"),
		tftpRequest(opRRQ, "image", "blksize", "1468", "windowsize", "64", "tsize", "0", "timeout", "1"),
		tftpRequest(opRRQ, "missing", "blksize", "1468"),
		tftpRequest(opRRQ, "m"),
		tftpRequest(opWRQ, "new"),
		tftpRequest(opWRQ, "new", "blksize", "1468", "tsize", "1000000000"),
		[]byte("\x00\x01"), []byte("\x00\x01a"), []byte("\x00\x01a\x00"), []byte("\x00\x01a\x00octet"), []byte("\x00\x04\x00\x00"), []byte("\x00\x05\x00\x00x\x00"),
		[]byte("\x00\x03\x00\x01data"), {0}, {},
	}
	type victim struct{ fd, sent, request int }
	const spoofed = 10000
	victims := make([]victim, 0, spoofed)
	defer func() {
		for _, v := range victims {
			unix.Close(v.fd)
		}
	}()
	working := make(chan error, 1)
	go func() {
		for range 3 {
			got, err := tftpWindow.fetch(t, nil, s.tftp, "image")
			if err == nil && got != sum {
				err = fmt.Errorf("%s arrived, want %s", got, sum)
			}
			if err != nil {
				working <- err
				return
			}
		}
		working <- nil
	}()
	for i := range spoofed {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		v := victim{fd: fd, request: i % len(requests)}
		// A third of them come from one address each, the others from a few networks.
		addr := [4]byte{127, 9, byte(i >> 8), byte(i)}
		if i%3 > 0 {
			addr = [4]byte{127, 10, 0, byte(i % 7)}
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(fd, requests[v.request], 0, relay); err != nil {
			t.Fatal(err)
		}
		v.sent = len(requests[v.request])
		victims = append(victims, v)
	}
	peak := s.public.rss()
	if err := <-working; err != nil {
		t.Errorf("a client meanwhile: %v", err)
	}
	// Those that have not answered are given up after 10 s; what is sent to them has been sent then.
	time.Sleep(14 * time.Second)
	peak = max(peak, s.public.rss())
	b := make([]byte, 1<<16)
	received, sent := 0, 0
	most := map[int]int{}
	for _, v := range victims {
		got := 0
		for {
			n, _, err := unix.Recvfrom(v.fd, b, 0)
			if err != nil {
				break
			}
			if n > max(v.sent, 5) && v.request != 0 { // there is no smaller error
				t.Errorf("%q is answered with %d bytes: %.60q", requests[v.request], n, b[:n])
			}
			got += n
		}
		bound := max(5, 4*v.sent) // an answer, twice again, and an error
		if v.request == 0 {
			bound = 4 + 512 + v.sent
		}
		if got > bound {
			t.Errorf("%q brings %d bytes", requests[v.request], got)
		}
		most[v.request] = max(most[v.request], got)
		received += got
		sent += v.sent
	}
	for i, n := range most {
		t.Logf("%.60q (%d bytes): at most %d", requests[i], len(requests[i]), n)
	}
	t.Logf("%d requests of %d bytes brought %d bytes; the public relay grew by %d KiB", spoofed, sent, received, (peak-before)>>10)
	if peak-before > 64<<20 {
		t.Errorf("the public relay grew from %d to %d MiB", before>>20, peak>>20)
	}
	onlyFiles(t, folder, "image")
	if got, err := tftpHPA.fetch(t, nil, s.tftp, "image"); err != nil || got != sum {
		t.Errorf("a client afterwards: %s, %v", got, err)
	}
}
