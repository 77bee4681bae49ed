package main

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/auth"
)

// The public half of the site's key is that of the file, and of the one that private.toml names.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	file, config := filepath.Join(dir, "site.key"), filepath.Join(dir, "private.toml")
	pub, err := auth.GenerateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("relay = \"relay.example.com\"\nsite = \"office\"\nkey = \"site.key\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"key", file}, {"key", "--config", config}} {
		var stdout, stderr bytes.Buffer
		if code := command(t.Context(), args, nil, &stdout, &stderr); code != 0 || stdout.String() != auth.FormatPublicKey(pub)+"\n" {
			t.Errorf("%q: %d, %s%s", args, code, &stdout, &stderr)
		}
	}
	var stderr bytes.Buffer
	if code := command(t.Context(), []string{"key", file, "--config", config}, nil, &stderr, &stderr); code != 2 {
		t.Errorf("both: %d, %s", code, &stderr)
	}
}

// Keys of operators are read from private.toml; an empty list is a mistake, as it might be meant either way.
func TestOperators(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "site.key")
	pub, err := auth.GenerateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	key := auth.FormatPublicKey(pub)
	for line, want := range map[string]string{
		"":                                   "0",
		fmt.Sprintf("operators = %q", key):   "1 the key",
		fmt.Sprintf("operators = [%q]", key): "1 the key",
		`operators = "none"`:                 "1 nobody",
		`operators = []`:                     "operators is empty",
		`operators = ["alice"]`:              "tunnelctl operator key",
		fmt.Sprintf("operators = [%q, \"none\"]", key): "tunnelctl operator key",
	} {
		config := filepath.Join(dir, "private.toml")
		if err := os.WriteFile(config, []byte("relay = \"relay.example.com\"\nsite = \"office\"\nkey = \"site.key\"\n"+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := load(config)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(len(s.operators))
			for _, k := range s.operators {
				switch {
				case k.Equal(pub):
					got += " the key"
				case k.Equal(ed25519.PublicKey(nil)):
					got += " nobody"
				}
			}
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}
