package private

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
)

// tftpClient is a client as old as can be: blocks of 512 bytes, one at a time, and no options.
type tftpClient struct {
	t    *testing.T
	conn net.PacketConn
	to   net.Addr
	ask  []byte // repeated until there is an answer
}

func newTFTPClient(t *testing.T, server netip.AddrPort, op tftp.Opcode, name string) *tftpClient {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &tftpClient{t: t, conn: conn, to: net.UDPAddrFromAddrPort(server)}
	c.ask = (&tftp.Request{Op: op, Name: name}).Append(nil)
	c.send(c.ask)
	return c
}

func (c *tftpClient) send(b []byte) {
	if _, err := c.conn.WriteTo(b, c.to); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next packet of that kind that has that number.
func (c *tftpClient) receive(op tftp.Opcode, block uint16) ([]byte, error) {
	return c.receiveBefore(op, block, time.Now().Add(20*time.Second))
}

func (c *tftpClient) receiveBefore(op tftp.Opcode, block uint16, deadline time.Time) ([]byte, error) {
	var buf [1024]byte
	for {
		c.conn.SetReadDeadline(deadline)
		n, from, err := c.conn.ReadFrom(buf[:])
		if err != nil {
			return nil, err
		}
		c.to = from
		got, number := tftp.Opcode(binary.BigEndian.Uint16(buf[:])), binary.BigEndian.Uint16(buf[2:])
		if got == tftp.OpError {
			return nil, &tftp.Error{Code: tftp.Code(number), Text: strings.TrimRight(string(buf[4:n]), "\x00"), Remote: true}
		}
		if got == op && number == block {
			return slices.Clone(buf[4:n]), nil
		}
	}
}

func (c *tftpClient) packet(op tftp.Opcode, block uint16, b string) {
	p := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, uint16(op)), block)
	c.send(append(p, b...))
}

func tftpRead(t *testing.T, server netip.AddrPort, name string) (string, error) {
	c := newTFTPClient(t, server, tftp.OpRead, name)
	var all []byte
	for block := uint16(1); ; block++ {
		b, err := c.receive(tftp.OpData, block)
		if err != nil {
			return "", err
		}
		all = append(all, b...)
		c.packet(tftp.OpAck, block, "")
		if len(b) < tftp.DefaultBlock {
			return string(all), nil
		}
	}
}

func tftpWrite(t *testing.T, server netip.AddrPort, name, text string) error {
	c := newTFTPClient(t, server, tftp.OpWrite, name)
	for block := uint16(0); ; block++ {
		if _, err := c.receive(tftp.OpAck, block); err != nil {
			return err
		}
		if block > 0 && len(text) < tftp.DefaultBlock {
			return nil
		}
		if block > 0 {
			text = text[tftp.DefaultBlock:]
		}
		c.packet(tftp.OpData, block+1, text[:min(len(text), tftp.DefaultBlock)])
	}
}

// startLAN runs a relay that reaches no public one, and serves its own network.
func startLAN(t *testing.T, change func(*Relay), services ...Service) (r *Relay, server netip.AddrPort, stop func() error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	r = &Relay{
		Core: newLoops(t), Relays: []string{"127.0.0.1:1"}, Site: "office", Key: key, Services: services, Log: log,
		TFTP: "127.0.0.1:0", DrainTimeout: 20 * time.Second,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return nil, syscall.ECONNREFUSED },
	}
	if change != nil {
		change(r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for r.Status().TFTP == nil {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	stopped := false
	stop = func() error { cancel(); stopped = true; return <-done }
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	return r, r.Status().TFTP.Address, stop
}

func wantTFTP(t *testing.T, server netip.AddrPort, name, want string) {
	t.Helper()
	if got, err := tftpRead(t, server, name); got != want || err != nil {
		t.Errorf("%s: %d bytes (%.20q) and %v, want %d", name, len(got), got, err, len(want))
	}
}

func wantNoTFTP(t *testing.T, err error, code tftp.Code) {
	t.Helper()
	if e, ok := errors.AsType[*tftp.Error](err); !ok || e.Code != code {
		t.Errorf("%v, want error %d", err, code)
	}
}

// The private relay boots its own rack without any link: the service with the longest prefix has a file, as on the public relay.
func TestLAN(t *testing.T) {
	for name, portable := range map[string]bool{"system": false, "portable": true} {
		t.Run(name, func(t *testing.T) {
			testLAN(t, func(r *Relay) {
				core, err := evloop.New(evloop.Config{Loops: 2, Portable: portable})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { core.Close() })
				r.Core = core
			})
		})
	}
}

func testLAN(t *testing.T, on func(*Relay)) {
	kernel := strings.Repeat("0123456789abcdef", 10_000)
	web := httptest.NewServer(http.StripPrefix("/images", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/vmlinuz" {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1e9, 0), strings.NewReader(kernel))
	})))
	defer web.Close()
	boot, dir := fileService(t, relay.Files{Write: relay.WriteReplace, MaxSize: 2000, Cache: true}, map[string]string{
		"pxelinux.0": "loader", "empty": "", "block": strings.Repeat("b", 512), "x86/none": "hidden by a longer prefix",
	})
	x86 := Service{Service: relay.Service{Name: "x86", Publish: relay.Publish{Scheme: "tftp", Path: "/boot/x86"}, Files: &relay.Files{Cache: true}}}
	var err error
	if x86.Target, err = relay.ParseTarget(web.URL + "/images/"); err != nil {
		t.Fatal(err)
	}
	all, _ := fileService(t, relay.Files{}, map[string]string{"bootx": "x", "secret": "s"})
	all.Name, all.Publish.Path = "all", "/"
	others, _ := fileService(t, relay.Files{}, map[string]string{"a": "a"})
	others.Name, others.Publish.Path = "others", "/others"
	others.Policy = &relay.Policy{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	r, server, stop := startLAN(t, on, all, boot, x86, others, tcpService(t, "web", "http://127.0.0.1:1"))

	wantTFTP(t, server, "boot/pxelinux.0", "loader")
	wantTFTP(t, server, "/boot//./pxelinux.0", "loader")
	wantTFTP(t, server, "boot/empty", "")
	wantTFTP(t, server, "boot/block", strings.Repeat("b", 512))
	wantTFTP(t, server, "boot/x86/vmlinuz", kernel)
	wantTFTP(t, server, "bootx", "x")
	for name, code := range map[string]tftp.Code{
		"boot/x86/none": tftp.CodeNotFound, "boot/none": tftp.CodeNotFound, "boot": tftp.CodeNotFound, "boot/x86": tftp.CodeNotFound, "boot/": tftp.CodeNotFound,
		"boot/../secret": tftp.CodeAccess, "others/a": tftp.CodeAccess,
	} {
		_, err := tftpRead(t, server, name)
		wantNoTFTP(t, err, code)
	}

	if err := tftpWrite(t, server, "boot/config", strings.Repeat("c", 1024)); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "config")); string(b) != strings.Repeat("c", 1024) || err != nil {
		t.Errorf("%d bytes were written, %v", len(b), err)
	}
	wantTFTP(t, server, "boot/config", strings.Repeat("c", 1024))
	wantNoTFTP(t, tftpWrite(t, server, "boot/large", strings.Repeat("c", 2001)), tftp.CodeDiskFull)
	wantNoTFTP(t, tftpWrite(t, server, "bootx", "y"), tftp.CodeAccess)
	wantNoTFTP(t, tftpWrite(t, server, "boot/x86/vmlinuz", "y"), tftp.CodeAccess)

	// A reload takes a service away, and gives another one its prefix.
	all.Publish.Path = "/boot"
	if err := r.Reload([]Service{all, x86}); err != nil {
		t.Fatal(err)
	}
	wantTFTP(t, server, "boot/secret", "s")
	wantTFTP(t, server, "boot/x86/vmlinuz", kernel)
	_, err = tftpRead(t, server, "boot/pxelinux.0")
	wantNoTFTP(t, err, tftp.CodeNotFound)

	// What runs goes on while the relay is stopped, and nothing else begins.
	c := newTFTPClient(t, server, tftp.OpRead, "boot/x86/vmlinuz")
	if _, err := c.receive(tftp.OpData, 1); err != nil {
		t.Fatal(err)
	}
	draining := make(chan struct{})
	r.lan.loop.Post(func() { r.lan.drain(); close(draining) }) // as stop does
	<-draining
	late := newTFTPClient(t, server, tftp.OpRead, "boot/secret")
	done := make(chan error)
	go func() { done <- stop() }()
	for block := uint16(1); ; block++ {
		if c.packet(tftp.OpAck, block, ""); int(block) > len(kernel)/tftp.DefaultBlock {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("stopped at block %d: %v", block, err)
		default:
		}
		if _, err := c.receive(tftp.OpData, block+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	// Its request came before all those ACKs.
	if b, err := late.receiveBefore(tftp.OpData, 1, time.Now().Add(10*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v: want silence, so that it asks the next relay", b, err)
	}
}

// The files of another TFTP server, which is what another private relay is on its network, are read and written through this one.
func TestLANOrigin(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 10_000)
	behind, dir := fileService(t, relay.Files{Write: relay.WriteReplace}, map[string]string{"sub/large": large, "sub/old": "old"})
	_, server, _ := startLAN(t, nil, behind)
	var services []Service
	for name, write := range map[string]string{"new": relay.WriteNew, "replace": relay.WriteReplace, "read": ""} {
		target, err := relay.ParseTarget("tftp://" + server.String() + "/boot/sub/")
		if err != nil {
			t.Fatal(err)
		}
		services = append(services, Service{Service: relay.Service{
			Name: name, Publish: relay.Publish{Scheme: "tftp", Path: "/" + name}, Target: target, Files: &relay.Files{Write: write, MaxSize: 2000, Cache: true},
		}})
	}
	_, front, _ := startLAN(t, nil, services...)

	wantTFTP(t, front, "read/large", large)
	_, err := tftpRead(t, front, "read/none")
	wantNoTFTP(t, err, tftp.CodeNotFound)
	wantNoTFTP(t, tftpWrite(t, front, "read/old", "x"), tftp.CodeAccess)
	wantNoTFTP(t, tftpWrite(t, front, "new/old", "x"), tftp.CodeExists)
	wantNoTFTP(t, tftpWrite(t, front, "replace/old", strings.Repeat("x", 2001)), tftp.CodeDiskFull)
	if want := map[string]string{"large": large, "old": "old"}; !maps.Equal(inFolder(t, filepath.Join(dir, "sub")), want) {
		t.Error("something was written")
	}
	for name, text := range map[string]string{"new/a": "a", "replace/old": "new", "replace/b": strings.Repeat("b", 1024)} {
		if err := tftpWrite(t, front, name, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantTFTP(t, front, name, text)
	}
	if want := map[string]string{"large": large, "old": "new", "a": "a", "b": strings.Repeat("b", 1024)}; !maps.Equal(inFolder(t, filepath.Join(dir, "sub")), want) {
		t.Error("what was written is not what is there")
	}
}

// An address that cannot be listened at is told with what to do.
func TestLANAddress(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := &Relay{Core: newLoops(t), TFTP: taken.LocalAddr().String()}
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "listen.tftp") || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
}

// A socket that the service manager has opened is used.
func TestLANInherited(t *testing.T) {
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := pc.LocalAddr().String()
	f, err := pc.File()
	pc.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	service, _ := fileService(t, relay.Files{}, map[string]string{"a": "a"})
	_, server, _ := startLAN(t, func(r *Relay) {
		r.TFTP = at
		r.Inherited = func(name, network, address string) []*os.File {
			if name != "tftp" || network != "udp" || address != at {
				t.Errorf("asked for %s, %s, %s", name, network, address)
			}
			return []*os.File{f}
		}
	}, service)
	wantTFTP(t, server, "boot/a", "a")
}
