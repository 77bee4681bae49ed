//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// TestTFTPCut cuts the link in the middle of transfers, for longer and longer. The clients do not notice, or at least do not
// say so.
func TestTFTPCut(t *testing.T) {
	t.Parallel()
	outages := []time.Duration{3 * time.Second, 10 * time.Second}
	if *longTests {
		outages = append(outages, 40*time.Second)
	}
	const size = 24 << 20 // some are in the middle when the last one has begun
	for _, outage := range outages {
		for _, way := range []string{"get", "put"} {
			t.Run(fmt.Sprintf("%s/%v", way, outage), func(t *testing.T) {
				t.Parallel()
				folder := tempDir(t)
				sum := makeFile(t, filepath.Join(folder, "data"), size)
				// Without a cache what is asked for and not what there is crosses the link: it is cut in the middle.
				s := startTFTP(t, folder, "write = true\ncache = false\n")
				var clients []tftpClient
				for _, c := range tftpClients {
					if c.block > 512 || c.name == "curl-no-options" {
						continue // the former would be done before, the latter waits as curl does
					}
					clients = append(clients, c)
					// Each has a file of its own: whoever shares one may have to open it again.
					if err := os.Link(filepath.Join(folder, "data"), filepath.Join(folder, c.name)); err != nil {
						t.Fatal(err)
					}
				}
				// It is no subtest: that would have to wait until others end, the clients among them.
				over, cut := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(cut)
					// One whose file is not open yet is told after 20 s that it cannot be had now.
					for s.transfers() < len(clients) {
						if isOver(over, 20*time.Millisecond) {
							t.Error("not all clients have begun")
							return
						}
					}
					for at := s.link.total() + 8<<20; s.link.total() < at; { // of all of them
						if isOver(over, 5*time.Millisecond) {
							t.Error("the clients were done before the link was cut")
							return
						}
					}
					s.link.setRefuse(true)
					if s.link.cut() == 0 {
						t.Error("nothing was cut")
					}
					time.Sleep(outage)
					s.link.setRefuse(false)
				}()
				t.Run("each", func(t *testing.T) {
					for _, c := range clients {
						t.Run(c.name, func(t *testing.T) {
							t.Parallel()
							if way == "get" {
								if got, err := c.fetch(t, nil, s.tftp, c.name); err != nil {
									t.Error(err)
								} else if got != sum {
									t.Errorf("%s arrived, want %s", got, sum)
								}
								return
							}
							if err := c.store(t, nil, s.tftp, "up-"+c.name, filepath.Join(folder, "data")); err != nil {
								t.Error(err)
							} else if got := fileSum(filepath.Join(folder, "up-"+c.name)); got != sum {
								t.Errorf("%s arrived, want %s", got, sum)
							}
						})
					}
				})
				close(over)
				<-cut
			})
		}
	}
}

// isOver waits for d, or until over is closed.
func isOver(over <-chan struct{}, d time.Duration) bool {
	select {
	case <-over:
		return true
	case <-time.After(d):
		return false
	}
}

// transfers is how many transfers of files the public relay has seen.
func (s *system) transfers() int {
	var status struct{ TFTP struct{ Total int } }
	if err := json.Unmarshal([]byte(s.adminGet("/api/status/Get")), &status); err != nil {
		s.t.Error(err)
	}
	return status.TFTP.Total
}

// TestTFTPRelayKilled kills the private relay in the middle of an upload, and of a download: the clients get an error, and the old file
// stays what it was.
func TestTFTPRelayKilled(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"get", "put"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			folder := tempDir(t)
			makeFile(t, filepath.Join(folder, "data"), 32<<20)
			old := makeFile(t, filepath.Join(folder, "old"), 1000)
			s := startTFTP(t, folder, "write = true\ncache = false\n")
			ended := make(chan error, 1)
			at := s.link.total()
			go func() {
				if way == "put" {
					ended <- tftpHPA.store(t, nil, s.tftp, "old", filepath.Join(folder, "data"))
					return
				}
				_, err := tftpHPA.fetch(t, nil, s.tftp, "data")
				ended <- err
			}()
			s.link.awaitTotal(at + 2<<20)
			s.private.kill()
			s.startPrivate() // its session takes the place of the one that is lost
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the client believes that it has all of it")
				} else if !strings.Contains(err.Error(), "Error code 0") {
					t.Errorf("the client is told: %v", err)
				}
			case <-time.After(waitLimit):
				t.Error("the client waits")
			}
			if got := fileSum(filepath.Join(folder, "old")); got != old {
				t.Errorf("the old file is %s, want %s", got, old)
			}
			entries, err := os.ReadDir(folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				// What a killed relay leaves behind cannot be read, and is removed a day later.
				if _, err := tftpWindow.fetch(t, nil, s.tftp, e.Name()); strings.HasPrefix(e.Name(), ".") && err == nil {
					t.Errorf("%s is read", e.Name())
				}
			}
		})
	}
}

// TestTFTPLoss gets and puts files over a path that loses, duplicates and reorders packets: each arrives whole, or the client says that it does
// not.
func TestTFTPLoss(t *testing.T) {
	t.Parallel()
	for _, path := range []netem.Config{
		{Loss: 0.01, Duplicate: 0.05, Reorder: 0.05},
		{Loss: 0.1},
		{Duplicate: 0.3, Reorder: 0.3},
		{Loss: 0.3, Duplicate: 0.1, Reorder: 0.1},
	} {
		path.Delay, path.Seed = 2*time.Millisecond, rand.Uint64()
		t.Run(fmt.Sprintf("%.0f-%.0f-%.0f", 100*path.Loss, 100*path.Duplicate, 100*path.Reorder), func(t *testing.T) {
			t.Parallel()
			l := newLink(t, path)
			folder := tempDir(t)
			// hpa, atftp and curl wait 5 s for each packet that is lost. The others have more time, so they get more.
			few, many := int64(40_000), int64(100_000)
			switch {
			case path.Loss > 0.1:
				few, many = 2_500, 20_000
			case path.Loss > 0.01:
				few, many = 8_000, 50_000
			}
			sums := map[int64]string{}
			for _, size := range []int64{few, many} {
				sums[size] = makeFile(t, filepath.Join(folder, sizeName(size)), size)
			}
			s := configureTFTP(t, nil, service{"files", "tftp:///", "file://" + folder})
			s.inside, s.outside = l.Outside, l.Outside // both relays at one end, the clients at the other
			s.https = fmt.Sprintf("%s:0", l.Outside.Addr())
			s.listen = fmt.Sprintf("tftp = \"%s:0\"\n", l.Outside.Addr())
			s.more["files"] = "write = true\n"
			s.startPublic()
			s.startPrivate()
			t.Run("each", func(t *testing.T) {
				for _, c := range []tftpClient{tftpHPA, tftpATFTP, tftpWindow, tftpCurl, tftpBusybox} {
					size := many
					if slices.Contains([]string{"hpa", "atftp", "curl"}, c.name) {
						size = few
					}
					if path.Loss >= 0.1 { // some give up, and curl tries for an hour
						c.limit = 30 * time.Second
					}
					t.Run(c.name+"/get", func(t *testing.T) {
						t.Parallel()
						got, err := c.fetch(t, l.Inside, s.tftp, sizeName(size))
						judge(t, path, got, sums[size], err, c.name == "atftp-window")
					})
					t.Run(c.name+"/put", func(t *testing.T) {
						t.Parallel()
						c := c
						frail := c.name == "curl" || c.name == "atftp-window"
						if frail { // they go on when they have lost their place
							c.limit = 30 * time.Second
						}
						err := c.store(t, l.Inside, s.tftp, "up-"+c.name, filepath.Join(folder, sizeName(size)))
						up := filepath.Join(folder, "up-"+c.name)
						if c.program == "busybox" && err == nil {
							// When an older ACK comes after its last block, it does not wait for an answer to that any more than once. Then it
							// repeats the block and ends.
							if path.Loss < 0.1 {
								eventually(t, "what busybox has put", func() bool { return exists(up) })
							} else if !exists(up) {
								err = errors.New("busybox has not waited for the ACK of its last block")
							}
						}
						judge(t, path, fileSum(up), sums[size], err, frail)
					})
				}
			})
			eventually(t, "the temporary files to go", func() bool {
				left, err := filepath.Glob(filepath.Join(folder, ".*"))
				return err == nil && len(left) == 0
			})
			uploads, err := filepath.Glob(filepath.Join(folder, "up-*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, up := range uploads {
				if got := fileSum(up); got != sums[few] && got != sums[many] {
					t.Errorf("%s is not whole", up)
				}
			}
		})
	}
}

// judge checks what has come over a path that may be too bad for a client, if it loses a tenth. Two of them do not always bear that packets come
// twice: atftp gives up reading when that is an answer with options, and may stand still when it writes windows; curl leaves out some of what it
// puts, so that it is refused.
func judge(t *testing.T, path netem.Config, got, want string, err error, frail bool) {
	t.Helper()
	switch {
	case err != nil && path.Loss < 0.1 && !(frail && path.Duplicate > 0):
		t.Errorf("seed %d: %v", path.Seed, err)
	case err != nil:
		t.Logf("seed %d: %v", path.Seed, err)
	case got != want:
		t.Errorf("seed %d: %s looks complete, want %s", path.Seed, got, want)
	}
}
