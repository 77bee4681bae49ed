//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTFTPText sends texts as netascii: both sides have them as they have them, line by line.
func TestTFTPText(t *testing.T) {
	t.Parallel()
	hpaFolder := publicFolder(t)
	folder := tempDir(t)
	s := configureTFTP(t, nil,
		service{"files", "tftp:///files", "file://" + folder},
		service{"hpa", "tftp:///hpa", "tftp://" + startTFTPD(t, nil, "tftpd-hpa", hpaFolder)})
	s.more["files"], s.more["hpa"] = "write = true\n", "write = true\n"
	s.startPublic()
	s.startPrivate()
	texts := map[string]string{
		"empty": "", "lf": "one\ntwo\n", "cr": "one\rtwo\r", "crlf": "one\r\ntwo\r\n", "end-cr": "one\r", "nul": "a\r\x00b\x00\n",
		// A pair that lies across the end of a block, wherever that is.
		"border": strings.Repeat("a", 511) + "\n" + strings.Repeat("b", 509) + "\r" + strings.Repeat("c", 511) + "\r\n",
		"lfs":    strings.Repeat("\n", 3000), "crs": strings.Repeat("\r", 3000), "crlfs": "a" + strings.Repeat("\r\n", 3000),
	}
	var mixed strings.Builder
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		mixed.WriteByte("ab\r\n\x00"[rnd.IntN(5)])
	}
	texts["mixed"] = mixed.String()
	c := hpa("ascii")
	host, port, _ := net.SplitHostPort(s.tftp)
	for name, text := range texts {
		for service, folder := range map[string]string{"files": folder, "hpa": hpaFolder} {
			t.Run(service+"/"+name, func(t *testing.T) {
				t.Parallel()
				dir := tempDir(t)
				writeFile(t, filepath.Join(dir, "text"), text)
				writeFile(t, filepath.Join(folder, name), text)
				if err := c.run(within(t, tftpLimit), t, nil, dir, c.get(host, port, service+"/"+name, "got")); err != nil {
					t.Error(err)
				}
				if b, _ := os.ReadFile(filepath.Join(dir, "got")); string(b) != text {
					t.Errorf("get: %.100q of %d bytes, want %.100q of %d", b, len(b), text, len(text))
				}
				if err := c.store(t, nil, s.tftp, service+"/up-"+name, filepath.Join(dir, "text")); err != nil {
					t.Error(err)
				}
				if b, _ := os.ReadFile(filepath.Join(folder, "up-"+name)); string(b) != text {
					t.Errorf("put: %.100q of %d bytes, want %.100q of %d", b, len(b), text, len(text))
				}
			})
		}
	}
}

// TestTFTPPorts has a port for each transfer, as servers of old do, and every client takes it.
func TestTFTPPorts(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	sum := makeFile(t, filepath.Join(folder, "data"), 100_000)
	s := configureTFTP(t, nil, service{"files", "tftp:///", "file://" + folder})
	s.more["files"] = "write = true\n"
	low := 32100 + rand.IntN(5)*100 // above those that freePort gives, below the kernel's
	s.listen += fmt.Sprintf("tftp_ports = \"%d-%d\"\n", low, low+63)
	s.startPublic()
	s.startPrivate()
	t.Run("each", func(t *testing.T) {
		for _, c := range tftpClients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				if got, err := c.fetch(t, nil, s.tftp, "data"); err != nil || got != sum {
					t.Errorf("%s arrived, %v", got, err)
				}
				if err := c.store(t, nil, s.tftp, "up-"+c.name, filepath.Join(folder, "data")); err != nil {
					t.Error(err)
				} else if got := fileSum(filepath.Join(folder, "up-"+c.name)); got != sum {
					t.Errorf("%s arrived, want %s", got, sum)
				}
			})
		}
	})
	m, asked := newROM(t, nil, s.tftp), netip.MustParseAddrPort(s.tftp)
	content, err := os.ReadFile(filepath.Join(folder, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.read("data", 512, content); err != nil {
		t.Error(err)
	}
	if p := int(m.peer.Port()); m.peer == asked || p < low || p > low+63 {
		t.Errorf("the answer comes from %v, want a port from %d to %d", m.peer, low, low+63)
	}
}

// TestTFTPAtSite asks the private relay itself, on its own network, while the public one cannot be reached.
func TestTFTPAtSite(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	sum := makeFile(t, filepath.Join(folder, "data"), 1<<20)
	s := configureTFTP(t, nil, service{"files", "tftp:///boot", "file://" + folder})
	s.more["files"] = "write = \"new\"\n"
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.options = fmt.Sprintf("[listen]\ntftp = %q\n", addr)
	s.startPrivate()
	s.link.setRefuse(true)
	s.link.cut()
	t.Run("each", func(t *testing.T) {
		for _, c := range tftpClients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				if got, err := c.fetch(t, nil, addr, "boot/data"); err != nil || got != sum {
					t.Errorf("%s arrived, %v", got, err)
				}
				if err := c.store(t, nil, addr, "/boot/up-"+c.name, filepath.Join(folder, "data")); err != nil {
					t.Error(err)
				} else if got := fileSum(filepath.Join(folder, "up-"+c.name)); got != sum {
					t.Errorf("%s arrived, want %s", got, sum)
				}
				if err := c.store(t, nil, addr, "/boot/up-"+c.name, filepath.Join(folder, "data")); err == nil {
					t.Error("a file that is there is written")
				}
				if _, err := c.fetch(t, nil, addr, "data"); err == nil {
					t.Error("a file of no service is read")
				}
			})
		}
	})
}

// TestTFTPOptions asks for options as clients write them that are not at hand, and that nobody should.
func TestTFTPOptions(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	content := bytes.Repeat([]byte("0123456789"), 300)
	writeFile(t, filepath.Join(folder, "data"), string(content))
	writeFile(t, filepath.Join(folder, "empty"), "")
	s := startTFTP(t, folder, "")
	oack := func(list ...string) string { return strings.Join(append(list, ""), "\x00") }
	for _, tt := range []struct {
		name, file string
		options    []string
		want       string // the answer behind its opcode: options, or data of block 1
	}{
		{"none", "data", nil, "\x00\x01" + string(content[:512])},
		{"blksize", "data", []string{"blksize", "1024"}, oack("blksize", "1024")},
		{"in capitals", "data", []string{"BLKSIZE", "1024"}, oack("blksize", "1024")},
		{"least block", "data", []string{"blksize", "8"}, oack("blksize", "8")},
		{"too small a block", "data", []string{"blksize", "7"}, "\x00\x01" + string(content[:512])},
		{"no number", "data", []string{"blksize", "large"}, "\x00\x01" + string(content[:512])},
		{"a negative one", "data", []string{"blksize", "-1"}, "\x00\x01" + string(content[:512])},
		{"too large a block", "data", []string{"blksize", "70000"}, oack("blksize", "65464")},
		{"tsize", "data", []string{"tsize", "0"}, oack("tsize", "3000")},
		{"an unknown one", "data", []string{"multicast", "", "blksize", "100"}, oack("blksize", "100")},
		{"unknown ones alone", "data", []string{"x-password", "1"}, "\x00\x01" + string(content[:512])},
		{"timeout", "data", []string{"timeout", "255"}, oack("timeout", "255")},
		{"too short a timeout", "data", []string{"timeout", "0"}, "\x00\x01" + string(content[:512])},
		{"a window", "data", []string{"windowsize", "4"}, oack("windowsize", "4")},
		{"too large a window", "data", []string{"blksize", "1024", "windowsize", "65535"}, oack("blksize", "1024", "windowsize", "64")},
		{"no window", "data", []string{"windowsize", "0"}, "\x00\x01" + string(content[:512])},
		{"blocks that roll to 1", "data", []string{"rollover", "1"}, oack("rollover", "1")},
		{"an empty file", "empty", nil, "\x00\x01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newROM(t, nil, s.tftp)
			m.send(tftpRequest(opRRQ, tt.file, tt.options...))
			_, rest, err := m.next()
			m.fail()
			if err != nil {
				t.Fatal(err)
			}
			// The order is free.
			if got := string(rest); got != tt.want && !sameFields(got, tt.want) {
				t.Errorf("%.100q, want %.100q", got, tt.want)
			}
		})
	}
}

// sameFields reports whether two lists of options are the same but for their order.
func sameFields(a, b string) bool {
	pairs := func(s string) map[string]string {
		m, f := map[string]string{}, strings.Split(s, "\x00")
		for ; len(f) > 2; f = f[2:] {
			m[strings.ToLower(f[0])] = f[1]
		}
		return m
	}
	return fmt.Sprint(pairs(a)) == fmt.Sprint(pairs(b)) && len(a) == len(b)
}
