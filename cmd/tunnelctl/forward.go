package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
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

// remote is a stream to a service whose reads say why they can have failed.
type remote struct{ duplex }

var errBroken = errors.New("broken off: its target cannot be reached or has reset it, or a relay was stopped; the private relay's log says more")

func (r remote) Read(p []byte) (int, error) {
	n, err := r.duplex.Read(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF) { // without TLS, and with it
		err = errBroken
	}
	return n, err
}

func forwardCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "forward SITE/SERVICE [LOCAL]",
		Short: "Offer a site's service on a port of this machine",
		Long: "Offer a site's service on a port of this machine, until Ctrl-C.\n\n" +
			"LOCAL is a port or HOST:PORT; without it, a free port of 127.0.0.1 is taken and printed.",
		Args:              usage(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeServices(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, service, err := splitService(args[0])
			if err != nil {
				return err
			}
			listen := "127.0.0.1:0"
			if len(args) == 2 {
				if listen, err = localAddress(args[1]); err != nil {
					return err
				}
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("%w: choose another LOCAL, or none for a free port", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s -> %s/%s\n", ln.Addr(), site, service)
			f := &forwarder{client: c, site: site, service: service, errs: cmd.ErrOrStderr()}
			return f.serve(cmd.Context(), ln)
		},
	}
}

// explainForward adds what to do next to a refusal of a stream.
func explainForward(c *admin.Client, err error, site, service string) error {
	var refused *admin.Error
	if errors.As(err, &refused) {
		switch refused.Code {
		case http.StatusNotFound:
			return failf(exitNotFound, "the relay knows no service %s/%s: tunnelctl services lists them", site, service)
		case http.StatusServiceUnavailable:
			return fmt.Errorf("%s/%s: %w tunnelctl sites shows its state", site, service, err)
		}
	}
	return explain(c, err)
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

// forwarder gives each connection to a local listener a stream to one service.
type forwarder struct {
	client        *admin.Client
	site, service string

	mu   sync.Mutex
	errs io.Writer // guarded by mu
}

// serve accepts until ctx ends, which is no error, and returns when every connection is closed.
func (f *forwarder) serve(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
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
	stream, err := f.client.Forward(ctx, f.site, f.service)
	if err != nil {
		if ctx.Err() == nil {
			f.report(explainForward(f.client, err, f.site, f.service))
		}
		conn.Abort() // an orderly end would look like an empty answer
		return
	}
	defer stream.Close()
	err = splice(ctx, conn, remote{stream})
	if errors.Is(err, errBroken) {
		err = errBroken // without the local address
	}
	if err != nil && ctx.Err() == nil {
		f.report(err)
	}
}

func (f *forwarder) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(f.errs, "%s %s/%s: %s\n", time.Now().Format(time.TimeOnly), f.site, f.service, printable(err.Error()))
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
	if err == nil {
		// The peer may have closed altogether after its last word: the data has arrived all the same.
		_ = to.CloseWrite()
	}
	c <- err
}

func connectCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "connect SITE/SERVICE",
		Short: "Connect stdin and stdout to a site's service",
		Long: "Connect stdin and stdout to a site's service. With OpenSSH:\n\n" +
			"  ssh -o ProxyCommand='tunnelctl connect office/ssh-jump' user@office",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeServices(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, service, err := splitService(args[0])
			if err != nil {
				return err
			}
			c, err := at.client()
			if err != nil {
				return err
			}
			stream, err := c.Forward(cmd.Context(), site, service)
			if err != nil {
				return explainForward(c, err, site, service)
			}
			err = connect(cmd.Context(), remote{stream}, cmd.InOrStdin(), cmd.OutOrStdout())
			if errors.Is(err, errBroken) {
				return fmt.Errorf("%s: %w", args[0], errBroken)
			}
			return err
		},
	}
}

// connect copies until the service has finished. The end of in is passed on and ends nothing else;
// a read of in that blocks is left behind, the process ends anyway.
func connect(ctx context.Context, stream duplex, in io.Reader, out io.Writer) error {
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	go sendInput(stream, in)
	_, err := io.Copy(out, stream)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func sendInput(stream duplex, in io.Reader) {
	if _, err := io.Copy(stream, in); err != nil {
		stream.Close() // the reader of the stream reports why
		return
	}
	_ = stream.CloseWrite()
}
