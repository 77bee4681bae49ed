package socks

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

const (
	maxDatagram = 64 << 10
	maxHead     = 3 + 2 + 255 + 2 // of a datagram
	maxBacklog  = 32              // datagrams of one destination that wait for its connection
)

// association is what a client has by UDP ASSOCIATE, as long as its connection lives: a socket beside it, for datagrams to and
// from any number of destinations, each of which is a flow.
type association struct {
	s      *Server
	pc     *net.UDPConn
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	client netip.AddrPort // where datagrams come from; its port is 0 before the first
	flows  map[string]*flow
}

// flow is one destination.
type flow struct {
	host   string
	port   uint16
	out    chan []byte
	cancel context.CancelFunc
	used   time.Time // guarded by association.mu
}

// associate serves UDP ASSOCIATE until the client closes its connection.
func (s *Server) associate(ctx context.Context, nc net.Conn) error {
	local, client := addrPort(nc.LocalAddr()), addrPort(nc.RemoteAddr())
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		nc.Write(AppendReply(nil, Failed, netip.AddrPort{}))
		drain(nc)
		return err
	}
	a := &association{s: s, pc: pc, client: netip.AddrPortFrom(client.Addr(), 0), flows: make(map[string]*flow)}
	a.ctx, a.cancel = context.WithCancel(ctx)
	bound, _ := netip.ParseAddrPort(pc.LocalAddr().String())
	if _, err := nc.Write(AppendReply(nil, Succeeded, bound)); err == nil {
		a.wg.Add(1)
		go a.receive()
		io.Copy(io.Discard, nc) // nothing comes: the end of it ends the association (rfc1928#section-7)
	}
	a.cancel()
	pc.Close()
	a.wg.Wait()
	return nil
}

// receive takes the client's datagrams until the socket is closed.
func (a *association) receive() {
	defer a.wg.Done()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := a.pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			if a.ctx.Err() != nil {
				return
			}
			continue // an ICMP error of what was sent before
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		host, port, payload, ok := ParseDatagram(buf[:n])
		if !ok || !a.isClient(from) {
			continue
		}
		a.send(host, port, append([]byte(nil), payload...))
	}
}

// isClient reports whether datagrams from there are the client's: the first tells its port.
func (a *association) isClient(from netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client.Port() == 0 && from.Addr() == a.client.Addr() {
		a.client = from
	}
	return from == a.client
}

// send gives a datagram to its flow. It is dropped if that has too much to do.
func (a *association) send(host string, port uint16, payload []byte) {
	address := net.JoinHostPort(host, strconv.Itoa(int(port)))
	a.mu.Lock()
	f := a.flows[address]
	if f == nil {
		limit := a.s.MaxFlows
		if limit == 0 {
			limit = 64
		}
		if len(a.flows) >= limit {
			var oldest string
			for name, f := range a.flows {
				if oldest == "" || f.used.Before(a.flows[oldest].used) {
					oldest = name
				}
			}
			a.flows[oldest].cancel()
			delete(a.flows, oldest)
		}
		f = &flow{host: host, port: port, out: make(chan []byte, maxBacklog)}
		var ctx context.Context
		ctx, f.cancel = context.WithCancel(a.ctx)
		a.flows[address] = f
		a.wg.Add(1)
		go a.run(ctx, f, address)
	}
	f.used = time.Now()
	a.mu.Unlock()
	select {
	case f.out <- payload:
	default:
	}
}

// run carries the datagrams of f until it is silent, makes room, or the association ends.
func (a *association) run(ctx context.Context, f *flow, address string) {
	defer a.wg.Done()
	defer func() {
		f.cancel()
		a.mu.Lock()
		if a.flows[address] == f {
			delete(a.flows, address)
		}
		a.mu.Unlock()
	}()
	far, err := a.s.Dial(ctx, "udp", address)
	if err != nil {
		if ctx.Err() == nil && a.s.OnError != nil {
			a.mu.Lock()
			client := a.client
			a.mu.Unlock()
			a.s.OnError(client, address, err)
		}
		return
	}
	defer context.AfterFunc(ctx, far.Abort)()
	defer far.Close()
	a.wg.Add(1)
	go a.back(f, far)
	idle := a.s.Idle
	if idle == 0 {
		idle = 2 * time.Minute
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-f.out:
			if _, err := far.Write(p); err != nil {
				return
			}
		case <-timer.C:
			a.mu.Lock()
			left := idle - time.Since(f.used)
			a.mu.Unlock()
			if left <= 0 {
				return
			}
			timer.Reset(left)
		}
	}
}

// back sends the client what comes from far. It ends with far.
func (a *association) back(f *flow, far Conn) {
	defer a.wg.Done()
	defer f.cancel()
	buf := make([]byte, maxDatagram)
	out := make([]byte, 0, maxHead+1500)
	for {
		n, err := far.Read(buf)
		if err != nil {
			return
		}
		out = append(AppendDatagramHead(out[:0], f.host, f.port), buf[:n]...)
		a.mu.Lock()
		f.used = time.Now()
		to := a.client
		a.mu.Unlock()
		a.pc.WriteToUDPAddrPort(out, to) // what is too large for the client's network is lost, as datagrams are
	}
}
