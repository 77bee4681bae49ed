package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/pkg/tftpd"
)

// What the demo's folder is to TFTP clients.
const (
	tftpPath = "boot/"
	tftpSave = "saved.cfg"
)

// visitTFTP gets the large file and saves a small one.
func (d *demo) visitTFTP(ctx context.Context) (string, error) {
	sum := &summed{Hash: sha256.New()}
	get := &tftpTransfer{client: &tftpd.Client{Patience: startTimeout}, server: d.tftp, name: tftpPath + bigFile, verb: "got", status: io.Discard}
	began := time.Now()
	if err := get.get(ctx, sum); err != nil {
		return "", err
	}
	how := fmt.Sprintf("%s, SHA-256 right, %s", size(uint64(sum.n)), rate(sum.n, began))
	if !bytes.Equal(sum.Sum(nil), d.samples.sum[:]) {
		return "", fmt.Errorf("%d bytes came, and their SHA-256 is wrong", sum.n)
	}
	saved := []byte("hostname sw1\n")
	put := &tftpTransfer{client: get.client, server: d.tftp, name: tftpPath + tftpSave, verb: "put", status: io.Discard}
	if err := put.put(ctx, bytes.NewReader(saved), int64(len(saved))); err != nil {
		return "", err
	}
	if b, err := os.ReadFile(filepath.Join(d.samples.files, tftpSave)); err != nil || !bytes.Equal(b, saved) {
		return "", fmt.Errorf("what was saved is %q: %v", b, err)
	}
	return how + "; and a file saved there", nil
}

// summed counts what it sums up.
type summed struct {
	hash.Hash
	n int64
}

func (s *summed) Write(b []byte) (int, error) {
	s.n += int64(len(b))
	return s.Hash.Write(b)
}
