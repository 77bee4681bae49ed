package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
)

func newKey(t *testing.T) ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// shake does a handshake of both configurations, and returns what each side makes of it.
func shake(client, server *tls.Config) (c, s tls.ConnectionState, cerr, serr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	tc, ts := tls.Client(a, client), tls.Server(b, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if serr = ts.Handshake(); serr == nil {
			_, serr = io.ReadFull(ts, make([]byte, 2)) // a client's alert comes after our end of the handshake
		}
	}()
	if cerr = tc.Handshake(); cerr == nil {
		_, cerr = tc.Write([]byte("hi"))
	} else {
		a.Close()
	}
	<-done
	return tc.ConnectionState(), ts.ConnectionState(), cerr, serr
}

func TestOperateTLS(t *testing.T) {
	site, operator := newKey(t), newKey(t)
	server, err := OperateServer(site)
	if err != nil {
		t.Fatal(err)
	}
	trust := func(got ed25519.PublicKey) error {
		if !got.Equal(site.Public()) {
			return errStrange
		}
		return nil
	}

	// An operator with a key, and one without.
	for _, key := range []ed25519.PrivateKey{operator, nil} {
		client, err := OperateClient(key, trust)
		if err != nil {
			t.Fatal(err)
		}
		c, s, cerr, serr := shake(client, server)
		if cerr != nil || serr != nil || c.Version != tls.VersionTLS13 {
			t.Fatalf("client %v, server %v, version %x", cerr, serr, c.Version)
		}
		switch got := OperatorKey(&s); {
		case key == nil && got != nil:
			t.Errorf("an operator without a key has the key %x", got)
		case key != nil && !bytes.Equal(got, key.Public().(ed25519.PublicKey)):
			t.Errorf("the operator has the key %x", got)
		}
	}

	// Somebody else in the place of the site is found out, and learns nothing.
	other, err := OperateServer(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	client, _ := OperateClient(nil, trust)
	if _, _, cerr, serr := shake(client, other); !errors.Is(cerr, errStrange) || serr == nil {
		t.Errorf("client %v, server %v, want the wrong key refused", cerr, serr)
	}

	// Older TLS, or something else in TLS, is nothing for us.
	old, _ := OperateClient(nil, trust)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, cerr, serr := shake(old, server); cerr == nil || serr == nil {
		t.Error("TLS 1.2 is accepted")
	}
	http, _ := OperateClient(nil, trust)
	http.NextProtos = []string{"http/1.1"}
	if _, _, cerr, serr := shake(http, server); cerr == nil || serr == nil {
		t.Error("another protocol is accepted")
	}
}

var errStrange = errors.New("that is another key")
