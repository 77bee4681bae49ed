package netem

import (
	"container/heap"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// mtu is what a TUN device has unless it is told otherwise.
const mtu = 1500

// direction carries packets one way, on a thread of its own: no packet waits for another
// one to wake up.
type direction struct {
	link     *Link
	from, to int // descriptors
	inside   bool
	rate     int64
	delay    time.Duration
	queue    time.Duration

	duplicate, reorder float64

	count Count // guarded by link.mu

	// Owned by run.
	rand    *rand.Rand
	began   time.Time
	free    time.Duration // when the last packet that was let in has been sent, since began
	waiting packets
	number  uint64
	spare   []*packet
}

// packet is one on its way.
type packet struct {
	at     time.Duration // when it is due
	number uint64
	n      int
	b      [mtu]byte
}

// packets is a heap, the one that is due first on top.
type packets []*packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	return p[i].at < p[j].at || p[i].at == p[j].at && p[i].number < p[j].number
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(*packet)) }
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	return x
}

func (d *direction) init(l *Link, c Config, from, to int, inside bool) {
	seed := c.Seed * 2
	if inside {
		seed++
	}
	*d = direction{
		link: l, from: from, to: to, inside: inside,
		rate: c.Rate, delay: c.Delay, queue: c.Queue,
		duplicate: c.Duplicate, reorder: c.Reorder,
		rand: rand.New(rand.NewPCG(seed, 0)), began: time.Now(),
	}
}

// run carries packets until the link is closed.
func (d *direction) run() {
	// The thread ends with the goroutine, because its priority is its own.
	runtime.LockOSThread()
	// Both only make it more exact, so a refusal does not matter.
	unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15)
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	fds := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}, {Fd: int32(d.link.wake[0]), Events: unix.POLLIN}}
	for {
		var timeout *unix.Timespec
		if len(d.waiting) > 0 {
			ts := unix.NsecToTimespec(int64(max(0, d.waiting[0].at-time.Since(d.began))))
			timeout = &ts
		}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && err != unix.EINTR {
			panic("BUG: netem: ppoll: " + err.Error())
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			d.read()
		}
		d.deliver()
	}
}

// read lets in what there is, but not so much that what is due has to wait.
func (d *direction) read() {
	for range 64 {
		var p *packet
		if last := len(d.spare) - 1; last >= 0 {
			p, d.spare = d.spare[last], d.spare[:last]
		} else {
			p = new(packet)
		}
		n, err := unix.Read(d.from, p.b[:])
		if err != nil {
			d.spare = append(d.spare, p)
			return
		}
		p.n = n
		if !d.admit(p, time.Since(d.began)) {
			d.spare = append(d.spare, p)
		}
	}
}

// admit decides whether and when a packet arrives.
func (d *direction) admit(p *packet, now time.Duration) bool {
	l := d.link
	l.mu.Lock()
	defer l.mu.Unlock()
	id, flags := d.parse(p.b[:p.n])
	f := l.flow(id)
	f.last = time.Now()
	f.over = flags&(tcpFIN|tcpRST) != 0 || f.over && flags&tcpSYN == 0
	if d.inside && (l.all.FromInside || f.fault.FromInside) || !d.inside && (l.all.FromOutside || f.fault.FromOutside) {
		d.count.Silenced++
		return false
	}
	start := max(d.free, now)
	if start-now > d.queue {
		d.count.Dropped++
		return false
	}
	d.free = start + time.Duration(int64(p.n)*8*int64(time.Second)/d.rate)
	if l.loss > 0 && d.rand.Float64() < l.loss {
		d.count.Lost++
		return false
	}
	last := &f.at[0]
	if d.inside {
		last = &f.at[1]
	}
	p.at = max(*last, d.free+d.delay+l.all.Delay+f.fault.Delay)
	*last = p.at
	if d.duplicate > 0 && d.rand.Float64() < d.duplicate {
		twin := *p
		twin.at += d.delay
		d.wait(&twin)
	}
	if d.reorder > 0 && d.rand.Float64() < d.reorder {
		p.at += d.delay
	}
	d.wait(p)
	return true
}

// wait puts a packet among those on their way.
func (d *direction) wait(p *packet) {
	d.number++
	p.number = d.number
	heap.Push(&d.waiting, p)
}

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

// parse reads the ports of an IPv4 packet, and the flags of a TCP segment.
func (d *direction) parse(b []byte) (f Flow, flags byte) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Flow{}, 0
	}
	f.Protocol = b[9]
	header := int(b[0]&15) * 4
	fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff
	if f.Protocol != unix.IPPROTO_TCP && f.Protocol != unix.IPPROTO_UDP || fragment != 0 || len(b) < header+4 {
		return f, 0
	}
	f.Inside, f.Outside = binary.BigEndian.Uint16(b[header:]), binary.BigEndian.Uint16(b[header+2:])
	if !d.inside {
		f.Inside, f.Outside = f.Outside, f.Inside
	}
	if f.Protocol == unix.IPPROTO_TCP && len(b) >= header+20 {
		flags = b[header+13]
	}
	return f, flags
}

// deliver hands over what is due.
func (d *direction) deliver() {
	var count, bytes int64
	for len(d.waiting) > 0 && d.waiting[0].at <= time.Since(d.began) {
		p := heap.Pop(&d.waiting).(*packet)
		if _, err := unix.Write(d.to, p.b[:p.n]); err == nil {
			count++
			bytes += int64(p.n)
		}
		d.spare = append(d.spare, p)
	}
	if count > 0 {
		d.link.mu.Lock()
		d.count.Packets += count
		d.count.Bytes += bytes
		d.link.mu.Unlock()
	}
}
