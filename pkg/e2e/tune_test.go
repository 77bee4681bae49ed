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
	never := func() bool { return false }
	for _, tt := range []struct {
		direction string // the target's first byte
		sender    *process
		carried   func() int64
		move      func(net.Conn, []byte) (int, error)
	}{
		{"D", s.private, func() int64 { in, _ := l.Count(); return in.Bytes }, net.Conn.Read},
		{"U", s.public, func() int64 { _, out := l.Count(); return out.Bytes }, net.Conn.Write},
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
		// rate is in MiB/s on the link, for d or until something happens.
		rate := func(d time.Duration, until func() bool) float64 {
			from, began := tt.carried(), time.Now()
			for time.Since(began) < d && !until() {
				time.Sleep(20 * time.Millisecond)
			}
			return float64(tt.carried()-from) / (1 << 20) / time.Since(began).Seconds()
		}
		changed := func() bool {
			_, _, ok := tt.sender.find(0, "loss of", "congestion control bbr instead of cubic")
			return ok
		}
		began := time.Now()
		before := rate(waitLimit/2, changed)
		took := time.Since(began)
		if !changed() {
			t.Errorf("%s: %s stays with cubic at %.2f MiB/s", tt.direction, tt.sender.name, before)
		}
		rate(time.Second, never)
		t.Logf("%s: %.2f MiB/s for %v with cubic, %.2f with bbr", tt.direction, before, took.Round(100*time.Millisecond), rate(3*time.Second, never))
		c.Close()
		<-over
	}
}
