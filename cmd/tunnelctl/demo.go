package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/operate"
)

// The names of the demo. Browsers and curl take every name under localhost for this machine.
const (
	demoDomain = "localhost"
	demoSite   = "office"
	webHost    = "intranet.localhost"
	filesHost  = "files.localhost"
	chatHost   = "chat.localhost"   // speaks HTTP/2 behind the wall, too
	secretHost = "secret.localhost" // asks for a password
	vaultHost  = "vault.localhost"  // has its own certificate, behind the wall
	demoUser   = "visitor"
	demoSecret = "sesame"
)

// startTimeout bounds the start of one relay, the visit of one service and the end of one relay.
const startTimeout = 30 * time.Second

func demoCommand() *cobra.Command {
	var d demo
	var once bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start both relays and sample servers on this machine and try them",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context(), once)
		},
	}
	cmd.Flags().StringVar(&d.certs, "dir", "certs", "`folder` of the development CA")
	cmd.Flags().BoolVar(&once, "once", false, "exit after the visits, with 0 if all went well")
	return cmd
}

// demo is one run of `tunnelctl demo`: everything it starts, it ends.
type demo struct {
	out   io.Writer
	certs string
	dir   string // of state, configuration and logs; removed at the end if all went well
	roots *x509.CertPool
	vault string // file of the authority of the site's own certificate

	samples            *samples
	public, private    *child
	https, quic, admin string // addresses of the public relay
	rtsp, rtsps, tftp  string
	tcpPort            int // of the published TCP service
	udpPort            int // of the published UDP service
	client             *admin.Client
}

func (d *demo) run(ctx context.Context, once bool) (err error) {
	if d.dir, err = os.MkdirTemp("", "culvert-demo-"); err != nil {
		return err
	}
	defer func() {
		d.stop()
		if err == nil {
			os.RemoveAll(d.dir)
		} else {
			err = fmt.Errorf("%w\nthe logs are in %s", err, d.dir)
		}
	}()
	if err := d.start(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if err := d.visit(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if once {
		fmt.Fprintln(d.out, "\nAll went well. Without --once it stays up, and you can try:")
		d.printCommands()
		return nil
	}
	fmt.Fprintln(d.out, "\nTo try it yourself, until Ctrl-C:")
	d.printCommands()
	select {
	case <-ctx.Done():
		fmt.Fprintln(d.out, "\nstopping")
		return nil
	case <-d.public.done:
		return fmt.Errorf("relay-public ended by itself: %v", d.public.cmd.ProcessState)
	case <-d.private.done:
		return fmt.Errorf("relay-private ended by itself: %v", d.private.cmd.ProcessState)
	}
}

// interrupted is nil for an error that Ctrl-C caused.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// start brings up sample servers and relays, joining the site with a token as a user does.
func (d *demo) start(ctx context.Context) (err error) {
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	bin = filepath.Dir(bin)
	fmt.Fprintf(d.out, "logs and state      %s\n", d.dir)

	certs, err := d.makeCertificates()
	if err != nil {
		return err
	}
	if d.samples, err = startSamples(d.dir); err != nil {
		return fmt.Errorf("sample servers: %w", err)
	}
	fmt.Fprintf(d.out, "sample servers      http://%s (web, WebSocket echo), tcp://%s and udp://%s (echo), %s (files), rtsp://%s (camera)\n",
		d.samples.web.Addr(), d.samples.tcp.Addr(), d.samples.udp.LocalAddr(), d.samples.files, d.samples.camera.addr)

	if d.tcpPort, d.udpPort, err = freePorts(); err != nil {
		return err
	}
	publicConfig := filepath.Join(d.dir, "public.toml")
	if err := os.WriteFile(publicConfig, fmt.Appendf(nil, `domain = %q
state  = "state"
drain_timeout = "2s"

[listen]
https = "127.0.0.1:0"
http  = ""
rtsp  = "127.0.0.1:0"
rtsps = "127.0.0.1:0"
tftp  = "127.0.0.1:0"
admin = "127.0.0.1:0"

[tls]
certificate = %q
key         = %q
`, demoDomain, absolute(certs.Certificate), absolute(certs.Key)), 0o600); err != nil {
		return err
	}
	began := time.Now()
	if d.public, err = startChild(filepath.Join(d.dir, "relay-public.log"), filepath.Join(bin, "relay-public"), "--config", publicConfig); err != nil {
		return err
	}
	ready, err := d.public.ready(ctx)
	if err != nil {
		return err
	}
	d.https, d.quic, d.admin, d.rtsp, d.rtsps, d.tftp = ready["https"], ready["quic"], ready["admin"], ready["rtsp"], ready["rtsps"], ready["tftp"]
	if slices.Contains([]string{d.https, d.quic, d.admin, d.rtsp, d.rtsps, d.tftp}, "") {
		return fmt.Errorf("relay-public is ready without https, quic, admin, rtsp, rtsps and tftp addresses: %v", ready)
	}
	fmt.Fprintf(d.out, "public relay        https://%s, admin http://%s, ready after %s\n", d.https, d.admin, took(began))

	at := where{admin: d.admin, state: filepath.Join(d.dir, "state"), env: func(string) string { return "" }}
	if d.client, err = at.client(); err != nil {
		return err
	}
	if err := d.join(ctx, filepath.Join(bin, "relay-private")); err != nil {
		return err
	}
	return nil
}

// absolute is a path for a configuration file in another folder.
func absolute(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	return filepath.ToSlash(name)
}

// join invites the site, joins it, adds its services and starts its relay.
func (d *demo) join(ctx context.Context, program string) error {
	inv, err := d.client.AddSite(ctx, admin.Invite{
		Name:    demoSite,
		Publish: []string{"https://*.localhost", "tls://*.localhost", "rtsp://" + camHost + "/*", "tftp:///" + tftpPath + "*", fmt.Sprintf("tcp://127.0.0.1:%d", d.tcpPort), fmt.Sprintf("udp://127.0.0.1:%d", d.udpPort)},
		TTL:     time.Minute.Seconds(),
	})
	if err != nil {
		return fmt.Errorf("invite the site: %w", err)
	}
	dir := filepath.Join(d.dir, "site")
	join := exec.CommandContext(ctx, program, "join", "--dir", dir)
	join.Env = append(os.Environ(), "CULVERT_TOKEN="+inv.Token)
	if out, err := join.CombinedOutput(); err != nil {
		return fmt.Errorf("relay-private join: %w\n%s", err, out)
	}
	vault, err := auth.DevCA(filepath.Join(d.dir, "vault"), vaultHost) // another authority than the relay's
	if err != nil {
		return err
	}
	d.vault = vault.CA
	hash, err := auth.HashPassword([]byte(demoSecret))
	if err != nil {
		return err
	}
	digest, err := auth.HashDigest(demoUser, auth.DigestRealm, []byte(demoSecret))
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "private.toml")
	if err := os.Chmod(config, 0o600); err != nil { // the password of the camera will be in it
		return fmt.Errorf("relay-private join has written no configuration: %w", err)
	}
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("relay-private join has written no configuration: %w", err)
	}
	_, err = fmt.Fprintf(f, `
[[service]]
name    = "intranet"
publish = "https://%s"
target  = "http://%s"
inspect = true

[[service]]
name    = "files"
publish = "https://%s"
target  = "file://%s"

[[service]]
name    = "chat"
publish = "https://%s"
target  = "h2c://%[2]s"

[[service]]
name    = "secret"
publish = "https://%[6]s"
target  = "http://%[2]s"
users   = { %[7]s = %[8]q }

[[service]]
name    = "vault"
publish = "tls://%[9]s"
target  = "http://%[2]s"
certificate     = %[10]q
certificate_key = %[11]q

[[service]]
name    = "echo"
publish = "tcp://127.0.0.1:%[12]d"
target  = "tcp://%[13]s"

[[service]]
name    = "operators-echo"
target  = "tcp://%[13]s"

[[service]]
name    = "datagrams"
publish = "udp://127.0.0.1:%[14]d"
target  = "udp://%[15]s"

[[service]]
name    = "gate"
publish = "rtsp://%[16]s"
target  = %[17]q
fan_out = true
users   = { %[7]s = %[18]q }

[[service]]
name    = "boot"
publish = "tftp:///%[19]s"
target  = "file://%[4]s"
write   = true
`, webHost, d.samples.web.Addr(), filesHost, filePath(d.samples.files), chatHost,
		secretHost, demoUser, hash, vaultHost, filepath.ToSlash(vault.Certificate), filepath.ToSlash(vault.Key),
		d.tcpPort, d.samples.tcp.Addr(), d.udpPort, d.samples.udp.LocalAddr(), camHost+camPath, d.samples.camera.target(), digest, tftpPath)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	began := time.Now()
	if d.private, err = startChild(filepath.Join(d.dir, "relay-private.log"), program, "--config", config); err != nil {
		return err
	}
	if _, err := d.private.ready(ctx); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "private relay       site %q, joined with a token, ready after %s\n\n", demoSite, took(began))
	return nil
}

// filePath is the path part of a file URL.
func filePath(name string) string {
	p := filepath.ToSlash(name)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p // C:/x
	}
	return (&url.URL{Path: p}).EscapedPath()
}

// freePorts finds ports for the published TCP and UDP services, which have to be known when the site is invited.
func freePorts() (tcp, udp int, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer pc.Close()
	return ln.Addr().(*net.TCPAddr).Port, pc.LocalAddr().(*net.UDPAddr).Port, nil
}

func took(began time.Time) time.Duration {
	d := time.Since(began)
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// visit asks each service once through the tunnel and prints what went where and how fast.
func (d *demo) visit(ctx context.Context) error {
	_, port, _ := net.SplitHostPort(d.https)
	web := "http://" + d.samples.web.Addr().String()
	rows := []struct {
		visitor, target string
		visit           func(context.Context) (string, error)
	}{
		{"https://" + webHost + ":" + port, web, d.visitWeb},
		{"wss://" + webHost + ":" + port + "/echo", web + "/echo", d.visitWebSocket},
		{"https://" + chatHost + ":" + port + "/chat", "h2c://" + d.samples.web.Addr().String() + "/chat", d.visitChat},
		{"https://" + secretHost + ":" + port, web, d.visitSecret},
		{"tls://" + vaultHost + ":" + port, web, d.visitVault},
		{"https://" + filesHost + ":" + port + "/" + bigFile, "file://" + d.samples.files, d.visitFile},
		{fmt.Sprintf("tcp://127.0.0.1:%d", d.tcpPort), "tcp://" + d.samples.tcp.Addr().String(), d.visitTCP},
		{fmt.Sprintf("udp://127.0.0.1:%d", d.udpPort), "udp://" + d.samples.udp.LocalAddr().String(), d.visitUDP},
		{"rtsp://" + d.rtsp + camPath, "rtsp://" + d.samples.camera.addr.String() + cameraPath, d.visitCamera},
		{"tftp://" + d.tftp + "/" + tftpPath + bigFile, "file://" + d.samples.files, d.visitTFTP},
		{"tunnelctl forward " + demoSite + "/operators-echo", "tcp://" + d.samples.tcp.Addr().String(), d.visitForward},
	}
	w := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VISITOR\tREACHED\tRESULT")
	var failed error
	for _, r := range rows {
		vctx, cancel := context.WithTimeout(ctx, startTimeout)
		result, err := r.visit(vctx)
		cancel()
		if err != nil {
			result = "FAILED: " + printable(err.Error())
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.visitor, err))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.visitor, r.target, result)
	}
	w.Flush()
	return failed
}

// visitor is a client of one version of HTTP that finds every name at the public relay.
func (d *demo) visitor(version string, roots *x509.CertPool) *http.Client {
	config := &tls.Config{RootCAs: roots}
	if version == "HTTP/3.0" {
		return &http.Client{Transport: &http3.Transport{TLSClientConfig: config, Dial: func(ctx context.Context, _ string, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, d.quic, config, quicConfig)
		}}}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == "HTTP/1.1")
	protocols.SetHTTP2(version == "HTTP/2.0")
	dialer := new(net.Dialer)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config,
		Protocols:       protocols,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, d.https)
		},
	}}
}

// hangUp ends the connections of a visitor.
func hangUp(c *http.Client) {
	c.CloseIdleConnections()
	if t, ok := c.Transport.(io.Closer); ok {
		t.Close()
	}
}

// visitWeb asks for a page over each version of HTTP.
func (d *demo) visitWeb(ctx context.Context) (string, error) {
	var results []string
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0", "HTTP/3.0"} {
		c := d.visitor(version, d.roots)
		defer hangUp(c)
		if _, err := get(ctx, c, "https://"+webHost+"/", version); err != nil {
			return "", fmt.Errorf("%s: %w", version, err)
		}
		const n = 200
		began := time.Now()
		for range n {
			if _, err := get(ctx, c, "https://"+webHost+"/", version); err != nil {
				return "", fmt.Errorf("%s: %w", version, err)
			}
		}
		results = append(results, fmt.Sprintf("%s %v", strings.TrimSuffix(version, ".0"), (time.Since(began)/n).Round(time.Microsecond)))
	}
	return "200 OK, each request over " + strings.Join(results, ", over "), nil
}

// visitChat says something only when it has heard the answer to what it said before.
func (d *demo) visitChat(ctx context.Context) (string, error) {
	c := d.visitor("HTTP/2.0", d.roots)
	defer hangUp(c)
	body, say := io.Pipe()
	defer say.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+chatHost+"/chat", body)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	const n = 200
	lines := bufio.NewReader(resp.Body)
	began := time.Now()
	for i := range n {
		said := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(say, said); err != nil {
			return "", err
		}
		if heard, err := lines.ReadString('\n'); err != nil || heard != said {
			return "", fmt.Errorf("said %q, heard %q: %v", said, heard, err)
		}
	}
	each := (time.Since(began) / n).Round(time.Microsecond)
	say.Close()
	if _, err := io.ReadAll(lines); err != nil {
		return "", err
	}
	if got := resp.Trailer.Get("Lines"); got != strconv.Itoa(n) {
		return "", fmt.Errorf("trailer Lines: %q", got)
	}
	return fmt.Sprintf("%d lines in one request, each answered while it goes on, %v each, and a trailer", n, each), nil
}

// visitSecret is turned away without a password.
func (d *demo) visitSecret(ctx context.Context) (string, error) {
	c := d.visitor("HTTP/2.0", d.roots)
	defer hangUp(c)
	if body, err := get(ctx, c, "https://"+secretHost+"/", "HTTP/2.0"); err == nil {
		return "", fmt.Errorf("without a password: %q", body)
	} else if !strings.HasPrefix(err.Error(), "401 ") {
		return "", err
	}
	body, err := get(ctx, c, "https://"+demoUser+":"+demoSecret+"@"+secretHost+"/", "HTTP/2.0")
	if err != nil {
		return "", err
	}
	if !bytes.Contains(body, []byte("knows you as "+demoUser)) {
		return "", fmt.Errorf("unexpected answer %q", body)
	}
	return "401 without a password, 200 OK with it, and the server is told who it is", nil
}

// visitVault trusts the site's authority and not the relay's.
func (d *demo) visitVault(ctx context.Context) (string, error) {
	if _, err := get(ctx, d.visitor("HTTP/1.1", d.roots), "https://"+vaultHost+"/", "HTTP/1.1"); err == nil {
		return "", errors.New("the certificate is the relay's")
	}
	pem, err := os.ReadFile(d.vault)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c := d.visitor("HTTP/1.1", roots)
	defer hangUp(c)
	body, err := get(ctx, c, "https://"+vaultHost+"/", "HTTP/1.1")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("200 OK, %d bytes, encrypted up to the private relay with the site's own certificate", len(body)), nil
}

// get asks for a page of the sample server and expects it in a version of HTTP.
func get(ctx context.Context, c *http.Client, url, version string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	case resp.Proto != version:
		return nil, fmt.Errorf("answered in %s", resp.Proto)
	case !bytes.Contains(body, []byte("behind the firewall")):
		return nil, fmt.Errorf("unexpected answer %q", body)
	}
	return body, nil
}

func (d *demo) visitWebSocket(ctx context.Context) (string, error) {
	c, _, err := websocket.Dial(ctx, "wss://"+webHost+"/echo", &websocket.DialOptions{HTTPClient: d.visitor("HTTP/1.1", d.roots)})
	if err != nil {
		return "", err
	}
	defer c.CloseNow()
	const n = 200
	began := time.Now()
	for i := range n {
		sent := fmt.Appendf(nil, "message %d", i)
		if err := c.Write(ctx, websocket.MessageText, sent); err != nil {
			return "", err
		}
		_, got, err := c.Read(ctx)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(got, sent) {
			return "", fmt.Errorf("sent %q, got %q back", sent, got)
		}
	}
	each := (time.Since(began) / n).Round(time.Microsecond)
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		return "", fmt.Errorf("close: %w", err)
	}
	return fmt.Sprintf("%d messages there and back, %v each", n, each), nil
}

func (d *demo) visitFile(ctx context.Context) (string, error) {
	c := d.visitor("HTTP/1.1", d.roots)
	defer hangUp(c)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+filesHost+"/"+bigFile, nil)
	if err != nil {
		return "", err
	}
	began := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, resp.Body)
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode != http.StatusOK:
		return "", errors.New(resp.Status)
	case !bytes.Equal(h.Sum(nil), d.samples.sum[:]):
		return "", fmt.Errorf("%d bytes came, and their SHA-256 is wrong", n)
	}
	return fmt.Sprintf("%s, SHA-256 right, %s", size(uint64(n)), rate(n, began)), nil
}

// rate is a speed in MiB/s.
func rate(n int64, began time.Time) string {
	return fmt.Sprintf("%.0f MiB/s", float64(n)/(1<<20)/time.Since(began).Seconds())
}

func (d *demo) visitTCP(ctx context.Context) (string, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.tcpPort)))
	if err != nil {
		return "", err
	}
	return echoed(ctx, local{c.(*net.TCPConn)})
}

func (d *demo) visitForward(ctx context.Context) (string, error) {
	known := &operate.KnownSites{File: filepath.Join(d.dir, "known_sites"), Relay: d.admin}
	o := &operate.Client{Address: d.admin, Plain: true, Token: d.client.Token, Trust: known.Trust}
	defer o.Close()
	c, err := o.Open(ctx, demoSite, "operators-echo")
	if err != nil {
		return "", err
	}
	return echoed(ctx, c)
}

// visitUDP sends datagrams of many sizes, one after the other, and expects each back as it was. One that is lost
// is sent again.
func (d *demo) visitUDP(ctx context.Context) (string, error) {
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", d.udpPort))
	if err != nil {
		return "", err
	}
	defer c.Close()
	const n = 200
	lost := 0
	sent, got := make([]byte, 9000), make([]byte, 64<<10) // macOS sends no larger ones by default
	rand.Read(sent)
	began := time.Now()
	for i := 0; i < n; {
		b := sent[:1+i*(len(sent)-1)/(n-1)]
		if _, err := c.Write(b); err != nil {
			return "", err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		m, err := c.Read(got)
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			lost++
		case err != nil:
			return "", err
		case !bytes.Equal(got[:m], b):
			return "", fmt.Errorf("sent %d bytes and got %d others back", len(b), m)
		default:
			i++
		}
	}
	each := ((time.Since(began) - time.Duration(lost)*time.Second) / n).Round(time.Microsecond)
	return fmt.Sprintf("%d datagrams of up to %d bytes there and back, %v each, %d lost", n, len(sent), each, lost), nil
}

// echoed sends 16 MiB and our end of the stream, and expects both back.
func echoed(ctx context.Context, c duplex) (string, error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	sent := make([]byte, 16<<20)
	rand.Read(sent)
	began := time.Now()
	writec := make(chan error, 1)
	go sendAll(writec, c, sent)
	got, err := io.ReadAll(io.LimitReader(c, int64(len(sent))+1))
	if err != nil {
		return "", err
	}
	if err := <-writec; err != nil {
		return "", err
	}
	if !bytes.Equal(got, sent) {
		return "", fmt.Errorf("sent %d bytes and got %d others back", len(sent), len(got))
	}
	return fmt.Sprintf("%s there and back, %s each way, half-close passed on", size(uint64(len(sent))), rate(int64(len(sent)), began)), nil
}

func sendAll(c chan<- error, to duplex, b []byte) {
	_, err := to.Write(b)
	if err == nil {
		err = to.CloseWrite()
	}
	c <- err
}

// printCommands prints what to try by hand.
func (d *demo) printCommands() {
	_, port, _ := net.SplitHostPort(d.https)
	ca := filepath.Join(d.certs, "ca.pem")
	curl := func(ca, host, path, options string) string {
		return fmt.Sprintf("  curl --cacert %s --resolve %s:%s:127.0.0.1 %shttps://%[2]s:%[3]s%[5]s", ca, host, port, options, path)
	}
	self, _ := os.Executable()
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, self); err == nil && !strings.HasPrefix(rel, "..") {
			self = rel
		}
	}
	for _, line := range []string{
		"As a visitor:",
		curl(ca, webHost, "/", "--http2 "),
		curl(ca, webHost, "/", "--http1.1 "),
		curl(ca, chatHost, "/chat", "-i --http2 -d hello "),
		curl(ca, secretHost, "/", "-u "+demoUser+":"+demoSecret+" "),
		curl(d.vault, vaultHost, "/", ""),
		curl(ca, filesHost, "/"+bigFile, "-o /dev/null "),
		fmt.Sprintf("  nc 127.0.0.1 %d", d.tcpPort),
		fmt.Sprintf("  echo hello | nc -u -w 1 127.0.0.1 %d", d.udpPort),
		fmt.Sprintf("  ffplay rtsp://%s:%s@%s%s", demoUser, demoSecret, d.rtsp, camPath),
		fmt.Sprintf("  ffplay -rtsp_transport https rtsp://%s:%s@%s%s", demoUser, demoSecret, net.JoinHostPort(camHost, port), camPath),
		fmt.Sprintf("  vlc --rtsp-tcp rtsp://%s:%s@%s%s", demoUser, demoSecret, d.rtsp, camPath),
		fmt.Sprintf("  a browser:  https://%s%s  as %s, password %s (its certificate is of %s)", net.JoinHostPort(camHost, port), camPath, demoUser, demoSecret, ca),
		fmt.Sprintf("  curl -o /dev/null tftp://%s/%s", d.tftp, tftpPath+bigFile),
		fmt.Sprintf("  %s tftp get %s %shello.txt -", self, d.tftp, tftpPath),
		"As the operator, in another terminal:",
		fmt.Sprintf("  export CULVERT_ADMIN=%s CULVERT_TOKEN_FILE=%s", d.admin, filepath.Join(d.dir, "state", "admin.token")),
		"  " + self + " status                              # or sites, services, streams, requests, logs",
		"  " + self + " top                                 # the same, live; ? explains its keys",
		"  " + self + " requests -f                         # what visitors ask for; requests show ID has it all",
		"  " + self + " forward " + demoSite + "/operators-echo 7777  # then: nc 127.0.0.1 7777",
		"  " + self + " --help                              # and everything else",
		fmt.Sprintf("  a browser:  http://%s/  asks for the token, which is in the file above", d.admin),
	} {
		fmt.Fprintln(d.out, line)
	}
}

func (d *demo) stop() {
	// The private relay first: its visitors learn that it leaves, not that it is lost.
	for _, c := range []*child{d.private, d.public} {
		if c != nil {
			c.stop()
		}
	}
	if d.samples != nil {
		d.samples.close()
	}
}

// child is a relay that the demo runs.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended; then cmd.ProcessState says how
}

// startChild starts a program with its output going to a file.
func startChild(log, program string, args ...string) (*child, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own descriptor
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = f, f
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: make build puts the relays beside tunnelctl", err)
	}
	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	go c.wait()
	return c, nil
}

func (c *child) wait() {
	_ = c.cmd.Wait() // ProcessState keeps it
	close(c.done)
}

// ready waits for the log line with msg=ready and returns its attributes that are strings.
func (c *child) ready(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if attrs, ok := c.readyLine(); ok {
			return attrs, nil
		}
		name := filepath.Base(c.cmd.Path)
		select {
		case <-c.done:
			return nil, fmt.Errorf("%s ended before it was ready: %v\n%s", name, c.cmd.ProcessState, c.tail())
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is not ready after %v\n%s", name, startTimeout, c.tail())
		case <-time.After(10 * time.Millisecond): // a log file tells nobody that it has grown
		}
	}
}

func (c *child) readyLine() (map[string]string, bool) {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return nil, false
	}
	for line := range bytes.Lines(b) {
		var attrs map[string]any
		if json.Unmarshal(line, &attrs) != nil || attrs["msg"] != "ready" {
			continue
		}
		values := map[string]string{}
		for k, v := range attrs {
			if s, ok := v.(string); ok {
				values[k] = s
			}
		}
		return values, true
	}
	return nil, false
}

// tail is the end of the child's log.
func (c *child) tail() string {
	b, _ := os.ReadFile(c.log)
	lines := slices.Collect(strings.Lines(string(b)))
	return strings.Join(lines[max(0, len(lines)-10):], "")
}

// stop asks the child to end, and makes it if it does not.
func (c *child) stop() {
	select {
	case <-c.done:
		return
	default:
	}
	if c.cmd.Process.Signal(syscall.SIGTERM) != nil {
		c.cmd.Process.Kill() // Windows has no SIGTERM
	}
	select {
	case <-c.done:
	case <-time.After(5 * time.Second):
		c.cmd.Process.Kill()
		<-c.done
	}
}
