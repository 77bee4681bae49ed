package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/operate"
	"culvert.dev/pkg/relay"
)

// duplex is a connection each of whose directions ends on its own.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
	Abort() // ends both at once, so that the peer notices
}

// local is a connection of a program on this machine.
type local struct{ *net.TCPConn }

func (l local) Abort() {
	l.SetLinger(0)
	l.Close()
}

const (
	// maxUDPFlows bounds the programs that use a forward of datagrams at a time; a flow ends when it has been silent for udpIdle.
	maxUDPFlows = 256
	udpIdle     = 2 * time.Minute

	// udpWaiting bounds the datagrams that wait for their flow to the site.
	udpWaiting = 64
)

func forwardCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	udp := false
	cmd := &cobra.Command{
		Use:   "forward SITE/SERVICE [LOCAL] [SITE/SERVICE [LOCAL]]...",
		Short: "Offer services of sites on ports of this machine",
		Long: "Offer services of sites on ports of this machine, until Ctrl-C.\n\n" +
			"LOCAL is a port or HOST:PORT; without it, a free port of 127.0.0.1 is taken and printed. Several services may be named, each with or without LOCAL.\n\n" +
			"What goes over a connection is encrypted from here to the private relay: the public relay reads none of it. Connections that are open live on while this machine " +
			"sleeps, moves to another network or loses its own for a while. With --udp, services with datagrams (udp:// targets) are forwarded.",
		Example: "  tunnelctl forward office/db 5432\n" +
			"  tunnelctl forward office/db 5432 office/wiki 8080 lab/ssh\n" +
			"  tunnelctl forward --udp office/dns 5353",
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeServices(at, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := parseForwards(args)
			if err != nil {
				return err
			}
			c, err := r.open(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			c.OnLink = r.linked()
			return r.forward(cmd, list, udp)
		},
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&udp, "udp", false, "forward datagrams: the services have udp:// targets, and LOCAL are UDP ports")
	return cmd
}

// forwarding is a service and where it is to be offered.
type forwarding struct{ site, service, listen string }

func (f forwarding) String() string { return f.site + "/" + f.service }

// parseForwards reads SITE/SERVICE [LOCAL] as often as it comes.
func parseForwards(args []string) (list []forwarding, err error) {
	for i := 0; i < len(args); i++ {
		f := forwarding{listen: "127.0.0.1:0"}
		if f.site, f.service, err = splitService(args[i]); err != nil {
			return nil, err
		}
		if i+1 < len(args) && !strings.Contains(args[i+1], "/") {
			i++
			if f.listen, err = localAddress(args[i]); err != nil {
				return nil, err
			}
		}
		list = append(list, f)
	}
	return list, nil
}

func splitService(s string) (site, service string, err error) {
	site, service, ok := strings.Cut(s, "/")
	if !ok || site == "" || service == "" || strings.Contains(service, "/") {
		return "", "", daemon.UsageError(fmt.Sprintf("%q: want SITE/SERVICE; tunnelctl services lists them", s))
	}
	return site, service, nil
}

func localAddress(s string) (string, error) {
	if !strings.Contains(s, ":") {
		s = "127.0.0.1:" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", daemon.UsageError(fmt.Sprintf("LOCAL %q: want PORT or HOST:PORT", s))
	}
	if host == "" {
		host = "127.0.0.1" // every interface only when asked for, as 0.0.0.0
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return "", daemon.UsageError(fmt.Sprintf("LOCAL %q: %q is no port", s, port))
	}
	return net.JoinHostPort(host, port), nil
}

// linked tells a person when the way to a relay is lost, and when it is back.
func (r *reach) linked() func(site string, err error) {
	lost := make(map[string]bool)
	return func(site string, err error) { // on one loop
		r.onLink(site, err)
		over, isOver := errors.AsType[*operate.OverError](err)
		switch {
		case isOver:
			lost[site] = true
			r.errs.printf("%s: all connections have ended: %v", site, over)
		case err != nil:
			lost[site] = true
			r.errs.printf("%s: the way to the relay is lost: connections wait (%v)", site, err)
		case lost[site]:
			delete(lost, site)
			r.errs.printf("%s: the way to the relay is back", site)
		}
	}
}

// forward listens, and serves until ctx ends.
func (r *reach) forward(cmd *cobra.Command, list []forwarding, udp bool) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	network := "tcp"
	if udp {
		network = "udp"
	}
	var serve []func(context.Context) error
	defer func() {
		for range serve { // those that were not begun end with ctx
			cancel()
		}
	}()
	for _, f := range list {
		_, err := r.client.Check(ctx, f.site, f.service, network)
		if e, ok := errors.AsType[*operate.Error](err); ok && e.Code == relay.OperateAway {
			r.errs.printf("%v: %v", f, err) // it may come back
		} else if err != nil {
			return r.explain(f.String(), err)
		}
	}
	var lines []string
	for _, f := range list {
		w := &forwarder{reach: r, forwarding: f}
		if udp {
			pc, err := net.ListenPacket("udp", f.listen)
			if err != nil {
				return fmt.Errorf("%w: choose another LOCAL, or none for a free port", err)
			}
			defer pc.Close()
			serve = append(serve, func(ctx context.Context) error { return w.serveUDP(ctx, pc.(*net.UDPConn)) })
			lines = append(lines, fmt.Sprintf("%s/udp -> %v\n", pc.LocalAddr(), f))
			continue
		}
		ln, err := net.Listen("tcp", f.listen)
		if err != nil {
			return fmt.Errorf("%w: choose another LOCAL, or none for a free port", err)
		}
		defer ln.Close()
		serve = append(serve, func(ctx context.Context) error { return w.serve(ctx, ln) })
		lines = append(lines, fmt.Sprintf("%s -> %v\n", ln.Addr(), f))
	}
	for _, f := range list {
		if host, _, _ := net.SplitHostPort(f.listen); host != "localhost" && !net.ParseIP(host).IsLoopback() {
			r.errs.printf("%v: whoever reaches this machine at %s uses it as you, without a token", f, f.listen)
		}
	}
	for _, line := range lines { // when all of them can be had
		io.WriteString(cmd.OutOrStdout(), line)
	}
	ended := make(chan error, len(serve))
	for _, f := range serve {
		go func() { ended <- f(ctx) }()
	}
	var err error
	for range serve {
		if e := <-ended; e != nil && err == nil {
			err = e
			cancel()
		}
	}
	return err
}

// forwarder gives each connection to a local listener a stream to one service.
type forwarder struct {
	*reach
	forwarding
}

// serve accepts until ctx ends, which is no error, and returns when every connection is closed.
func (f *forwarder) serve(ctx context.Context, ln net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })() // of the ctx that is looked at below: those above it end earlier
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, say: others will be closed
			f.report(err)
			if !pause(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		}
		conns.Go(func() { f.carry(ctx, local{conn.(*net.TCPConn)}) })
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// carry serves one local connection to its end. A failure concerns this connection alone: the relay
// or the site may be back for the next one.
func (f *forwarder) carry(ctx context.Context, conn local) {
	defer conn.Close()
	stream, err := f.client.Open(ctx, f.site, f.service)
	if err != nil {
		if ctx.Err() == nil {
			f.report(err)
		}
		conn.Abort() // an orderly end would look like an empty answer
		return
	}
	defer stream.Close()
	err = splice(ctx, conn, stream)
	var here *net.OpError
	refused, _ := errors.AsType[*operate.Error](err)
	switch {
	case err == nil:
	case denied(ctx) != nil, refused != nil && (refused.Code == operate.CodeToken || refused.Code == relay.OperateForbidden):
		f.errs.printf("%v: the connection of %v was ended: the relay does not let you in any more", f, conn.RemoteAddr())
	case ctx.Err() != nil:
	case errors.As(err, &here): // no fault of the relay or the site
		f.errs.printf("%v: the program at %v has broken the connection off: %v", f, conn.RemoteAddr(), here.Err)
	default:
		f.report(err)
	}
}

func (f *forwarder) report(err error) {
	text := f.explain(f.String(), err).Error()
	if !strings.HasPrefix(text, f.String()) {
		text = f.String() + ": " + text
	}
	f.errs.printf("%s", text)
}

// serveUDP forwards datagrams until ctx ends. Each address that sends some has a flow of its own, as it would have at the service.
func (f *forwarder) serveUDP(ctx context.Context, pc *net.UDPConn) error {
	u := &udpForward{forwarder: f, pc: pc, flows: make(map[netip.AddrPort]*udpFlow)}
	defer u.over.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { pc.Close() })()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // of a datagram before, that nobody took
			if !pause(ctx, 10*time.Millisecond) {
				return nil
			}
			continue
		}
		u.send(ctx, from, buf[:n])
	}
}

// udpForward is the flows of one local port.
type udpForward struct {
	*forwarder
	pc   *net.UDPConn
	over sync.WaitGroup

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow
	full  bool // it was reported that there are too many
}

// udpFlow is the datagrams of one address.
type udpFlow struct {
	out chan []byte // to the site
}

// send passes a datagram on. When there is no room it is lost, as on any path.
func (u *udpForward) send(ctx context.Context, from netip.AddrPort, b []byte) {
	u.mu.Lock()
	flow := u.flows[from]
	if flow == nil {
		if len(u.flows) >= maxUDPFlows {
			if !u.full {
				u.full = true
				u.report(fmt.Errorf("more than %d addresses use it at a time: the others are not heard", maxUDPFlows))
			}
			u.mu.Unlock()
			return
		}
		flow = &udpFlow{out: make(chan []byte, udpWaiting)}
		u.flows[from] = flow
		u.over.Go(func() { u.carry(ctx, from, flow) })
	}
	u.mu.Unlock()
	select {
	case flow.out <- append([]byte(nil), b...):
	default:
	}
}

// carry serves one address until it is silent, or the flow ends.
func (u *udpForward) carry(ctx context.Context, from netip.AddrPort, flow *udpFlow) {
	defer func() {
		u.mu.Lock()
		delete(u.flows, from)
		u.full = false
		u.mu.Unlock()
	}()
	conn, err := u.client.OpenPacket(ctx, u.site, u.service)
	if err != nil {
		if ctx.Err() == nil {
			u.report(err)
			pause(ctx, time.Second) // before the next try
		}
		return
	}
	u.exchange(ctx, conn, from, flow)
}

// exchange carries datagrams both ways. A way to the relay that is lost for a while holds a Write up, and ctx ends that.
func (u *udpForward) exchange(ctx context.Context, conn duplex, from netip.AddrPort, flow *udpFlow) {
	defer context.AfterFunc(ctx, conn.Abort)()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(udpIdle, cancel)
	defer idle.Stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if ctx.Err() == nil && err != io.EOF {
					u.report(err)
				}
				return
			}
			idle.Reset(udpIdle)
			u.pc.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	defer func() {
		conn.Close()
		<-back
	}()
	for {
		select {
		case b := <-flow.out:
			idle.Reset(udpIdle)
			if _, err := conn.Write(b); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// splice copies both ways and returns when both directions have ended. If one fails, or ctx ends, it
// aborts both connections: neither side shall take a part for the whole.
func splice(ctx context.Context, a, b duplex) (err error) {
	abort := func() { a.Abort(); b.Abort() }
	defer context.AfterFunc(ctx, abort)()
	c := make(chan error, 2)
	go copyHalf(c, a, b)
	go copyHalf(c, b, a)
	for range 2 {
		if e := <-c; e != nil && err == nil {
			err = e
			abort() // which ends the other direction
		}
	}
	return err
}

// copyHalf copies one direction and passes its end on.
func copyHalf(c chan<- error, to, from duplex) {
	_, err := io.Copy(to, from)
	var copied *net.OpError
	if errors.As(err, &copied) && (copied.Op == "readfrom" || copied.Op == "writeto") { // what it wraps may be of the other side
		err = copied.Err
	}
	if err == nil {
		// The peer may have closed altogether after its last word: the data has arrived all the same.
		_ = to.CloseWrite()
	}
	c <- err
}

func connectCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	cmd := &cobra.Command{
		Use:   "connect SITE/SERVICE",
		Short: "Connect stdin and stdout to a site's service",
		Long: "Connect stdin and stdout to a site's service, encrypted from here to the private relay. With OpenSSH:\n\n" +
			"  ssh -o ProxyCommand='tunnelctl connect office/ssh' user@office",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeServices(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, stream, err := r.connect(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			return r.explain(args[0], connect(cmd.Context(), stream, cmd.InOrStdin(), cmd.OutOrStdout()))
		},
	}
	r.flags(cmd)
	return cmd
}

// connect copies until the service has finished. The end of in is passed on and ends nothing else;
// a read of in that blocks is left behind, the process ends anyway.
func connect(ctx context.Context, stream duplex, in io.Reader, out io.Writer) error {
	defer stream.Close()
	defer context.AfterFunc(ctx, stream.Abort)()
	go sendInput(stream, in)
	_, err := io.Copy(out, stream)
	if err != nil { // out takes no more, say: what is left of in does not get there
		stream.Abort()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func sendInput(stream duplex, in io.Reader) {
	if _, err := io.Copy(stream, in); err != nil && !errors.Is(err, os.ErrClosed) {
		stream.Abort() // the reader of the stream reports why
		return
	}
	_ = stream.CloseWrite()
}
