//go:build unix

package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What the service manager passes on is found by address, else by name, and nothing is found twice.
func TestInheritedSockets(t *testing.T) {
	if addresses := os.Getenv("DAEMON_TEST_SOCKETS"); addresses != "" {
		inherited(t, strings.Split(addresses, ","))
		return
	}
	var files []*os.File
	var addresses []string
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Skip(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addresses = append(files, f), append(addresses, ln.Addr().String())
	}
	pc, err := net.ListenPacket("udp", addresses[0])
	if err != nil {
		t.Skip(err)
	}
	defer pc.Close()
	f, err := pc.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files = append(files, f)

	child := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=^TestInheritedSockets$`, os.Args[0])
	child.ExtraFiles = files
	child.Env = append(os.Environ(), "DAEMON_TEST_SOCKETS="+strings.Join(addresses, ","), "LISTEN_FDS=4", "LISTEN_FDNAMES=admin:web.socket::q")
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	// A parent's sockets are not the child's.
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if s, err := InheritedSockets(); s != nil || err != nil {
		t.Errorf("sockets for somebody else: %v, %v", s, err)
	}
	t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	t.Setenv("LISTEN_FDS", "0")
	if s, err := InheritedSockets(); err != nil || len(s.list) != 0 {
		t.Errorf("no sockets: %v, %v", s, err)
	}
	for _, bad := range []string{"", "-1", "5000", "x"} {
		t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
		t.Setenv("LISTEN_FDS", bad)
		if _, err := InheritedSockets(); ExitCode(err) != ExitUsage {
			t.Errorf("LISTEN_FDS=%q: %v", bad, err)
		}
	}
}

// inherited is the test in the process that gets the sockets.
func inherited(t *testing.T, addresses []string) {
	s, err := InheritedSockets()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("a child of ours would take the sockets for its own")
	}
	port := func(i int) string { _, p, _ := net.SplitHostPort(addresses[i]); return ":" + p }
	for _, test := range []struct {
		name, network, address string
		want                   int // -1: none
	}{
		{"admin", "tcp", addresses[0], 0},
		{"admin", "tcp", "127.0.0.1:1", 0}, // by name
		{"x", "tcp", addresses[0], 0},
		{"x", "udp", addresses[0], 3},
		{"x", "udp", port(0), -1}, // it is bound to one address, not to all
		{"x", "tcp", port(1), 1},
		{"x", "tcp", "0.0.0.0" + port(1), 1},
		{"x", "tcp", "127.0.0.1" + port(1), -1},
		{"web", "tcp", port(2), 2},
		{"admin", "udp", ":1", -1},
		{"x", "tcp", "", -1},
		{"x", "tcp", "127.0.0.1:1", -1},
	} {
		files := s.Files(test.name, test.network, test.address)
		switch {
		case test.want < 0 && len(files) == 0:
		case test.want >= 0 && len(files) == 1 && files[0] == s.list[test.want].file:
		default:
			t.Errorf("%s, %s %s: %v", test.name, test.network, test.address, files)
		}
	}
	if unused := s.Unused(); len(unused) != 0 {
		t.Errorf("unused: %v", unused)
	}
	s.list[1].used = false
	if unused := s.Unused(); len(unused) != 1 || unused[0] != "web.socket (tcp://"+addresses[1]+")" {
		t.Errorf("unused: %v", unused)
	}
	ln, err := net.FileListener(s.Files("admin", "tcp", "")[0])
	if err != nil || ln.Addr().String() != addresses[0] {
		t.Errorf("%v, %v", ln, err)
	}
	var none *Sockets
	if none.Files("https", "tcp", ":443") != nil || none.Unused() != nil {
		t.Error("no sockets, and yet some")
	}
}
