//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// operator is tunnelctl of somebody at the other end of a link, with a token of his own and the site's key at hand.
func (s *system) operator(args ...string) *exec.Cmd {
	s.t.Helper()
	_, port, _ := strings.Cut(s.https, ":")
	cmd := s.tunnelctl(args...)
	cmd.Args = append([]string{cmd.Args[0], "--relay", "https://" + s.outside.Addr().String() + ":" + port, "--ca", certFile("ca.pem"),
		"--token-file", s.file("state/admin.token")}, args...)
	return cmd
}

// TestOperatorMoves talks over ssh, whose ProxyCommand is tunnelctl connect, and psql, through tunnelctl forward, while the operator's way to
// the public relay falls silent, is cut, and he moves to another network. Both go on where they were.
func TestOperatorMoves(t *testing.T) {
	t.Parallel()
	l := newLink(t, netem.Config{})
	db, _ := startPostgres(t, l.Outside)
	sshd, login := startSSHD(t, l.Outside)
	s := configure(t, l, service{"ssh", "", fmt.Sprintf("tcp://127.0.0.1:%d", sshd)}, service{"db", "", fmt.Sprintf("tcp://127.0.0.1:%d", db)})
	s.inside = l.Outside // the private relay is beside the public one: the link is the operator's alone
	s.startPublic()
	s.startPrivate()

	local := fmt.Sprint(freePort(t))
	forward := startIn(t, l.Inside, "tunnelctl forward", s.operator("forward", "--site-key", s.key, "office/db", local))
	awaitPortIn(t, l.Inside, forward, "tcp", "127.0.0.1:"+local)
	connect := s.operator("connect", "--site-key", s.key, "office/ssh")
	w := &world{system: s, link: l, conversations: []*conversation{
		converse(t, l.Inside, "ssh", exec.Command(tool(t, "ssh", "openssh-client"),
			append(login, "-o", "ProxyCommand="+s.inShell(connect), "office", "cat")...), "%d"),
		converse(t, l.Inside, "psql", exec.Command(tool(t, "psql", "postgresql-client"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
			"-h", "127.0.0.1", "-p", local, "-U", "culvert", "-d", "postgres"), "select %d;"),
	}}
	if n := len(w.carriers()); n != 2 {
		t.Errorf("%d connections cross the link, want one of each tunnelctl", n)
	}
	w.step("cut", func() {
		for _, f := range w.carriers() {
			runIn(t, l.Inside, exec.Command(tool(t, "ss", "iproute2"), "-K", "-n", "-t", "sport", "=", fmt.Sprintf(":%d", f.Inside)))
		}
	})
	w.step("silent for 8 s", func() {
		flows := w.carriers()
		l.Break(netem.Fault{FromInside: true, FromOutside: true}, flows...)
		time.Sleep(8 * time.Second)
		l.Break(netem.Fault{}, flows...)
	})
	w.step("another address", func() {
		if err := l.Inside.Move(); err != nil {
			t.Fatal(err)
		}
	})
	for _, c := range w.conversations {
		c.end(t)
	}
}
