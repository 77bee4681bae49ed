//go:build linux

package e2e

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestTFTPStorm boots a thousand machines from one image: it crosses the tunnel once.
func TestTFTPStorm(t *testing.T) {
	t.Parallel()
	machines, size, block := 1000, 4<<20, 65464
	if testing.Short() {
		size = 1 << 20
	}
	image := make([]byte, size)
	rand.Read(image)
	folder := tempDir(t)
	writeFile(t, filepath.Join(folder, "image"), string(image))
	s := configureTFTP(t, nil, service{"files", "tftp:///boot", "file://" + folder})
	s.limits += "\ntftp_transfers_per_address = 2000\nvisitors_per_address = 2000\n" // all are on this machine
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.startPrivate()
	at, began := s.link.total(), time.Now()
	var wg sync.WaitGroup
	for range machines {
		m := newROM(t, nil, s.tftp)
		wg.Go(func() {
			defer m.c.Close()
			if err := m.read("boot/image", block, image); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	crossed := s.link.total() - at
	t.Logf("%d machines read %d MiB each in %v; %d KiB crossed the link; the public relay has %d MiB",
		machines, size>>20, time.Since(began).Round(time.Millisecond), crossed>>10, s.public.rss()>>20)
	if crossed < int64(size) || crossed > int64(size)*5/4 {
		t.Errorf("%d bytes crossed the link for an image of %d", crossed, size)
	}

	// Another image by that name is another image at once, or as soon as the old one need not be asked for again.
	rand.Read(image[:1000])
	replacement := filepath.Join(folder, "new")
	writeFile(t, replacement, string(image))
	if err := os.Rename(replacement, filepath.Join(folder, "image")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new image", func() bool { return newROM(t, nil, s.tftp).read("boot/image", block, image) == nil })
}

// TestTFTPBoot has the boot ROM of a network card, in a machine that is emulated, load a script through both relays, and one
// that is larger from that.
func TestTFTPBoot(t *testing.T) {
	t.Parallel()
	const marker = "the whole of it has come"
	folder := tempDir(t)
	padding := strings.Repeat("# "+strings.Repeat("padding ", 12)+"\n", 3000) // 300 KB
	s := startTFTP(t, folder, "")
	_, port, err := net.SplitHostPort(s.tftp)
	if err != nil {
		t.Fatal(err)
	}
	url := "tftp://10.0.2.2:" + port + "/" // what the machine has for this one's loopback
	writeFile(t, filepath.Join(folder, "boot.ipxe"), "#!ipxe\nimgfetch "+url+"data || echo no data\nimgstat\nchain "+url+"large.ipxe || echo no script\n")
	writeFile(t, filepath.Join(folder, "large.ipxe"), "#!ipxe\n"+padding+"echo "+marker+"\n")
	makeFile(t, filepath.Join(folder, "data"), 1<<20)
	qemu := tool(t, "qemu-system-x86_64", "qemu-system-x86")
	rom := "/usr/lib/ipxe/qemu/pxe-e1000.rom"
	if !exists(rom) {
		t.Fatalf("%s is not here: run .ci/tools, or apt-get install ipxe-qemu", rom)
	}
	cmd := exec.Command(qemu, "-M", "pc", "-m", "128", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
		"-netdev", "user,id=n0,bootfile="+url+"boot.ipxe", "-device", "e1000,netdev=n0,bootindex=1,romfile="+rom)
	p := start(t, "qemu", cmd)
	p.abrupt = true
	p.awaitWithin(t, 4*waitLimit, 0, marker) // a machine without a processor of its own
	if _, _, ok := p.find(0, "no data"); ok {
		t.Error("the image was not fetched")
	}
	p.await(t, 0, "data", fmt.Sprint(1<<20)) // of imgstat
}
