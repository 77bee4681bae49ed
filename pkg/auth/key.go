package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"culvert.dev/pkg/atomicfile"
)

// ExporterLabel is the label of the TLS keying material (rfc8446#section-7.5) that
// a site signs: 32 bytes, with an empty context.
const ExporterLabel = "EXPORTER-culvert-link-1"

const (
	keyPrefix = "ed25519:"
	pemKey    = "PRIVATE KEY"
	maxKey    = 16 << 10 // bytes of a key file: a real one has about 120
)

// FormatPublicKey returns "ed25519:" and the key in standard base64 without
// padding.
func FormatPublicKey(pub ed25519.PublicKey) string {
	return keyPrefix + base64.RawStdEncoding.EncodeToString(pub)
}

// ParsePublicKey reads what FormatPublicKey returns.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	raw, ok := strings.CutPrefix(s, keyPrefix)
	if !ok {
		return nil, errors.New("public key: want ed25519: and 43 characters")
	}
	if strings.ContainsAny(raw, "\r\n") {
		return nil, errors.New("public key: line break in it")
	}
	b, err := base64.RawStdEncoding.Strict().DecodeString(raw)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("public key: %d characters after ed25519: are not base64 of 32 bytes", len(raw))
	}
	return b, nil
}

// GenerateKey makes a key and writes it to a new file, PEM of PKCS #8, readable by
// its owner alone. It does not replace a file.
func GenerateKey(file string) (ed25519.PublicKey, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("key file %s exists already; remove it first, or choose another name", file)
		}
		return nil, fmt.Errorf("key file: %w", err)
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: pemKey, Bytes: der}), f.Sync(), f.Close())
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(file))
	}
	if err != nil {
		os.Remove(file)
		return nil, fmt.Errorf("key file: %w", err)
	}
	return pub, nil
}

// ReadKey reads a key file. On Unix it refuses one that others than its owner may
// read or write.
func ReadKey(file string) (ed25519.PrivateKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if mode := info.Mode(); runtime.GOOS != "windows" && mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s: others may read it (mode %04o); run chmod 600 %[1]s, and make a new key if somebody has", file, mode.Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("key file %s: no PEM in it", file)
	}
	if block.Type != pemKey {
		return nil, fmt.Errorf("key file %s: is a %q, want a %q", file, block.Type, pemKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", file, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key file %s: want an Ed25519 key; relay-private keygen makes one", file)
	}
	return key, nil
}

// SignLink proves that the holder of key is the end of the TLS connection with
// that exporter value, for the site.
func SignLink(key ed25519.PrivateKey, site string, exporter []byte) []byte {
	return ed25519.Sign(key, linkMessage(site, exporter))
}

// VerifyLink checks what SignLink returned, against the exporter value of our own
// end of the connection.
func VerifyLink(pub ed25519.PublicKey, site string, exporter, signature []byte) bool {
	return len(pub) == ed25519.PublicKeySize && len(exporter) == 32 && ed25519.Verify(pub, linkMessage(site, exporter), signature)
}

// linkMessage is what a site signs. The text in front keeps the signature from
// meaning anything elsewhere.
func linkMessage(site string, exporter []byte) []byte {
	m := make([]byte, 0, 128)
	m = append(m, "culvert link 1\x00"...)
	m = append(m, site...)
	m = append(m, 0)
	return append(m, exporter...)
}
