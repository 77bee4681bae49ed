package link

import (
	"testing"

	"culvert.dev/pkg/tunnel"
)

// sink writes until it is stopped, and counts what comes back.
type sink struct {
	s     *tunnel.Stream
	left  int
	back  int
	block []byte
	done  chan struct{}
}

func (k *sink) OnDrain() {
	for k.left > 0 && k.s.Pending() <= k.s.HighMark() {
		n := min(k.left, len(k.block))
		k.s.Write(k.block[:n])
		k.left -= n
	}
}

func (k *sink) OnData(b []byte) int {
	if k.back -= len(b); k.back == 0 {
		close(k.done)
	}
	return len(b)
}
func (k *sink) OnEOF()        {}
func (k *sink) OnClose(error) {}

// BenchmarkLink sends bytes over a link on loopback to an echo, and back: the work of
// both ends in one process.
func BenchmarkLink(b *testing.B) {
	for _, transport := range []Transport{WSS, QUIC} {
		b.Run(transport.String(), func(b *testing.B) { benchmarkLink(b, &network{transport: transport}) })
	}
}

func benchmarkLink(b *testing.B, n *network) {
	_, core, key := start(b, n, false)
	loop := core.Loop(0)
	k := &sink{block: make([]byte, 16<<10), left: b.N * 64 << 10, back: b.N * 64 << 10, done: make(chan struct{})}
	b.SetBytes(64 << 10)
	var me *Session
	on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
	d := dial(loop, b.Context(), n.config(key), func(l *Link) {
		l.Serve(me, tunnel.RoleInteractive, func(*Link, error) {})
		st, err := me.Open([]byte("header"))
		if err != nil {
			b.Error(err)
		}
		k.s = st
		b.ResetTimer()
		st.SetHandler(k)
		k.OnDrain()
	})
	if d.err != nil {
		b.Fatal(d.err)
	}
	<-k.done
}
