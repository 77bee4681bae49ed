package tunnel_test

import (
	"fmt"
	"time"

	"culvert.dev/pkg/tunnel"
)

// A direct link gives what is sent to the other session at once.
type direct struct {
	to   *tunnel.Session
	peer *direct
}

func (l *direct) Send(b []byte) {
	if err := l.to.Receive(l.peer, b[tunnel.Headroom:], time.Now()); err != nil {
		panic(err)
	}
}
func (l *direct) Room() int       { return 64 << 10 }
func (l *direct) Close(err error) {}

// A reader prints what comes, and answers once.
type reader struct {
	name   string
	st     *tunnel.Stream
	answer string
}

func (r *reader) OnData(b []byte) int {
	fmt.Printf("%s got %q\n", r.name, b)
	return len(b)
}

func (r *reader) OnEOF() {
	r.st.Write([]byte(r.answer))
	r.st.CloseWrite()
}
func (r *reader) OnDrain()          {}
func (r *reader) OnClose(err error) { fmt.Println(r.name, "closed:", err) }

func Example() {
	now := time.Now()
	private := tunnel.New(tunnel.Config{Client: true, Accept: func(st *tunnel.Stream, header []byte) {
		fmt.Printf("a stream for %s\n", header)
		st.SetHandler(&reader{"private", st, "welcome"})
	}}, now)
	public := tunnel.New(tunnel.Config{}, now)

	a, b := &direct{to: public}, &direct{to: private}
	a.peer, b.peer = b, a
	private.Attach(a, tunnel.RoleInteractive, now)
	public.Attach(b, tunnel.RoleInteractive, now)

	st, err := public.Open([]byte("intranet"))
	if err != nil {
		panic(err)
	}
	st.SetHandler(&reader{"public", st, ""})
	st.Write([]byte("hello"))
	st.CloseWrite()
	for range 2 {
		private.Flush(now)
		public.Flush(now)
	}
	now = now.Add(time.Second) // acknowledgements may wait a little
	private.Advance(now)
	public.Advance(now)
	private.Flush(now)
	public.Flush(now)
	// Output:
	// a stream for intranet
	// private got "hello"
	// public got "welcome"
	// public closed: <nil>
	// private closed: <nil>
}
