package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/atomicfile"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	certLife = 397 * 24 * time.Hour     // what browsers accept
	renewal  = 30 * 24 * time.Hour      // a certificate with less than this left is made anew
	backdate = time.Hour                // for clocks that are behind
	caName   = "Culvert development CA" // and of a relay that makes its own
)

// Certificates are the files of a private certificate authority and of a server
// certificate it has signed.
type Certificates struct {
	CA          string // ca.pem: what clients have to trust
	Certificate string // cert.pem: the server's, followed by the authority's
	Key         string // key.pem
	Pin         []byte // of the authority, for a Token
}

// DevCA makes, in a folder, a certificate authority and a certificate for the names:
// host names, wildcards like *.example.com, and IP addresses. What is there already
// and good for another 30 days stays; a certificate that lacks a name is made anew
// with all names, by the same authority.
func DevCA(dir string, names ...string) (Certificates, error) {
	c := Certificates{
		CA:          filepath.Join(dir, "ca.pem"),
		Certificate: filepath.Join(dir, "cert.pem"),
		Key:         filepath.Join(dir, "key.pem"),
	}
	if len(names) == 0 {
		return c, errors.New("certificate: no names")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, fmt.Errorf("certificate: %w", err)
	}
	ca, err := openCA(c.CA, filepath.Join(dir, "ca.key"))
	if err != nil {
		return c, fmt.Errorf("certificate authority: %w", err)
	}
	pin := Pin(ca.Leaf)
	c.Pin = pin[:]
	if err := c.leaf(ca, names); err != nil {
		return c, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}

// Pin identifies a certificate by the SHA-256 of its public key
// (rfc7469#section-2.4).
func Pin(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// openCA reads the authority, or makes one.
func openCA(certFile, keyFile string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err == nil {
		if !pair.Leaf.IsCA {
			return nil, fmt.Errorf("%s is not a certificate authority", certFile)
		}
		if time.Until(pair.Leaf.NotAfter) > certLife {
			return &pair, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: caName},
		NotAfter:              time.Now().Add(caLife),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return makeCertificate(template, nil, certFile, keyFile)
}

// leaf makes the server's certificate, unless there is a good one.
func (c Certificates) leaf(ca *tls.Certificate, names []string) error {
	var dns []string
	var ips []net.IP
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, strings.ToLower(n))
		}
	}
	old, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err == nil {
		covered := old.Leaf.CheckSignatureFrom(ca.Leaf) == nil && time.Until(old.Leaf.NotAfter) > renewal
		for _, n := range dns {
			covered = covered && slices.Contains(old.Leaf.DNSNames, n)
		}
		for _, ip := range ips {
			covered = covered && slices.ContainsFunc(old.Leaf.IPAddresses, ip.Equal)
		}
		if covered {
			return nil
		}
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		NotAfter:    time.Now().Add(certLife - backdate),
		DNSNames:    dns,
		IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	_, err = makeCertificate(template, ca, c.Certificate, c.Key)
	return err
}

// makeCertificate completes, signs and writes a certificate with a new key. Without
// an authority it signs itself.
func makeCertificate(template *x509.Certificate, ca *tls.Certificate, certFile, keyFile string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	template.NotBefore = time.Now().Add(-backdate)
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if ca != nil {
		// Whoever has only the authority's pin needs to see the authority.
		certPEM = append(certPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Leaf.Raw})...)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: keyDER})
	// The key first: after a crash in between the pair does not match, and is made anew.
	if err := errors.Join(atomicfile.Write(keyFile, keyPEM, 0o600), atomicfile.Write(certFile, certPEM, 0o644)); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	return &pair, err
}

// PinnedTLS returns a client's TLS configuration for a host whose certificate is
// signed by the authority with that pin, and a func that returns the authority in
// PEM once a handshake has succeeded. The server must present the authority with
// its own certificate, as DevCA's cert.pem does. Chain, host name, purpose and
// dates are verified as ever; only the root comes from the pin.
func PinnedTLS(pin []byte, host string) (cfg *tls.Config, ca func() []byte) {
	pin = bytes.Clone(pin)
	var found []byte
	cfg = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: true, // VerifyConnection verifies, for every handshake
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots, rest := x509.NewCertPool(), x509.NewCertPool()
			var root *x509.Certificate
			for i, c := range cs.PeerCertificates {
				p := Pin(c)
				switch {
				case i > 0 && c.IsCA && subtle.ConstantTimeCompare(p[:], pin) == 1:
					root = c
					roots.AddCert(c)
				case i > 0:
					rest.AddCert(c)
				}
			}
			if root == nil {
				return errors.New("the relay's certificate is not signed by the authority that the token names; is this the relay that made the token?")
			}
			if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
				DNSName: host, Roots: roots, Intermediates: rest,
			}); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
			}
			found = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
			return nil
		},
	}
	return cfg, func() []byte { return found }
}
