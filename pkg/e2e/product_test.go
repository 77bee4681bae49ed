package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/relay/public"
)

// product is both relays in one process, on networks in memory, in virtual time. The site
// office publishes a folder with the file "data" as https://files.example.com.
type product struct {
	t        *testing.T
	link     memnet.Network // between the relays
	visitors memnet.Network // before the public relay
	data     []byte
	client   *http.Client
	refuse   atomic.Bool // new links are refused
}

// inOneProcess runs a test of the whole product in a bubble of virtual time.
func inOneProcess(t *testing.T, test func(p *product)) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{t: t, data: make([]byte, 16<<20)}
		p.link.Delay, p.link.Buffer = 10*time.Millisecond, 4<<20
		rand.Read(p.data)
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "data"), p.data, 0o600); err != nil {
			t.Fatal(err)
		}

		certs := t.TempDir() // of their own: the bubble's clock says the year 2000
		if err := makeCertificates(certs); err != nil {
			t.Fatal(err)
		}
		certificate, err := tls.LoadX509KeyPair(filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		pem, err := os.ReadFile(filepath.Join(certs, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		pub, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		pattern, err := relay.ParsePattern("https://*.example.com")
		if err != nil {
			t.Fatal(err)
		}

		publicCore := p.core()
		defer publicCore.Close()
		publicRelay := &public.Relay{
			Core:   publicCore,
			Domain: "localhost",
			TLS:    &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}},
		}
		publicRelay.Reload([]public.Site{{Name: "office", Keys: []string{auth.FormatPublicKey(pub)}, Publish: []relay.Pattern{pattern}}})
		for _, n := range []*memnet.Network{&p.link, &p.visitors} {
			ln, err := n.Listen("localhost:443")
			if err != nil {
				t.Fatal(err)
			}
			publicRelay.Serve(ln, true)
		}

		publish, err := relay.ParsePublish("https://files.example.com")
		if err != nil {
			t.Fatal(err)
		}
		ready := make(chan struct{})
		privateCore := p.core()
		defer privateCore.Close()
		privateRelay := &private.Relay{
			Core:     privateCore,
			Relays:   []string{"localhost:443"},
			Site:     "office",
			Key:      key,
			RootCAs:  roots,
			Services: []private.Service{{Service: relay.Service{Name: "files", Publish: publish, Target: relay.Target{Scheme: "file", Path: folder}}}},
			OnReady:  func() { close(ready) },
			Dial:     p.dial,
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- privateRelay.Run(ctx) }()
		<-ready

		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return p.visitors.Dial(ctx, network, "localhost:443")
			},
		}
		p.client = &http.Client{Transport: transport}
		test(p)
		transport.CloseIdleConnections()
		p.visitors.Cut()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the private relay: %v", err)
		}
	})
}

func (p *product) core() *evloop.Core {
	p.t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
	if err != nil {
		p.t.Fatal(err)
	}
	return core
}

// dial is how the private relay reaches the public one.
func (p *product) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if p.refuse.Load() {
		return nil, syscall.ECONNREFUSED
	}
	return p.link.Dial(ctx, network, address)
}

// download fetches the file, calls middle when half of it has come, and compares the rest.
func (p *product) download(middle func()) error {
	resp, err := p.client.Get("https://files.example.com/data")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	got := make([]byte, len(p.data))
	half := len(got) / 2
	if _, err := io.ReadFull(resp.Body, got[:half]); err != nil {
		return err
	}
	if middle != nil {
		middle()
	}
	if _, err := io.ReadFull(resp.Body, got[half:]); err != nil {
		return err
	}
	if !bytes.Equal(got, p.data) {
		p.t.Error("the file arrived wrong")
	}
	return nil
}

// TestLinkCut cuts the link in mid-download: the visitor sees a pause of less than a second.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	inOneProcess(t, func(p *product) {
		began := time.Now()
		if err := p.download(nil); err != nil {
			t.Fatalf("all is well: %v", err)
		}
		t.Logf("without a cut: %v", time.Since(began))
		for range 3 {
			began = time.Now()
			if err := p.download(func() { p.link.Cut() }); err != nil {
				t.Fatalf("link cut: %v", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("with a cut of the link the download took %v", took)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// TestLinkSilent loses everything for 20 s and tells nobody: the pings find out, and a new
// link takes over.
func TestLinkSilent(t *testing.T) {
	t.Parallel()
	inOneProcess(t, func(p *product) {
		began := time.Now()
		err := p.download(func() {
			p.link.Silence(true)
			time.AfterFunc(20*time.Second, func() { p.link.Silence(false) })
		})
		if err != nil {
			t.Fatalf("silent link: %v", err)
		}
		if took := time.Since(began); took < 20*time.Second || took > 40*time.Second {
			t.Errorf("after 20 s of silence the download took %v", took)
		}
	})
}

// TestLinkOutage keeps a site from its relay: shorter than the resume timeout nothing is
// lost; longer, streams end, and new ones work when the site is back.
func TestLinkOutage(t *testing.T) {
	t.Parallel()
	outage := func(p *product, d time.Duration) {
		p.refuse.Store(true)
		p.link.Cut()
		time.Sleep(d)
		p.refuse.Store(false)
	}
	t.Run("short", func(t *testing.T) {
		inOneProcess(t, func(p *product) {
			if err := p.download(func() { outage(p, 30*time.Second) }); err != nil {
				t.Errorf("30 s without a link: %v", err)
			}
		})
	})
	t.Run("long", func(t *testing.T) {
		inOneProcess(t, func(p *product) {
			err := p.download(func() {
				p.refuse.Store(true)
				p.link.Cut()
				time.Sleep(90 * time.Second)
				resp, err := p.client.Get("https://files.example.com/data")
				if err != nil {
					t.Fatalf("while the site is away: %v", err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
					t.Errorf("while the site is away: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
				}
				p.refuse.Store(false)
			})
			if err == nil {
				t.Error("a download outlived its session")
			}
			time.Sleep(time.Minute)
			if err := p.download(nil); err != nil {
				t.Errorf("the site is back: %v", err)
			}
		})
	})
}
