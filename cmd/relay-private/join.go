package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/site"
)

// joinTimeout bounds all of the conversation with the public relay.
const joinTimeout = 30 * time.Second

// joinOptions are the argument and the flags of join.
type joinOptions struct {
	token     string
	tokenFile string // "-": standard input
	dir       string
	ca        string // PEM file, for a relay whose private CA the token does not know
}

// secret returns the token, from wherever it was given.
func (o joinOptions) secret(stdin io.Reader) (auth.Token, error) {
	text := o.token
	switch {
	case o.token != "" && o.tokenFile != "":
		return auth.Token{}, daemon.UsageError("the token is given twice: as an argument and with --token-file")
	case o.tokenFile == "-":
		b, err := io.ReadAll(io.LimitReader(stdin, 4096))
		if err != nil {
			return auth.Token{}, err
		}
		text = string(b)
	case o.tokenFile != "":
		b, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return auth.Token{}, daemon.UsageError(err.Error())
		}
		text = string(b)
	case o.token == "":
		text = os.Getenv("CULVERT_TOKEN")
	}
	if text == "" {
		return auth.Token{}, daemon.UsageError("no token: give it as the argument, in CULVERT_TOKEN, or with --token-file; `tunnelctl site add` on the public relay makes one")
	}
	token, err := auth.ParseToken(text)
	if err != nil {
		return auth.Token{}, daemon.UsageError(err.Error())
	}
	return token, nil
}

// join makes the key, registers it with the token's relay, and writes the configuration. When it fails, it
// leaves nothing behind.
func join(ctx context.Context, o joinOptions, stdin io.Reader, stdout io.Writer) (err error) {
	token, err := o.secret(stdin)
	if err != nil {
		return err
	}
	config := filepath.Join(o.dir, "private.toml")
	key := filepath.Join(o.dir, token.Site+".key")
	ca := filepath.Join(o.dir, "ca.pem")
	for _, name := range []string{config, key, ca} {
		if _, err := os.Lstat(name); err == nil {
			return fmt.Errorf("%s exists already: nothing is overwritten; choose another --dir, or remove it if this site is to join anew", name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := relay.CheckName(token.Site); err != nil {
		return fmt.Errorf("token: site %w", err)
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	public, err := auth.GenerateKey(key)
	if err != nil {
		return err
	}
	var made []string
	made = append(made, key)
	defer func() {
		if err != nil {
			for _, name := range made {
				os.Remove(name)
			}
		}
	}()
	tlsConfig, pinned, err := o.tls(token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	way, err := newOutbound([]string{token.Relay}, environmentProxy)
	if err != nil {
		return daemon.UsageError(err.Error())
	}
	answer, err := site.Redeem(ctx, token, auth.FormatPublicKey(public), "culvert "+version, tlsConfig, way.dialer())
	if err != nil {
		return fmt.Errorf("%w%s", err, hint(err, token))
	}
	authority := pinned()
	if authority != nil {
		made = append(made, ca)
		if err := writeNew(ca, authority, 0o644); err != nil {
			return err
		}
	}
	made = append(made, config) // targets may have passwords
	if err := writeNew(config, newConfig(token, answer, authority != nil, way.proxies[token.Relay]), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(stdout, `%s has joined %s as site %q, which may publish %s
next: add a service to %s, then run
  relay-private --config %[5]s
`, public8(public), token.Relay, answer.Site, strings.Join(answer.Publish, ", "), config)
	return nil
}

// public8 is the beginning of a public key, enough to compare it with what the relay shows.
func public8(key []byte) string { return auth.FormatPublicKey(key)[:len("ed25519:")+8] + "…" }

// tls returns how to verify the relay, and a func that returns what private.toml needs to do so, or nil.
func (o joinOptions) tls(token auth.Token) (_ *tls.Config, authority func() []byte, err error) {
	host, _, err := net.SplitHostPort(token.Relay)
	if err != nil {
		return nil, nil, fmt.Errorf("token: relay: %w", err)
	}
	if o.ca != "" {
		pem, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, nil, daemon.UsageError(err.Error())
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, nil, daemon.UsageError(o.ca + " holds no PEM certificate")
		}
		return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: roots}, func() []byte { return pem }, nil
	}
	if token.Pin != nil {
		c, authority := auth.PinnedTLS(token.Pin, host)
		return c, authority, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}, func() []byte { return nil }, nil
}

// hint says what to look at when the relay was not reached.
func hint(err error, token auth.Token) string {
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) && token.Pin == nil {
		return ": if the relay has a private CA, name it with --ca"
	}
	return ""
}

// newConfig is the text of private.toml.
func newConfig(token auth.Token, answer relay.JoinResponse, hasCA bool, proxy *url.URL) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "relay = %q\nsite  = %q\nkey   = %q\n", strings.TrimSuffix(token.Relay, ":443"), answer.Site, token.Site+".key")
	if hasCA {
		fmt.Fprintf(&b, "ca    = \"ca.pem\"                       # who vouches for the relay's certificate\n")
	}
	if proxy != nil {
		fmt.Fprintf(&b, "# proxy = %q   # the environment named it when the site joined; a service may have another one\n", shown(proxy))
	}
	fmt.Fprintf(&b, "\n# This site may publish: %s\n# A service is two URLs: where visitors come in, and where they end up. For example:\n#\n", strings.Join(answer.Publish, ", "))
	fmt.Fprintf(&b, "#   [[service]]\n#   name    = \"app\"\n#   publish = %q\n#   target  = %q\n", example(answer.Publish), exampleTarget(answer.Publish))
	return b.Bytes()
}

// example is a publish URL that the patterns allow.
func example(patterns []string) string {
	for _, text := range patterns {
		p, err := relay.ParsePattern(text)
		if err != nil {
			continue
		}
		made := relay.Publish{Scheme: p.Scheme, Host: p.Host, Path: p.Path, Port: p.MinPort}
		if rest, ok := strings.CutPrefix(p.Host, "*."); ok {
			made.Host = "app." + rest
		}
		if p.Allows(made) {
			return made.String()
		}
	}
	return "https://app.example.com"
}

func exampleTarget(patterns []string) string {
	scheme, _, _ := strings.Cut(example(patterns), ":")
	switch scheme {
	case "tcp", "tls":
		return "tcp://127.0.0.1:5432"
	case "udp":
		return "udp://127.0.0.1:514"
	case "tftp":
		return "file:///srv/tftp"
	case "rtsp", "rtsps":
		return "rtsp://USER:PASSWORD@192.168.0.20/stream"
	}
	return "http://127.0.0.1:8080"
}

// writeNew writes a file that must not exist.
func writeNew(name string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
