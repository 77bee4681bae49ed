package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// operateALPN is what operators and private relays speak in the TLS between them.
const operateALPN = "culvert-operate/1"

// operateName is in the certificates of both. Nobody looks at it: the keys are what counts.
const operateName = "culvert"

// keyCertificate makes a certificate of key, signed by itself. It says nothing but the key, so it has the same dates
// always, which nobody looks at either.
func keyCertificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	if len(key) != ed25519.PrivateKeySize {
		return tls.Certificate{}, errors.New("certificate of a key: there is no Ed25519 key")
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: operateName},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // rfc5280#section-4.1.2.5: none
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of a key: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// OperateServer returns the TLS of a private relay with that key, for operators: TLS 1.3 alone, without resumption, so
// that each connection proves the key anew. Operators may show a key of their own, see OperatorKey; whether they have to
// is the caller's matter.
func OperateServer(key ed25519.PrivateKey) (*tls.Config, error) {
	cert, err := keyCertificate(key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{cert},
		ClientAuth:                  tls.RequestClientCert,
		NextProtos:                  []string{operateALPN},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) > 0 && OperatorKey(&cs) == nil {
				return errors.New("the operator's certificate has no Ed25519 key")
			}
			return nil
		},
	}, nil
}

// OperatorKey returns the key that the peer of a connection of OperateServer has proved to have: nil if none. The
// handshake of TLS 1.3 is the proof (rfc8446#section-4.4.3).
func OperatorKey(cs *tls.ConnectionState) ed25519.PublicKey {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	key, _ := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	return key
}

// OperateClient returns the TLS of an operator who speaks to a private relay whose key trust, which must not be nil,
// finds to be the right one: otherwise its error is that of the handshake. key is the operator's own, or nil.
func OperateClient(key ed25519.PrivateKey, trust func(site ed25519.PublicKey) error) (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		ServerName:                  operateName,
		NextProtos:                  []string{operateALPN},
		InsecureSkipVerify:          true, // VerifyConnection verifies: there is no authority, but a key that is known
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the private relay shows no key")
			}
			site, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok {
				return errors.New("the private relay shows a key that is not of Ed25519")
			}
			return trust(site)
		},
	}
	if key != nil {
		cert, err := keyCertificate(key)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}
