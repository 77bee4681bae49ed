package public

import (
	"errors"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// restTime is how long a flow that the private relay has refused waits before
	// it asks again.
	restTime = time.Second

	// lastSilence is how long a flow may be silent when its session is about to end.
	lastSilence = time.Second
)

// flows are those of one port. They are owned by the session's loop.
type flows struct {
	port  *port
	loop  *loop
	conn  *evloop.PacketConn
	of    map[evloop.PacketAddr]*flow
	table forward.LoopFlows
}

// flow is the datagrams between one address of a visitor and one of ours, and the
// stream that carries them. It is the stream's handler.
type flow struct {
	forward.Flow
	place[*flow]        // in the tally
	id           uint64 // see loop.number
	flows        *flows
	service      *service
	addr         evloop.PacketAddr
	stream       *tunnel.Stream // nil: the private relay has refused it
	again        time.Time      // stream is nil: when to ask again

	// For the access log.
	began          int64
	received, sent uint64
	datagrams      Datagrams
	err            word
}

func newFlows(t *port, s *session, address string) (*flows, error) {
	r := s.relay
	fs := &flows{port: t, loop: s.loop, of: make(map[evloop.PacketAddr]*flow)}
	fs.table.Loop, fs.table.Limit, fs.table.PerSource = s.loop.Loop, r.MaxFlows, r.MaxFlowsPerAddress
	var conn *evloop.PacketConn
	name := t.service.publish.String()
	files, err := s.borrow(t, "udp", address)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		conn, err = s.loop.ListenPacketFile(files[0], fs.receive)
	} else {
		conn, err = s.loop.ListenPacket("udp", address, fs.receive)
	}
	if err != nil {
		t.giveBack()
		return nil, err
	}
	conn.OnError = r.listenerError(name)
	fs.conn = conn
	if n, _ := conn.Buffers(); n > 0 && n < evloop.PacketBuffer {
		r.smallBuffers.Do(func() {
			r.log.Warn("the system buffers few datagrams, so bursts will be lost: raise net.core.rmem_max and net.core.wmem_max",
				"bytes", n, "wanted", evloop.PacketBuffer)
		})
	}
	return fs, nil
}

// receive takes a datagram of a visitor.
func (fs *flows) receive(b []byte, from evloop.PacketAddr) {
	now := fs.loop.Now()
	f := fs.of[from]
	if f != nil && f.stale() {
		f.end()
		f = nil
	}
	if f != nil {
		fs.table.Touch(&f.Flow, false, now)
		f.reopen(now)
	} else {
		f = fs.open(from, now)
	}
	if f == nil || f.stream == nil {
		fs.port.service.datagrams.Dropped++
		return
	}
	f.service.datagrams.Received++
	f.service.received += uint64(len(b))
	f.datagrams.Received++
	f.received += uint64(len(b))
	f.stream.SendDatagram(b)
}

// open begins a flow, unless there may be no more visitors.
func (fs *flows) open(from evloop.PacketAddr, now time.Time) *flow {
	svc, addr := fs.port.service, from.Remote.Addr()
	if !svc.admits(addr) {
		svc.errors[wordPolicy]++
		return nil
	}
	admission := &svc.session.relay.admission
	v := admission.enter(addr)
	if v != admitted {
		if v == sayFull { // there is nothing to say it with
			admission.leave(addr, v)
		}
		fs.loop.counters.TurnedAway++
		svc.errors[wordLimit]++
		return nil
	}
	f := &flow{flows: fs, service: svc, addr: from, began: fs.loop.since(), id: fs.loop.number()}
	if f.reopen(now); f.stream == nil {
		admission.leave(addr, v)
		return nil
	}
	f.Owner = f
	fs.of[from] = f
	fs.table.Add(&f.Flow, relay.Source(addr))
	push(&svc.flowing, f)
	svc.enter(addr)
	svc.total++
	return f
}

// reopen opens the flow's stream if it has none and its rest is over.
func (f *flow) reopen(now time.Time) {
	if f.stream != nil || now.Before(f.again) {
		return
	}
	st, err := f.service.openStream(f.addr.Remote, "udp", "")
	if err != nil {
		f.again = now.Add(restTime)
		return
	}
	f.stream, f.err = st, fine
	st.SetHandler(f)
}

// finish ends the flows of s as soon as they fall silent.
func (fs *flows) finish(s *service) {
	left := false
	for _, f := range fs.of {
		switch {
		case f.service != s:
		case fs.loop.Now().Sub(f.Last()) >= lastSilence:
			f.end()
		default:
			left = true
		}
	}
	if left {
		fs.loop.Arm(&s.silence, lastSilence, func() { fs.finish(s) })
	}
}

func (fs *flows) close() {
	fs.table.End()
	fs.conn.Close()
}

// stale reports whether another service has the port now, and the flow, unlike that
// of a session which has been replaced and is still there, cannot go on as it is.
func (f *flow) stale() bool {
	now, old := f.flows.port.service, f.service
	return now != old && (f.stream == nil || old.session == now.session || old.session.leaving || len(old.session.links) == 0)
}

func (f *flow) end() {
	f.flows.table.Remove(&f.Flow)
	f.Expire()
}

// Expire ends the flow, which has left the table. Another datagram of the visitor
// begins a new one.
func (f *flow) Expire() {
	delete(f.flows.of, f.addr)
	addr := f.addr.Remote.Addr()
	take(&f.service.flowing, f)
	f.service.leave(addr)
	f.service.session.relay.admission.leave(addr, admitted)
	f.service.errors[f.err]++
	f.flows.loop.log(&record{
		service: f.service, visitor: f.addr.Remote, proto: "udp", err: f.err, began: f.began,
		received: f.received, sent: f.sent, packets: f.datagrams, stream: f.stream,
	})
	if st := f.stream; st != nil {
		f.stream = nil
		st.Reset(tunnel.CodeCancelled)
	}
}

// OnDatagram takes an answer.
func (f *flow) OnDatagram(b []byte) {
	f.flows.table.Touch(&f.Flow, true, f.flows.loop.Now())
	f.service.datagrams.Sent++
	f.service.sent += uint64(len(b))
	f.datagrams.Sent++
	f.sent += uint64(len(b))
	f.flows.conn.WriteTo(b, f.addr)
}

// OnData drops what does not belong into a flow.
func (f *flow) OnData(b []byte) int { return len(b) }
func (f *flow) OnEOF()              { f.stream.Reset(tunnel.CodeCancelled) }
func (f *flow) OnDrain()            {}

// OnClose is the private relay's end of the flow: it was silent for too long, or it
// cannot be had now.
func (f *flow) OnClose(err error) {
	if f.stream == nil { // it is over here
		return
	}
	f.stream = nil
	if e, ok := errors.AsType[*tunnel.StreamError](err); !ok || e.Code == tunnel.CodeCancelled {
		f.end()
		return
	}
	f.again, f.err = f.flows.loop.Now().Add(restTime), wordOf(err)
}
