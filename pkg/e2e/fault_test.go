//go:build linux

package e2e

import (
	"io"
	"net"
	"sync"
	"testing"

	"culvert.dev/pkg/netem"
)

// faultProxy forwards TCP connections to one address and breaks them on demand.
type faultProxy struct {
	addr string // where it listens
	to   string
	in   *netem.Namespace
	ln   net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex
	conns   map[*net.TCPConn]*net.TCPConn // client to server
	refuse  bool                          // new connections are reset
	stalled chan struct{}                 // nil: data flows; else closed when it may flow again
	carried int64                         // bytes, both ways together
	more    *sync.Cond                    // carried has grown
}

func startFaultProxy(t testing.TB, to string) *faultProxy {
	t.Helper()
	return startFaultProxyIn(t, nil, to)
}

func startFaultProxyIn(t testing.TB, n *netem.Namespace, to string) *faultProxy {
	t.Helper()
	ln, err := listenIn(n, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &faultProxy{in: n, addr: ln.Addr().String(), to: to, ln: ln, conns: map[*net.TCPConn]*net.TCPConn{}}
	f.more = sync.NewCond(&f.mu)
	f.wg.Add(1)
	go f.accept()
	t.Cleanup(func() {
		ln.Close()
		f.flow()
		f.cut()
		f.wg.Wait()
	})
	return f
}

func (f *faultProxy) accept() {
	defer f.wg.Done()
	for {
		c, err := f.ln.Accept()
		if err != nil {
			return
		}
		f.wg.Go(func() { f.forward(c.(*net.TCPConn)) })
	}
}

func (f *faultProxy) forward(client *net.TCPConn) {
	defer client.Close()
	f.mu.Lock()
	refuse := f.refuse
	f.mu.Unlock()
	if refuse {
		client.SetLinger(0)
		return
	}
	c, err := dialIn(f.in, "tcp", f.to)
	if err != nil {
		client.SetLinger(0)
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	f.mu.Lock()
	f.conns[client] = server
	f.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { f.copy(server, client) })
	f.copy(client, server)
	wg.Wait()
	f.mu.Lock()
	delete(f.conns, client)
	f.mu.Unlock()
}

func (f *faultProxy) copy(to, from *net.TCPConn) {
	// Left to itself the system makes it many megabytes, now and then: seconds of video that are on their way in a stall.
	from.SetReadBuffer(256 << 10)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		f.mu.Lock()
		stalled := f.stalled
		f.carried += int64(n)
		f.more.Broadcast()
		f.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				from.CloseRead()
				return
			}
		}
		if err == io.EOF {
			to.CloseWrite()
			return
		} else if err != nil {
			to.Close()
			return
		}
	}
}

// cut resets every connection; new ones are let in.
func (f *faultProxy) cut() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for client, server := range f.conns {
		client.SetLinger(0)
		server.SetLinger(0)
		client.Close()
		server.Close()
	}
	return len(f.conns)
}

// setRefuse says whether new connections are reset.
func (f *faultProxy) setRefuse(refuse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// stall lets nothing more through, in silence, until flow.
func (f *faultProxy) stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled == nil {
		f.stalled = make(chan struct{})
	}
}

// flow ends a stall.
func (f *faultProxy) flow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled != nil {
		close(f.stalled)
		f.stalled = nil
	}
}

// total is the number of bytes carried so far.
func (f *faultProxy) total() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.carried
}

// awaitTotal waits until total has reached n.
func (f *faultProxy) awaitTotal(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.carried < n {
		f.more.Wait()
	}
}
