//go:build linux

package e2e

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// configureTFTP is configure for services of files.
func configureTFTP(t testing.TB, l *netem.Link, services ...service) *system {
	t.Helper()
	s := configure(t, l, services...)
	s.listen = "tftp = \"127.0.0.1:0\"\n"
	s.sites = siteTOML("office", s.key, append(slices.Clone(allowed), "tftp:///*")...)
	s.more = map[string]string{}
	return s
}

// startTFTP starts both relays, with a link that can be cut between them, and one folder that visitors read and write.
// Options are more lines of the service.
func startTFTP(t testing.TB, folder, options string) *system {
	t.Helper()
	s := configureTFTP(t, nil, service{"files", "tftp:///", "file://" + folder})
	s.more["files"] = options
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.startPrivate()
	return s
}

// tftpClient is a program of somebody else, in one of its ways.
type tftpClient struct {
	name    string
	program string
	debian  string // the package
	get     func(host, port, remote, local string) []string
	put     func(host, port, remote, local string) []string
	failed  []string      // what it prints when it fails; its exit status alone does not tell
	block   int           // bytes of a block, as the relay answers on loopback
	limit   time.Duration // of one transfer; 0: tftpLimit
}

func hpa(mode string) tftpClient {
	args := func(way string) func(host, port, remote, local string) []string {
		return func(host, port, remote, local string) []string {
			if way == "get" {
				return []string{"-4", "-m", mode, host, port, "-c", way, remote, local}
			}
			return []string{"-4", "-m", mode, host, port, "-c", way, local, remote}
		}
	}
	return tftpClient{name: "hpa", program: "tftp", debian: "tftp-hpa", get: args("get"), put: args("put"),
		failed: []string{"Error code", "timed out", "server error", "unknown"}, block: 512}
}

func atftp(name string, block int, options ...string) tftpClient {
	args := func(way string) func(host, port, remote, local string) []string {
		return func(host, port, remote, local string) []string {
			var list []string
			for _, o := range options {
				list = append(list, "--option", o)
			}
			return append(list, way, "-r", remote, "-l", local, host, port)
		}
	}
	return tftpClient{name: name, program: "atftp", debian: "atftp", get: args("-g"), put: args("-p"), failed: []string{"aborting"}, block: block}
}

func curlTFTP(name string, block int, options ...string) tftpClient {
	url := func(host, port, remote string) string {
		return "tftp://" + host + ":" + port + "/" + strings.TrimPrefix(remote, "/")
	}
	options = append(options, "-sS")
	return tftpClient{name: name, program: "curl", debian: "curl", block: block,
		get: func(host, port, remote, local string) []string {
			return append(slices.Clone(options), "-o", local, url(host, port, remote))
		},
		put: func(host, port, remote, local string) []string {
			return append(slices.Clone(options), "-T", local, url(host, port, remote))
		}}
}

func busybox(name string, block int, options ...string) tftpClient {
	args := func(way string) func(host, port, remote, local string) []string {
		return func(host, port, remote, local string) []string {
			return append(append([]string{"tftp"}, options...), way, "-r", remote, "-l", local, host, port)
		}
	}
	return tftpClient{name: name, program: "busybox", debian: "busybox", get: args("-g"), put: args("-p"),
		failed: []string{"server error", "tftp: timeout"}, block: block}
}

var (
	tftpHPA     = hpa("binary")
	tftpATFTP   = atftp("atftp", 512)
	tftpWindow  = atftp("atftp-window", 1468, "blksize 1468", "windowsize 16", "tsize", "timeout 3")
	tftpCurl    = curlTFTP("curl", 512)
	tftpBusybox = busybox("busybox", 512)
	tftpBlock   = busybox("busybox-65464", 65464, "-b", "65464")

	tftpClients = []tftpClient{
		tftpHPA,
		tftpATFTP,
		tftpWindow,
		tftpCurl,
		curlTFTP("curl-1468", 1468, "--tftp-blksize", "1468"),
		curlTFTP("curl-no-options", 512, "--tftp-no-options"),
		tftpBusybox,
		busybox("busybox-1468", 1468, "-b", "1468"),
		tftpBlock,
	}
)

// run executes the program in a folder and tells whether it says that it has done what it was to do.
func (c tftpClient) run(ctx context.Context, t testing.TB, n *netem.Namespace, dir string, args []string) error {
	t.Helper()
	cmd := exec.CommandContext(ctx, tool(t, c.program, c.debian), args...)
	cmd.Dir = dir
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	text := string(out[max(0, len(out)-500):])
	if ctx.Err() != nil {
		return fmt.Errorf("%s does not end: %w\n%s", strings.Join(cmd.Args, " "), ctx.Err(), text)
	}
	if err == nil && slices.ContainsFunc(c.failed, func(words string) bool { return strings.Contains(string(out), words) }) {
		err = fmt.Errorf("exit status 0")
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	return nil
}

// tftpLimit bounds one transfer.
const tftpLimit = 5 * time.Minute

func (c tftpClient) within(t testing.TB) context.Context {
	return within(t, cmp.Or(c.limit, tftpLimit))
}

// fetch gets a file and returns the hash of what has come. The file is there also when the program failed.
func (c tftpClient) fetch(t testing.TB, n *netem.Namespace, addr, remote string) (sum string, err error) {
	t.Helper()
	dir := tempDir(t)
	local := filepath.Join(dir, "local")
	host, port, _ := net.SplitHostPort(addr)
	if err := c.run(c.within(t), t, n, dir, c.get(host, port, remote, local)); err != nil {
		return "", err
	}
	defer os.Remove(local) // it may be large, and others wait for the disk
	return fileSum(local), nil
}

// store puts a file.
func (c tftpClient) store(t testing.TB, n *netem.Namespace, addr, remote, local string) error {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	return c.run(c.within(t), t, n, tempDir(t), c.put(host, port, remote, local))
}

// fileSum is the hash of a file, or says why there is none.
func fileSum(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err.Error()
	}
	return hex.EncodeToString(h.Sum(nil))
}

// makeFile writes a file of that size, always the same one, and returns its hash.
func makeFile(t testing.TB, name string, size int64) (sum string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	source := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	if _, err := io.CopyN(io.MultiWriter(f, h), source, size); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// onlyFiles checks that a folder has no other files than these: no temporary one is left.
func onlyFiles(t testing.TB, folder string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			t.Errorf("%s is in the folder", e.Name())
		}
	}
}

// sizeName is a size as the name of a file.
func sizeName(size int64) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%dm", size>>20)
	}
	return fmt.Sprint(size)
}

// TestTFTP gets and puts files with every client, through both relays, from and to a folder.
func TestTFTP(t *testing.T) {
	t.Parallel()
	folder := tempDir(t)
	small := []int64{0, 511, 512, 513, 1 << 20}
	// 32 MiB are 65536 blocks of 512 bytes and an empty one: the block number starts again. 200 MiB do so twice at 1468.
	const rolled, large = 32 << 20, 200 << 20
	sums := map[int64]string{}
	for _, size := range append(slices.Clone(small), rolled, large) {
		sums[size] = makeFile(t, filepath.Join(folder, sizeName(size)), size)
	}
	heavy := map[string][]int64{
		"hpa/get": {rolled}, "hpa/put": {rolled},
		"curl/get":         {rolled},
		"atftp-window/get": {large}, "atftp-window/put": {large},
		"busybox-65464/get": {rolled}, "busybox-65464/put": {rolled},
	}
	s := startTFTP(t, folder, "write = true\n")
	t.Run("each", func(t *testing.T) {
		for _, c := range tftpClients {
			for _, way := range []string{"get", "put"} {
				sizes := small
				switch {
				case *longTests:
					sizes = append(slices.Clone(small), rolled, large)
				case !testing.Short():
					sizes = append(slices.Clone(small), heavy[c.name+"/"+way]...)
				}
				for _, size := range sizes {
					t.Run(c.name+"/"+way+"/"+sizeName(size), func(t *testing.T) {
						t.Parallel()
						if way == "get" {
							if sum, err := c.fetch(t, nil, s.tftp, sizeName(size)); err != nil {
								t.Error(err)
							} else if sum != sums[size] {
								t.Errorf("%s arrived, want %s", sum, sums[size])
							}
							return
						}
						name := c.name + "-" + sizeName(size)
						if err := c.store(t, nil, s.tftp, "/"+name, filepath.Join(folder, sizeName(size))); err != nil {
							t.Error(err)
						} else if sum := fileSum(filepath.Join(folder, name)); sum != sums[size] {
							t.Errorf("%s arrived, want %s", sum, sums[size])
						}
						os.Remove(filepath.Join(folder, name))
					})
				}
			}
		}
	})
	var names []string
	for size := range sums {
		names = append(names, sizeName(size))
	}
	onlyFiles(t, folder, names...)
}
