//go:build linux

package e2e

import (
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// TestLossyLink moves bulk in both directions over a link that loses one packet in a hundred and whose ends begin with
// CUBIC: the sender's relay changes to BBR, and says so.
func TestLossyLink(t *testing.T) {
	if b, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control"); !slices.Contains(strings.Fields(string(b)), "bbr") {
		t.Skip("the kernel has no bbr: modprobe tcp_bbr")
	}
	l := newLink(t, netem.Config{Loss: 0.01})
	_, a := startTargetIn(t, l.Inside)
	s := startSystemOver(t, l, "transport = \"wss\"\nlinks = 1\n", service{"bulk", "tcp://:{port}", "tcp://" + a.Bulk})
	for _, tt := range []struct {
		direction string // the target's first byte
		sender    *process
		move      func(net.Conn, []byte) (int, error)
	}{
		{"D", s.private, net.Conn.Read},
		{"U", s.public, net.Conn.Write},
	} {
		c, err := dialIn(s.outside, "tcp", s.port("bulk"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(waitLimit))
		io.WriteString(c, tt.direction)
		over := make(chan struct{})
		go func() {
			defer close(over)
			for buf := make([]byte, 64<<10); ; {
				if _, err := tt.move(c, buf); err != nil {
					return
				}
			}
		}()
		tt.sender.await(t, 0, "loss of", "congestion control bbr instead of cubic")
		c.Close()
		<-over
	}
}
