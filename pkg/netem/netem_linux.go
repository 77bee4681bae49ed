package netem

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what a link is like, in both directions.
type Config struct {
	Rate  int64         // bits per second, of IP packets; 0: 200 million
	Delay time.Duration // one way; 0: 25 ms
	Queue time.Duration // what waits longer for its turn is dropped; 0: 50 ms
	Loss  float64       // share of the packets that are lost at random, 0 to 1
	Seed  uint64        // of the losses

	Duplicate float64 // share of the packets that come twice, the second time Delay later
	Reorder   float64 // share of the packets that come Delay later, after some that were sent behind them

	// Congestion is TCP's congestion control in both namespaces; "": cubic, what stock
	// hosts have.
	Congestion string
}

// Fault is what is wrong with a link beside its loss.
type Fault struct {
	FromInside  bool          // packets that Inside sends disappear
	FromOutside bool          // packets that Outside sends disappear
	Delay       time.Duration // more of it, one way
}

// Flow is one connection over the link, by its ports. Fragments after the first, and
// protocols without ports, are of a flow with ports 0.
type Flow struct {
	Protocol        uint8 // unix.IPPROTO_TCP, unix.IPPROTO_UDP, …
	Inside, Outside uint16
}

// Count is what happened to the packets of one direction.
type Count struct {
	Packets, Bytes int64 // delivered
	Lost           int64 // at random
	Dropped        int64 // the queue was full
	Silenced       int64 // by a fault
}

// Link joins two namespaces. Its methods may be called from anywhere.
type Link struct {
	Outside, Inside *Namespace // where the world is, and the closed network

	in, out direction // from Inside, from Outside
	wake    [2]int    // pipe; closing [1] ends both directions
	threads sync.WaitGroup

	mu    sync.Mutex
	loss  float64
	all   Fault
	flows map[Flow]*flow
}

// flow is what a link knows of a Flow. Guarded by Link.mu.
type flow struct {
	last  time.Time // a packet was let in
	over  bool      // a TCP connection that one side has ended or reset
	fault Fault
	at    [2]time.Duration // when the last packet of each direction is due
}

var (
	outsideAddr = netip.AddrFrom4([4]byte{10, 77, 0, 1})
	insideAddr  = netip.AddrFrom4([4]byte{10, 77, 0, 2})
)

// New makes a link that works. It is to be closed.
func New(c Config) (*Link, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("netem: making network namespaces needs root; run the tests as root")
	}
	if c.Rate == 0 {
		c.Rate = 200e6
	}
	if c.Delay == 0 {
		c.Delay = 25 * time.Millisecond
	}
	if c.Queue == 0 {
		c.Queue = 50 * time.Millisecond
	}
	if c.Congestion == "" {
		c.Congestion = "cubic"
	}
	l := &Link{loss: c.Loss, flows: map[Flow]*flow{}}
	if err := unix.Pipe2(l.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("netem: %w", err)
	}
	err := allow(c.Congestion)
	if err != nil {
		l.close()
		return nil, fmt.Errorf("netem: allow %s: %w", c.Congestion, err)
	}
	if l.Outside, err = newNamespace(outsideAddr, c.Congestion); err != nil {
		l.close()
		return nil, err
	}
	if l.Inside, err = newNamespace(insideAddr, c.Congestion); err != nil {
		l.close()
		return nil, err
	}
	l.in.init(l, c, l.Inside.tun, l.Outside.tun, true)
	l.out.init(l, c, l.Outside.tun, l.Inside.tun, false)
	l.threads.Go(l.in.run)
	l.threads.Go(l.out.run)
	return l, nil
}

// Close ends the link. The namespaces go when no process is left in them.
func (l *Link) Close() {
	unix.Close(l.wake[1])
	l.threads.Wait()
	unix.Close(l.wake[0])
	l.wake = [2]int{-1, -1}
	l.close()
}

func (l *Link) close() {
	for _, fd := range l.wake {
		if fd > 0 {
			unix.Close(fd)
		}
	}
	for _, n := range []*Namespace{l.Outside, l.Inside} {
		if n != nil {
			unix.Close(n.tun)
			n.mu.Lock()
			n.file.Close()
			n.mu.Unlock()
		}
	}
}

// SetLoss changes the share of packets that are lost at random, in both directions.
func (l *Link) SetLoss(loss float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loss = loss
}

// Break puts a fault on some flows; on the whole link if none are named. The zero Fault
// heals. A fault of the link and one of a flow add up.
func (l *Link) Break(f Fault, flows ...Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(flows) == 0 {
		l.all = f
	}
	for _, id := range flows {
		l.flow(id).fault = f
	}
}

// flow finds or makes the state of a Flow.
func (l *Link) flow(id Flow) *flow {
	f := l.flows[id]
	if f == nil {
		f = new(flow)
		l.flows[id] = f
	}
	return f
}

// Flows lists the flows that had a packet in the last d, without TCP connections that are
// over.
func (l *Link) Flows(d time.Duration) []Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	var flows []Flow
	for id, f := range l.flows {
		if time.Since(f.last) < d && !f.over {
			flows = append(flows, id)
		}
	}
	return flows
}

// Count says what happened so far to packets from Inside and from Outside.
func (l *Link) Count() (fromInside, fromOutside Count) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.in.count, l.out.count
}

// Namespace is a network namespace with a loopback and one end of a link. A nil one is that
// of the test itself.
type Namespace struct {
	file *os.File // /proc/…/ns/net
	tun  int      // descriptor, non-blocking

	mu   sync.Mutex
	addr netip.Addr
}

// device is the name of a link's end in its namespace.
const device = "link0"

func newNamespace(addr netip.Addr, congestion string) (*Namespace, error) {
	n := &Namespace{tun: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if n.tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(n.tun, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("make a TUN device: %w", err)
		}
		for name, value := range map[string]string{
			"ipv4/tcp_congestion_control":           congestion,
			"ipv4/tcp_no_metrics_save":              "1", // a connection learns nothing from earlier ones
			"ipv4/tcp_rmem":                         "4096 131072 6291456",
			"ipv4/tcp_wmem":                         "4096 16384 4194304",
			"ipv6/conf/" + device + "/disable_ipv6": "1", // no solicitations beside what is tested
		} {
			if err := os.WriteFile(sysctl+name, []byte(value), 0); err != nil {
				return err
			}
		}
		for _, step := range []func() error{
			func() error { return interfaceUp("lo") },
			func() error { return interfaceUint32(device, unix.SIOCSIFTXQLEN, 4000) },
			func() error { return interfaceUp(device) },
			func() error { return n.setAddr(addr) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if n.file != nil {
			n.file.Close()
		}
		if n.tun >= 0 {
			unix.Close(n.tun)
		}
		return nil, fmt.Errorf("netem: %w", err)
	}
	return n, nil
}

const sysctl = "/proc/sys/net/"

// allow puts a congestion control on the machine's list of those for everybody. The
// default is always on it; what is not is refused in every namespace but the first.
func allow(congestion string) error {
	const list = sysctl + "ipv4/tcp_allowed_congestion_control"
	b, err := os.ReadFile(list)
	if err != nil || slices.Contains(strings.Fields(string(b)), congestion) {
		return err
	}
	return os.WriteFile(list, append(bytes.TrimSpace(b), " "+congestion...), 0)
}

// onThread runs f on a thread of its own, which ends with it: what it has unshared or
// entered stays there.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Do calls f in the namespace: sockets it makes and processes it starts belong there, and
// stay when it has returned. Only the calling goroutine is in the namespace: those that f
// starts are not.
func (n *Namespace) Do(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(func() error {
		n.mu.Lock()
		err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) // it may be closed meanwhile
		n.mu.Unlock()
		if err != nil {
			return fmt.Errorf("netem: enter the namespace: %w", err)
		}
		return f()
	})
}

// Addr is the address of the namespace on the link, 127.0.0.1 of a nil one.
func (n *Namespace) Addr() netip.Addr {
	if n == nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addr
}

// Move gives the namespace the next address and takes away the one it has. Connections
// of the old one get no word of it.
func (n *Namespace) Move() error {
	return n.Do(func() error { return n.setAddr(n.Addr().Next()) })
}

func (n *Namespace) setAddr(addr netip.Addr) error {
	if err := interfaceAddr(device, unix.SIOCSIFADDR, addr.As4()); err != nil {
		return err
	}
	if err := interfaceAddr(device, unix.SIOCSIFNETMASK, [4]byte{255, 255, 255, 0}); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = addr
	return nil
}

func interfaceUp(name string) error {
	return control(name, unix.SIOCSIFFLAGS, func(ifr *unix.Ifreq) { ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING) })
}

func interfaceUint32(name string, request uint, value uint32) error {
	return control(name, request, func(ifr *unix.Ifreq) { ifr.SetUint32(value) })
}

func interfaceAddr(name string, request uint, addr [4]byte) error {
	return control(name, request, func(ifr *unix.Ifreq) { ifr.SetInet4Addr(addr[:]) })
}

// control configures a network device of this thread's namespace.
func control(name string, request uint, set func(*unix.Ifreq)) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	set(ifr)
	if err := unix.IoctlIfreq(fd, request, ifr); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}
