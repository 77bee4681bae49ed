package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/operate"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/socks"
)

// socksPort is where programs look for a SOCKS proxy by themselves.
const socksPort = "127.0.0.1:1080"

func socksCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	loginFile, anywhere := "", false
	cmd := &cobra.Command{
		Use:   "socks SITE [LOCAL]",
		Short: "Offer a SOCKS 5 proxy on this machine that leads into a site",
		Long: "Offer a SOCKS 5 proxy on this machine, until Ctrl-C: what goes through it leaves at the site, as far as [socks] allow of its private.toml lets it.\n\n" +
			"LOCAL is a port or HOST:PORT; without it, " + socksPort + " is taken. Names are looked up at the site: programs have to hand them on, which is what curl calls --socks5-hostname " +
			"(or socks5h://) and browsers \"proxy DNS\". TCP goes through, and UDP for programs that ask for it (UDP ASSOCIATE).\n\n" +
			"Whoever reaches LOCAL is in the site's network with your rights: other users of this machine, too. A login keeps them out (--login-file), and without one LOCAL has to be on the loopback interface.\n\n" +
			"As with forward, the public relay reads none of it, and connections live on while this machine sleeps or moves to another network.",
		Example: "  tunnelctl socks office\n" +
			"  curl --socks5-hostname 127.0.0.1:1080 https://wiki.corp.example/\n" +
			"  tunnelctl socks office 127.0.0.1:9050 --login-file login.txt      # USER:PASSWORD in the file",
		Args:              usage(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			listen := socksPort
			var err error
			if len(args) == 2 {
				if listen, err = localAddress(args[1]); err != nil {
					return err
				}
			}
			login, err := readLogin(loginFile)
			if err != nil {
				return err
			}
			if login == nil && !anywhere && !isLoopback(listen) {
				return daemon.UsageError(fmt.Sprintf("%s can be reached from elsewhere, and whoever does is in the site's network: give it a login with --login-file, or say --anywhere", listen))
			}
			c, err := r.open(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			c.OnLink = r.linked()
			return r.socks(cmd, args[0], listen, login)
		},
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&loginFile, "login-file", "", "`file` with USER:PASSWORD that programs have to log in with")
	cmd.Flags().BoolVar(&anywhere, "anywhere", false, "let LOCAL be an address that other machines reach, without a login")
	return cmd
}

// isLoopback reports whether host:port is reached from this machine alone.
func isLoopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// readLogin reads USER:PASSWORD; nil without a file.
func readLogin(file string) (func(user, password string) bool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	b = bytes.TrimRight(b, "\r\n")
	user, password, ok := bytes.Cut(b, []byte(":"))
	if !ok || len(user) == 0 || len(password) == 0 || len(user) > 255 || len(password) > 255 || bytes.ContainsAny(b, "\r\n") {
		return nil, daemon.UsageError(fmt.Sprintf("%s: want one line, USER:PASSWORD", file))
	}
	want := sha256.Sum256(b)
	return func(user, password string) bool {
		got := sha256.Sum256([]byte(user + ":" + password))
		return subtle.ConstantTimeCompare(got[:], want[:]) == 1
	}, nil
}

// socks serves until ctx ends.
func (r *reach) socks(cmd *cobra.Command, site, listen string, login func(user, password string) bool) error {
	ctx := cmd.Context()
	// A site that is not there, or not for us, is told now and not at the first connection.
	_, err := r.client.Check(ctx, site, relay.ServicePing, "tcp")
	if e, ok := errors.AsType[*operate.Error](err); ok && e.Code == relay.OperateAway {
		r.errs.printf("%s: %v", site, err) // it may come back
	} else if err != nil {
		return r.explain(site, err)
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("%w: choose another LOCAL, such as 0 for a free port", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s -> %s (SOCKS 5)\n", ln.Addr(), site)
	s := &socks.Server{
		Dial: func(ctx context.Context, network, address string) (socks.Conn, error) {
			return r.client.Dial(ctx, site, network, address)
		},
		Login: login,
		Reply: socksReply,
		OnError: func(_ netip.AddrPort, address string, err error) {
			what := site
			if address != "" {
				what += ", " + address
			}
			r.errs.printf("%v", r.explain(what, err))
		},
	}
	return s.Serve(ctx, ln)
}

// socksReply is how SOCKS puts what operators are told.
func socksReply(err error) socks.Reply {
	e, ok := errors.AsType[*operate.Error](err)
	if !ok {
		return socks.Failed
	}
	switch e.Code {
	case relay.OperateForbidden, operate.CodeToken:
		return socks.NotAllowed
	case relay.OperateAway, operate.CodeNoSite:
		return socks.NetworkUnreachable
	case relay.OperateUnreachable, relay.OperateNotFound:
		return socks.HostUnreachable
	case relay.OperateRefused:
		return socks.Refused
	case relay.OperateTimeout:
		return socks.Expired
	}
	return socks.Failed
}
