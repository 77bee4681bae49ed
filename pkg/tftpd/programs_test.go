package tftpd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPrograms has the clients that are installed here read and write.
func TestPrograms(t *testing.T) {
	t.Parallel()
	file := content(100_000)
	for _, w := range ways[:2] {
		for _, ports := range []bool{false, true} {
			b := newBench(t, w, func(b *bench) {
				b.store.files["file"] = file
				if ports {
					b.Ports = [2]uint16{40_000, 65_000}
				}
			})
			port := fmt.Sprint(b.Addr().Port())
			for _, test := range []struct{ get, put []string }{
				{[]string{"curl", "-sS", "-o", "LOCAL", "tftp://127.0.0.1:PORT/boot/file"}, []string{"curl", "-sS", "-T", "LOCAL", "tftp://127.0.0.1:PORT/boot/REMOTE"}},
				{[]string{"curl", "-sS", "--tftp-blksize", "1400", "-o", "LOCAL", "tftp://127.0.0.1:PORT//boot/file"}, nil},
				{[]string{"tftp", "-4", "-m", "binary", "127.0.0.1", "PORT", "-c", "get", "boot/file", "LOCAL"}, []string{"tftp", "-4", "-m", "binary", "127.0.0.1", "PORT", "-c", "put", "LOCAL", "boot/REMOTE"}},
				{
					[]string{"atftp", "--option", "blksize 1000", "--option", "windowsize 16", "--option", "tsize", "-g", "-r", "boot/file", "-l", "LOCAL", "127.0.0.1", "PORT"},
					[]string{"atftp", "--option", "blksize 1000", "--option", "windowsize 8", "--option", "tsize", "-p", "-l", "LOCAL", "-r", "boot/REMOTE", "127.0.0.1", "PORT"},
				},
				{[]string{"busybox", "tftp", "-b", "65464", "-g", "-r", "boot/file", "-l", "LOCAL", "127.0.0.1", "PORT"}, []string{"busybox", "tftp", "-b", "1400", "-p", "-l", "LOCAL", "-r", "boot/REMOTE", "127.0.0.1", "PORT"}},
			} {
				if _, err := exec.LookPath(test.get[0]); err != nil {
					t.Logf("%s is not installed", test.get[0])
					continue
				}
				run := func(args []string, local, remote string) {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					r := strings.NewReplacer("LOCAL", local, "PORT", port, "REMOTE", remote)
					for i := range args {
						args[i] = r.Replace(args[i])
					}
					if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
						t.Errorf("%s, %t: %q: %v: %s", w.name, ports, args, err, out)
					}
				}
				local := filepath.Join(t.TempDir(), "file")
				run(test.get, local, "")
				if got, err := os.ReadFile(local); err != nil || !bytes.Equal(got, file) {
					t.Errorf("%s, %t: %s has read %d bytes, %v", w.name, ports, test.get[0], len(got), err)
				}
				if test.put == nil {
					continue
				}
				if err := os.WriteFile(local, file, 0o600); err != nil {
					t.Fatal(err)
				}
				run(test.put, local, test.put[0])
				b.store.mu.Lock()
				if got := b.store.written[test.put[0]]; !bytes.Equal(got, file) {
					t.Errorf("%s, %t: %s has written %d bytes", w.name, ports, test.put[0], len(got))
				}
				b.store.mu.Unlock()
			}
		}
	}
}
