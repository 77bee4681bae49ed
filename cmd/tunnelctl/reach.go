package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/operate"
	"culvert.dev/pkg/relay"
)

// reach is what the commands have in common that open connections to services of a site: they are encrypted from here to the
// private relay, whose key has to be one that is known.
type reach struct {
	at       *where
	siteKeys []string
	keyFile  string

	client *operate.Client
	asked  *admin.Client // for explain
	errs   *notes
	end    context.CancelCauseFunc // of the command
}

// denial is the cause of the end of a command's context when the relay does not let its operator in any more.
type denial struct{ error }

// denied returns what the command has to end with because of that, nil if it may go on.
func denied(ctx context.Context) error {
	if d, ok := errors.AsType[denial](context.Cause(ctx)); ok {
		return d.error
	}
	return nil
}

// flags are those of such a command, which is complete but for them. Its context ends when the relay does not let the operator in
// any more, and then it ends with that.
func (r *reach) flags(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithCancelCause(cmd.Context())
		defer cancel(nil)
		r.end = cancel
		cmd.SetContext(ctx)
		err := run(cmd, args)
		return cmp.Or(denied(ctx), err)
	}
	cmd.Flags().StringArrayVar(&r.siteKeys, "site-key", nil, "the site's `KEY` (ed25519:...), as relay-private says it: it is remembered in the place of what is known; several times for several private relays")
	cmd.Flags().StringVar(&r.keyFile, "operator-key", "", "`file` with your own key, for sites that want one (default operator.key in the folder of tunnelctl's files, if it is there)")
}

// open makes the client. The caller closes it.
func (r *reach) open(cmd *cobra.Command) (*operate.Client, error) {
	folder, err := r.at.configFolder()
	if err != nil {
		return nil, err
	}
	for _, key := range r.siteKeys {
		if _, err := auth.ParsePublicKey(key); err != nil {
			return nil, daemon.UsageError(fmt.Sprintf("--site-key %q: %v: `relay-private key` prints it at the site", key, err))
		}
	}
	key, err := r.ownKey(folder)
	if err != nil {
		return nil, err
	}
	if r.asked, err = r.at.client(); err != nil {
		return nil, err
	}
	r.errs = &notes{out: cmd.ErrOrStderr()}
	c := &operate.Client{
		Address: r.asked.Base.Host, Plain: r.asked.Base.Scheme == "http", Token: r.asked.Token, Key: key, Software: "tunnelctl " + version,
	}
	if r.asked.Base.Port() == "" {
		c.Address = net.JoinHostPort(r.asked.Base.Hostname(), "443")
	}
	if r.asked.TLS != nil {
		c.RootCAs = r.asked.TLS.RootCAs
	}
	known := &operate.KnownSites{
		File: filepath.Join(folder, "known_sites"), Relay: c.Address, Accept: r.siteKeys,
		OnNew: func(site string, keys []string) {
			r.errs.printf("site %s is new here: its keys, as the public relay says, are %s. Compare them with what `relay-private key` prints at the site; they are remembered in %s",
				site, strings.Join(keys, " and "), filepath.Join(folder, "known_sites"))
		},
		OnForget: func(site string, keys []string) {
			r.errs.printf("site %s: %s is forgotten, as --site-key names another key. If that was a stand-by's, name both", site, strings.Join(keys, " and "))
		},
	}
	c.Trust = known.Trust
	c.OnLink = r.onLink
	r.client = c
	return c, nil
}

// connect opens a connection to SITE/SERVICE, with a client of its own. The caller closes both.
func (r *reach) connect(cmd *cobra.Command, to string) (*operate.Client, operate.Conn, error) {
	site, service, err := splitService(to)
	if err != nil {
		return nil, nil, err
	}
	c, err := r.open(cmd)
	if err != nil {
		return nil, nil, err
	}
	conn, err := c.Open(cmd.Context(), site, service)
	if err != nil {
		c.Close()
		return nil, nil, r.explain(to, err)
	}
	return c, conn, nil
}

// ownKey reads the operator's key: nil if there is none.
func (r *reach) ownKey(folder string) (ed25519.PrivateKey, error) {
	file := r.keyFile
	if file == "" {
		file = filepath.Join(folder, operatorKeyFile)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	return auth.ReadKey(file)
}

// onLink is told of the way to the relay.
func (r *reach) onLink(site string, err error) {
	over, ok := errors.AsType[*operate.OverError](err)
	if !ok {
		return
	}
	if e, ok := errors.AsType[*operate.Error](over); ok && e.Code == relay.OperateForbidden {
		r.end(denial{r.explain(site, e)})
	}
	r.explain(site, over)
}

// explain says what to do about an error. If the relay does not take the token, the command ends.
func (r *reach) explain(what string, err error) error {
	var refused *operate.Error
	var wrong *operate.KeyError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		return failf(exitDenied, "%w", err)
	case !errors.As(err, &refused):
		return explain(r.asked, err)
	}
	switch refused.Code {
	case operate.CodeToken:
		err := explain(r.asked, &admin.Error{Code: 401, Text: refused.Text})
		r.end(denial{err})
		return err
	case operate.CodeNoRelay:
		return failf(exitUnreachable, "%s: %w: is it the relay's own domain, or its admin address?", r.asked.Base.Host, err)
	case operate.CodeNoSite:
		return failf(exitNotFound, "%w (tunnelctl sites lists what there is)", err)
	case relay.OperateForbidden:
		return failf(exitDenied, "%s: %w", what, err)
	case relay.OperateNotFound:
		return failf(exitNotFound, "%s: %w (tunnelctl services lists what there is)", what, err)
	case relay.OperateNetwork:
		return failf(daemon.ExitUsage, "%s: %w", what, err)
	case relay.OperateAway:
		return failf(exitUnreachable, "%s: %w (tunnelctl sites shows its state)", what, err)
	case relay.OperateInternal:
		return failf(daemon.ExitFailed, "%s: %w", what, err)
	}
	return failf(exitUnreachable, "%s: %w", what, err)
}

// notes go to stderr, from several goroutines.
type notes struct {
	mu  sync.Mutex
	out io.Writer // guarded by mu
}

func (n *notes) printf(format string, values ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(n.out, "%s %s\n", time.Now().Format(time.TimeOnly), printable(fmt.Sprintf(format, values...)))
}

// operatorKeyFile is the name of the file with the operator's own key.
const operatorKeyFile = "operator.key"

// operatorKeyCommand prints the operator's own key.
func operatorKeyCommand(at *where) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print your public key, for sites that want to know you themselves",
		Long: "Print your public key, and make the key if there is none: in operator.key in the folder of tunnelctl's files, readable by you alone.\n\n" +
			"A site whose private.toml has operators = [\"ed25519:...\"] lets in only those whose keys are there, whatever the public relay says. " +
			"It is the site that checks, so somebody who has broken into the public relay does not get in.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				folder, err := at.configFolder()
				if err != nil {
					return err
				}
				if err := os.MkdirAll(folder, 0o700); err != nil {
					return err
				}
				file = filepath.Join(folder, operatorKeyFile)
			}
			v := at.view(cmd)
			var pub ed25519.PublicKey
			key, err := auth.ReadKey(file)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				if pub, err = auth.GenerateKey(file); err != nil {
					return err
				}
				v.note("made the key %s", file)
			case err != nil:
				return err
			default:
				pub = key.Public().(ed25519.PublicKey)
			}
			text := auth.FormatPublicKey(pub)
			return v.print(map[string]string{"key": text, "file": file}, func() { v.printf("%s\n", text) })
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "the key's `file`")
	return cmd
}
