package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

// where holds the flags that say which relay is meant and how to prove that we may ask. A flag beats
// its environment variable.
type where struct {
	admin, relay, ca string
	context          string // of login
	tokenFile, state string
	env              func(string) string
	look             look // how the answer is printed
}

const defaultAdmin = "127.0.0.1:7070"

const defaultState = "/var/lib/culvert"

// said returns a client without a token for the relay that a flag or the environment says; its Base is nil if none does.
func (w *where) said() (*admin.Client, error) {
	c := &admin.Client{}
	relay := w.relay
	if relay == "" && w.admin == "" && w.context == "" && w.env("CULVERT_ADMIN") == "" {
		relay = w.env("CULVERT_RELAY")
	}
	var err error
	if ca := first(w.ca, w.env("CULVERT_CA")); ca != "" && (relay != "" || w.ca != "") {
		if c.TLS, err = trust(ca); err != nil {
			return nil, err
		}
	}
	switch where := first(w.admin, w.env("CULVERT_ADMIN")); {
	case w.relay != "" && w.admin != "":
		return nil, daemon.UsageError("--admin and --relay exclude each other")
	case w.context != "" && (w.relay != "" || w.admin != ""):
		return nil, daemon.UsageError("--context says which relay: leave --relay and --admin out")
	case relay != "":
		c.Base, err = relayURL(relay)
	case where != "" && w.context == "":
		c.Base, err = adminURL(where)
	}
	return c, err
}

// client returns a client of the relay: the one that a flag or the environment says, or else the one that somebody has
// logged in to last, or else the one on this machine. The token is that of a file that is named, or of the login, or else the
// relay's own.
func (w *where) client() (*admin.Client, error) {
	c, err := w.said()
	if err != nil {
		return nil, err
	}
	logins, err := w.readSaved()
	if err != nil {
		return nil, err
	}
	var login *savedRelay
	isHere := false // for want of a better one
	switch name := first(w.context, w.env("CULVERT_CONTEXT")); {
	case c.Base != nil && w.state == defaultState:
		login = logins.at(c.Base)
	case c.Base != nil || w.state != defaultState: // this relay's own folder
	case name != "":
		if login, err = logins.named(name); err != nil {
			return nil, err
		}
	default:
		login = logins.find(logins.Current)
	}
	if login != nil {
		if err := login.use(c); err != nil {
			return nil, err
		}
	} else if c.Base == nil {
		isHere = w.state == defaultState
		if c.Base, err = adminURL(defaultAdmin); err != nil {
			return nil, err
		}
	}
	file := first(w.tokenFile, w.env("CULVERT_TOKEN_FILE"))
	if file != "" || login == nil {
		c.Token, err = readToken(first(file, filepath.Join(w.state, "admin.token")), c.Base)
	}
	if err != nil && file == "" && isHere {
		err = w.notLoggedIn(logins, err)
	}
	return c, err
}

// notLoggedIn says what to do where nothing says which relay is meant, and err is why it is not the one on this machine.
func (w *where) notLoggedIn(logins *saved, err error) error {
	switch names := logins.names(); {
	case names != nil:
		return failf(exitDenied, "no relay is chosen: `tunnelctl context use NAME` takes one that you are logged in to (%s), `tunnelctl login` another one; on a relay's own machine --state says where its admin.token is", strings.Join(names, ", "))
	case errors.Is(err, os.ErrNotExist):
		return failf(exitDenied, "you are not logged in: `tunnelctl login --relay https://DOMAIN` asks for a token for a relay and keeps it; on the relay's own machine --state says where its admin.token is (there is none in %s)", w.state)
	}
	return err
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// adminURL accepts HOST:PORT and http://HOST:PORT of this machine: the token would cross any
// network in the clear.
func adminURL(s string) (*url.URL, error) {
	hostport := strings.TrimSuffix(strings.TrimPrefix(s, "http://"), "/")
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, daemon.UsageError(fmt.Sprintf("--admin %q: want HOST:PORT", s))
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, daemon.UsageError(fmt.Sprintf("--admin %q: the token would travel in the clear; from another machine use --relay https://DOMAIN, or ssh -L 7070:%s RELAY", s, defaultAdmin))
	}
	return &url.URL{Scheme: "http", Host: hostport}, nil
}

// relayURL accepts https://HOST[:PORT] and HOST[:PORT].
func relayURL(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, daemon.UsageError(fmt.Sprintf("--relay %q: want https://DOMAIN or https://DOMAIN:PORT", s))
	}
	return &url.URL{Scheme: "https", Host: u.Host}, nil
}

func trust(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	return trustPEM(pem, file)
}

// trustPEM trusts the authorities of a PEM text, which comes from somewhere.
func trustPEM(pem []byte, from string) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA: %s holds no PEM certificate", from)
	}
	return &tls.Config{RootCAs: pool}, nil
}

func readToken(file string, of *url.URL) (string, error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		text := fmt.Sprintf("no token file %s: `tunnelctl login` asks for a token for %s and keeps it; the relay's own is in admin.token in its state folder: say where with --state, --token-file or CULVERT_TOKEN_FILE", file, of.Host)
		return "", &failure{code: exitDenied, text: text, cause: err}
	case errors.Is(err, os.ErrPermission):
		return "", failf(exitDenied, "token file %s is not readable for you: `tunnelctl login` keeps a token of your own, which an admin makes with `tunnelctl operator add`; or try sudo", file)
	case err != nil:
		return "", fmt.Errorf("token file: %w", err)
	}
	t := strings.TrimSpace(string(b))
	if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", failf(exitDenied, "token file %s does not hold a token", file)
	}
	return t, nil
}

// explain adds what to do next to an error of a client.
func explain(c *admin.Client, err error) error {
	var (
		refused   *admin.Error
		foreign   *admin.ForeignError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		noTLS     tls.RecordHeaderError
		dns       *net.DNSError
	)
	remote := c.Base.Scheme == "https"
	switch {
	case err == nil:
		return nil
	case errors.As(err, &foreign) && remote:
		return failf(exitUnreachable, "%s serves no admin API on its domain (forward and connect alone work there): put domain = true into [operators] of its public.toml, run this on the relay's machine, or go through ssh -L 7070:%s", c.Base.Host, defaultAdmin)
	case errors.As(err, &foreign):
		return failf(exitUnreachable, "%w: is --admin what the relay's log line msg=ready says, and is the relay as new as tunnelctl?", err)
	case errors.As(err, &refused) && refused.Code == http.StatusUnauthorized:
		return failf(exitDenied, "%s does not accept the token: it is another relay's, has expired or was revoked; `tunnelctl login` asks for another one, and --state or --token-file say where the relay's own is", c.Base.Host)
	case errors.Is(err, syscall.ECONNREFUSED) && !remote:
		return failf(exitUnreachable, "nothing listens on %s: is relay-public running here? Its log line msg=ready names the admin address (give it with --admin); from another machine use --relay https://DOMAIN", c.Base.Host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return failf(exitUnreachable, "nothing listens on %s: is --relay the URL of the relay's own domain, with its port unless that is 443, and does relay-public run?", c.Base.Host)
	case errors.As(err, &dns):
		return failf(exitUnreachable, "%w: is --relay the relay's own domain?", dns)
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch), remote && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)):
		return failf(exitUnreachable, "%s does not speak TLS, or has ended the connection (%w): is --relay the URL of the relay's https listener?", c.Base.Host, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return failf(exitUnreachable, "%s has ended the connection (%w): is --admin what the relay's log line msg=ready says?", c.Base.Host, err)
	case strings.Contains(err.Error(), "malformed HTTP"): // net/http has no type for it
		return failf(exitUnreachable, "%s does not speak HTTP: is --admin what the relay's log line msg=ready says? Its https listener is for --relay https://DOMAIN", c.Base.Host)
	case errors.As(err, &authority):
		return fmt.Errorf("%s has a certificate of an authority unknown here: give a private CA with --ca FILE", c.Base.Host)
	case errors.As(err, &hostname):
		return fmt.Errorf("%s: %w: use the relay's own domain", c.Base.Host, hostname)
	case errors.Is(err, context.DeadlineExceeded):
		return failf(exitUnreachable, "no answer from %s in time: does a firewall drop packets to it?", c.Base.Host)
	}
	return err
}

// view is where a command prints, and how the flags say.
func (w *where) view(cmd *cobra.Command) *view { return w.look.view(cmd, w.env) }
