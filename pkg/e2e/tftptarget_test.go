//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// publicFolder is a folder that a server without privileges reads and writes.
func publicFolder(t testing.TB) string {
	t.Helper()
	dir := tempDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startTFTPD starts a server of files that is not ours, of a folder, and returns its address. name is that of the program.
func startTFTPD(t testing.TB, n *netem.Namespace, name, folder string) (addr string) {
	t.Helper()
	host, port := "127.0.0.1", fmt.Sprint(freePort(t))
	var cmd *exec.Cmd
	switch name {
	case "tftpd-hpa":
		cmd = exec.Command(builtTool(t, name), "-L", "-v", "-4", "-a", host+":"+port, "-c", "-p", "-s", "-U", "000", "-u", "nobody", folder)
	case "atftpd":
		cmd = exec.Command(builtTool(t, name), "--daemon", "--no-fork", "--port", port, "--bind-address", host, "--logfile", "-",
			"--verbose=5", "--user", "nobody.nogroup", folder)
	case "dnsmasq":
		port = "69" // there is no other way
		cmd = exec.Command(tool(t, name, "dnsmasq-base", "/usr/sbin/dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
			"--enable-tftp", "--tftp-root="+folder, "--listen-address="+host, "--bind-interfaces", "--pid-file=", "--log-facility=-", "--user=", "--group=")
	}
	p := startIn(t, n, name, cmd)
	p.abrupt = true
	addr = net.JoinHostPort(host, port)
	awaitTFTP(t, n, p, addr)
	return addr
}

// awaitTFTP waits until something answers requests for files.
func awaitTFTP(t testing.TB, n *netem.Namespace, p *process, addr string) {
	t.Helper()
	b := make([]byte, 1<<16)
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); {
		c, err := dialIn(n, "udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		// The answer comes from a port of its own, so the socket must not be a connected one.
		u := listenUDP(t, n)
		to, _ := net.ResolveUDPAddr("udp4", addr)
		u.WriteToUDP([]byte("\x00\x01there is no such file\x00octet\x00"), to)
		u.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _, err = u.ReadFromUDP(b)
		u.Close()
		if err == nil {
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended: %v", p.name, p.err)
		default:
		}
	}
	t.Fatalf("%s: nothing answers at %s", p.name, addr)
}

// TestTFTPTargets gets and puts files through both relays from and to servers of files that are not ours.
func TestTFTPTargets(t *testing.T) {
	t.Parallel()
	l := newLink(t, netem.Config{Delay: time.Millisecond, Rate: 1e9})
	folder := publicFolder(t)
	sizes := []int64{0, 511, 512, 1424, 1428, 1468, 1 << 20}
	sums := map[int64]string{}
	for _, size := range sizes {
		sums[size] = makeFile(t, filepath.Join(folder, sizeName(size)), size)
	}
	web := httptest.NewUnstartedServer(http.StripPrefix("/images/", http.FileServer(http.Dir(folder))))
	web.Listener.Close()
	var err error
	if web.Listener, err = listenIn(l.Inside, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	web.Start()
	t.Cleanup(web.Close)

	s := configureTFTP(t, l,
		service{"hpa", "tftp:///hpa", "tftp://" + startTFTPD(t, l.Inside, "tftpd-hpa", folder)},
		service{"atftpd", "tftp:///atftpd", "tftp://" + startTFTPD(t, l.Inside, "atftpd", folder)},
		service{"dnsmasq", "tftp:///dnsmasq", "tftp://" + startTFTPD(t, l.Inside, "dnsmasq", folder)},
		service{"web", "tftp:///web", "http://" + web.Listener.Addr().String() + "/images"})
	s.more["hpa"], s.more["atftpd"] = "write = true\n", "write = true\n"
	s.startPublic()
	s.startPrivate()
	t.Run("each", func(t *testing.T) {
		for _, server := range []string{"hpa", "atftpd", "dnsmasq", "web"} {
			for _, c := range []tftpClient{tftpHPA, tftpWindow, tftpCurl} {
				for _, size := range sizes {
					name := server + "/" + c.name + "/"
					t.Run(name+"get/"+sizeName(size), func(t *testing.T) {
						t.Parallel()
						if sum, err := c.fetch(t, l.Outside, s.tftp, server+"/"+sizeName(size)); err != nil {
							t.Error(err)
						} else if sum != sums[size] {
							t.Errorf("%s arrived, want %s", sum, sums[size])
						}
					})
					if s.more[server] == "" {
						continue
					}
					t.Run(name+"put/"+sizeName(size), func(t *testing.T) {
						t.Parallel()
						remote := server + "-" + c.name + "-" + sizeName(size)
						if err := c.store(t, l.Outside, s.tftp, server+"/"+remote, filepath.Join(folder, sizeName(size))); err != nil {
							t.Error(err)
						} else {
							// atftpd says that it has a file before it has written it.
							eventually(t, "the file at "+server, func() bool { return fileSum(filepath.Join(folder, remote)) == sums[size] })
						}
					})
				}
			}
		}
	})

	// What the servers say of a missing file, of paths on their machine too, stays with them.
	for _, server := range []string{"hpa", "atftpd", "dnsmasq", "web"} {
		_, err := tftpWindow.fetch(t, l.Outside, s.tftp, server+"/missing")
		if err == nil {
			t.Errorf("%s: a file that is not there is fetched", server)
		} else if strings.Contains(err.Error(), folder) {
			t.Errorf("%s: the client is told: %v", server, err)
		}
	}
	for _, server := range []string{"dnsmasq", "web"} {
		if err := tftpWindow.store(t, l.Outside, s.tftp, server+"/new", filepath.Join(folder, "511")); err == nil {
			t.Errorf("%s: a file is put where nothing can be put", server)
		}
	}
	if exists(filepath.Join(folder, "new")) {
		t.Error("it is there all the same")
	}
}
