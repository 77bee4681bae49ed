package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
)

func exposeCommand(at *where) *cobra.Command {
	var e exposer
	cmd := &cobra.Command{
		Use:   "expose LOCAL [--publish URL]",
		Short: "Publish a server of this machine for a while",
		Long: "Publish a server of this machine under a URL of the relay, until Ctrl-C. Nobody needs to set up a site: this\n" +
			"program is one while it runs, and the relay forgets it a minute later.\n\n" +
			"LOCAL is a port of this machine, HOST:PORT, a URL (http://, https://, tcp://, udp://, rtsp://), or a folder, which\n" +
			"is then served. URL is what a site may publish: https://demo.example.com, tcp://:16000. Without it the relay chooses\n" +
			"a name. What operators may publish is in [operators] expose of the relay's public.toml.",
		Example: "  tunnelctl expose 8080 --publish https://demo.try.example.com\n" +
			"  tunnelctl expose ./site\n" +
			"  tunnelctl expose 22 --publish tcp://:16022",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if e.target, err = exposedTarget(args[0], e.publish); err != nil {
				return err
			}
			if e.client, err = at.client(); err != nil {
				return err
			}
			if ca := first(at.ca, at.env("CULVERT_CA")); ca != "" {
				c, err := trust(ca)
				if err != nil {
					return err
				}
				e.roots = c.RootCAs
			}
			e.out, e.errs = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return e.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&e.publish, "publish", "", "the `URL` that visitors come to; empty: the relay chooses one")
	return cmd
}

// exposedTarget is what LOCAL stands for, if it is to be published as publish.
func exposedTarget(local, publish string) (relay.Target, error) {
	scheme := "http"
	if p, _, ok := strings.Cut(publish, "://"); ok && (p == "tcp" || p == "udp" || p == "tls") {
		scheme = map[string]string{"tcp": "tcp", "udp": "udp", "tls": "tcp"}[p]
	}
	full := local
	switch host, port, err := net.SplitHostPort(local); {
	case strings.Contains(local, "://"):
	case isPort(local):
		full = scheme + "://127.0.0.1:" + local
	case err == nil && isPort(port):
		if host == "" {
			host = "127.0.0.1"
		}
		full = scheme + "://" + net.JoinHostPort(host, port)
	case strings.ContainsAny(local, "/\\.") || filepath.IsAbs(local):
		dir, err := filepath.Abs(local)
		if err != nil {
			return relay.Target{}, err
		}
		full = (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String()
	default:
		return relay.Target{}, daemon.UsageError(fmt.Sprintf("LOCAL %q: want PORT, HOST:PORT, a URL such as http://127.0.0.1:8080, or a folder such as ./%[1]s", local))
	}
	t, err := relay.ParseTarget(full)
	if err != nil {
		return relay.Target{}, daemon.UsageError(fmt.Sprintf("LOCAL: %v", err))
	}
	if t.HasSecret() {
		return relay.Target{}, daemon.UsageError("LOCAL: everybody on this machine sees the password of a command line: write a private.toml for this service")
	}
	return t, nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// exposedService is the name of the only service of such a site.
const exposedService = "exposed"

// exposer is one run of `tunnelctl expose`.
type exposer struct {
	publish string
	target  relay.Target
	roots   *x509.CertPool // of --ca; nil: the relay tells its own authority, or the system's are good
	client  *admin.Client
	out     io.Writer
	errs    io.Writer

	key   ed25519.PrivateKey
	site  string
	shown string // the addresses that were printed last
}

// run is a site until ctx ends, as often as the relay forgets that.
func (e *exposer) run(ctx context.Context) (err error) {
	if _, e.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		return err
	}
	defer core.Close()
	for {
		began := time.Now()
		in := admin.Expose{Key: auth.FormatPublicKey(e.key.Public().(ed25519.PublicKey)), Name: e.site}
		if e.publish != "" {
			in.Publish = []string{e.publish}
		}
		made, err := e.client.Expose(ctx, in)
		if err != nil {
			err = explain(e.client, err)
			if e.site == "" || exitCode(err) != exitUnreachable || ctx.Err() != nil {
				return err
			}
			// It was there before: the relay restarts.
			e.report("%v: trying again", err)
		} else {
			e.site, e.publish = made.Site, made.Publish[0]
			err = e.serve(ctx, core, made)
			var refused *relay.Refusal
			if !errors.As(err, &refused) || refused.Code != relay.RefuseUnknownSite {
				return err
			}
			e.report("the relay does not know the site any more: asking for it again")
		}
		if !pause(ctx, max(0, time.Second-time.Since(began))) {
			return nil
		}
	}
}

// serve is the site, as the relay has made it, until ctx ends or the relay refuses it.
func (e *exposer) serve(ctx context.Context, core *evloop.Core, made *admin.Exposed) error {
	publish, err := relay.ParsePublish(e.publish)
	if err != nil {
		return fmt.Errorf("the relay has chosen %q: %w", e.publish, err)
	}
	service := private.Service{Service: relay.Service{Name: exposedService, Publish: publish, Target: e.target}}
	if err := service.Validate(); err != nil {
		return daemon.UsageError(err.Error())
	}
	roots := e.roots
	if roots == nil && made.CA != "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(made.CA))
	}
	machine := make([]byte, 16)
	rand.Read(machine)
	refusedc := make(chan string, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &private.Relay{
		Core: core, Relays: []string{made.Relay}, Site: made.Site, Key: e.key, RootCAs: roots,
		Transport: private.TransportAuto, Links: 2, Machine: hex.EncodeToString(machine),
		Services: []private.Service{service}, Software: "tunnelctl " + version,
		Log: slog.New(slog.NewTextHandler(e.errs, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Announced: func(_, _ string, addresses []string, problem string) {
			if problem == "" {
				e.up(addresses)
				return
			}
			select {
			case refusedc <- problem:
				cancel()
			default:
			}
		},
	}
	err = r.Run(ctx)
	select {
	case why := <-refusedc:
		return failf(daemon.ExitFailed, "%s cannot be published: %s: take another one with --publish", e.publish, why)
	default:
	}
	return err
}

// up tells where the service is. It is called on the loop.
func (e *exposer) up(addresses []string) {
	if len(addresses) == 0 {
		addresses = []string{e.publish}
	}
	if text := strings.Join(addresses, " "); text != e.shown {
		e.shown = text
		fmt.Fprintf(e.out, "%s -> %s\n", printable(text), e.target)
	}
}

func (e *exposer) report(format string, values ...any) {
	fmt.Fprintf(e.errs, "%s %s\n", time.Now().Format(time.TimeOnly), printable(fmt.Sprintf(format, values...)))
}
