package tftpd

import (
	"bytes"
	"net/netip"
	"testing"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// FuzzServer has several addresses send anything: each datagram is preceded by who sends it and how long it is.
func FuzzServer(f *testing.F) {
	script := func(packets ...[]byte) (s []byte) {
		for i, p := range packets {
			s = append(append(s, byte(i%3), byte(len(p))), p...)
		}
		return s
	}
	read, options := request(1, "boot/hello", "octet"), request(1, "boot/hello", "octet", "blksize", "1432", "tsize", "0")
	write := request(2, "boot/new", "netascii", "tsize", "3", "windowsize", "4")
	f.Add(script(read, options, write, ack(1), ack(0), data(1, []byte("new")), ack(1), ack(1), data(1, []byte("new"))))
	f.Add(script(read, read, read, read, write, options, errorPacket(0, ""), errorPacket(5, "no"), ack(7)))
	f.Add(script(nil, []byte{0}, []byte{0, 1}, []byte{0, 5}, ack(0), data(1, nil), []byte{0, 6, 0}, request(1, "no", "mail"), request(2, "../x", "octet")))
	f.Fuzz(func(t *testing.T, script []byte) {
		b, n := netBench(t, 0, func(b *bench) {
			b.MaxTransfers = 4
			b.store.files["large"] = content(5000)
		})
		l := b.core.Loop(0)
		allowed, unbounded := make(map[netip.AddrPort]int), make(map[netip.AddrPort]bool)
		asked := make(map[netip.AddrPort]bool)
		for len(script) >= 2 {
			who, size := spoofed(int(script[0]%8)), min(int(script[1]), len(script)-2)
			p := bytes.Clone(script[2 : 2+size])
			script = script[2+size:]
			switch op := opcode(p); op {
			case tftp.OpRead, tftp.OpWrite:
				asked[who] = true
				allowed[who] += 3 * max(len(p), 516)
			case tftp.OpError:
			default:
				allowed[who] += max(len(p), 5)
				unbounded[who] = unbounded[who] || asked[who] // it may have proven itself
			}
			on(l, func() { b.port.receive(p, evloop.PacketAddr{Remote: who, Local: b.Addr().Addr()}) })
		}
		on(l, func() {})
		if st := b.Stats(); st.Running > 4 || st.Unproven > st.Running || st.Unproven < 0 {
			t.Errorf("counted %+v", st)
		}
		allSent := n.over
		b.Server.Close()
		<-allSent
		b.settled()
		n.mu.Lock()
		defer n.mu.Unlock()
		for who, sent := range n.sent {
			if !unbounded[who] && sent > allowed[who] {
				t.Errorf("%v got %d bytes, %d are allowed", who, sent, allowed[who])
			}
		}
		on(l, func() {
			if len(b.port.sources) != 0 || b.port.unproven.n != 0 || b.port.over.n != 0 || b.port.running != 0 {
				t.Errorf("left behind: %d sources, %d unproven, %d over", len(b.port.sources), b.port.unproven.n, b.port.over.n)
			}
		})
		b.core.Close()
	})
}
