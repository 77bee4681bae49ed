//go:build linux

package e2e

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// ssh ends its ProxyCommand by SIGHUP, a closed terminal what runs in it: the target is rid of the connection at once then, and the relay does
// not keep it for an operator who might come back, as it does for minutes when nobody has said goodbye.
func TestHangup(t *testing.T) {
	t.Parallel()
	addr, conns := startEcho(t, nil)
	s := configure(t, nil, service{"echo", "", "tcp://" + addr})
	s.startPublic()
	s.startPrivate()
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer typed.Close()
	cmd := s.tunnelctl("connect", "office/echo")
	cmd.Stdin = in
	p := start(t, "tunnelctl connect", cmd)
	in.Close()
	var target net.Conn
	select {
	case target = <-conns:
	case <-time.After(waitLimit):
		t.Fatal("nobody has come to the target")
	}
	hungUp := time.Now()
	p.signal(t, syscall.SIGHUP)
	if code := p.wait(t, waitLimit); code != 0 {
		t.Errorf("tunnelctl connect ends with %d", code)
	}
	if took := awaitReset(t, target).Sub(hungUp); took > waitLimit {
		t.Errorf("the target had the connection for another %v", took)
	}
}
