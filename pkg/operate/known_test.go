package operate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestKnownSites(t *testing.T) {
	one, two, three := public25519(newKey(t)), public25519(newKey(t)), public25519(newKey(t))
	file := filepath.Join(t.TempDir(), "culvert", "known_sites")
	var told []string
	k := &KnownSites{File: file, Relay: "relay.test:443", OnNew: func(site string, keys []string) { told = append(told, site+" "+strings.Join(keys, " ")) }}
	want := func(err error, key string) {
		t.Helper()
		if e, ok := errors.AsType[*KeyError](err); key == "" && err != nil || key != "" && (!ok || e.Key != key) {
			t.Errorf("error %v, want %q refused", err, key)
		}
	}

	// The first time it is believed what the relay says, of all private relays.
	want(k.Trust("office", one, []string{two, "rubbish"}), "")
	if len(told) != 1 || told[0] != "office "+one+" "+two {
		t.Errorf("told %q", told)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
		t.Errorf("file %v, %v", info, err)
	}
	// From then on it is not: neither of the relay nor of the site.
	want(k.Trust("office", two, nil), "")
	want(k.Trust("office", three, []string{three}), three)
	// Another site, and the same one of another relay, are others.
	want(k.Trust("lab", three, nil), "")
	other := &KnownSites{File: file, Relay: "other.test:443"}
	want(other.Trust("office", three, nil), "")
	want(k.Trust("office", three, nil), three)

	// What is named by hand is taken, remembered, and nothing else is taken, then or later.
	var forgotten []string
	named := &KnownSites{File: file, Relay: "relay.test:443", Accept: []string{three}, OnForget: func(site string, keys []string) {
		forgotten = append(forgotten, site+" "+strings.Join(keys, " "))
	}}
	want(named.Trust("office", one, nil), one)
	want(named.Trust("office", three, nil), "")
	want(named.Trust("office", three, nil), "")
	want(k.Trust("office", three, nil), "")
	want(k.Trust("office", one, nil), one)
	if len(forgotten) != 1 || forgotten[0] != "office "+one+" "+two {
		t.Errorf("forgotten: %q", forgotten)
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Count(string(b), three) != 3 {
		t.Errorf("file %q, %v", b, err)
	}
	if len(told) != 2 {
		t.Errorf("told %q", told)
	}

	// Several are named for a site with stand-bys: what was known of them stays, and so does what the relay says of them too.
	both := &KnownSites{File: file, Relay: "relay.test:443", Accept: []string{one, two}}
	want(both.Trust("office", two, nil), "")
	want(k.Trust("office", one, nil), one)
	want(both.Trust("office", one, nil), "")
	want(k.Trust("office", two, nil), "")
	want(k.Trust("office", three, nil), three)
	want(both.Trust("far", two, []string{three, one}), "")
	want(k.Trust("far", one, nil), "")
	want(k.Trust("far", three, nil), three)

	// A file that somebody has edited: comments, and no line break at the end. One that makes no sense lets nobody in.
	if err := os.WriteFile(file, []byte("# mine\n\nRelay.Test:443  office  "+one), 0o600); err != nil {
		t.Fatal(err)
	}
	want(k.Trust("office", one, nil), "")
	want(k.Trust("lab", two, nil), "")
	want(k.Trust("office", one, nil), "")
	for _, bad := range []string{"relay.test:443 office\n", "relay.test:443 office rsa:abc\n"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.Trust("office", one, nil); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Several processes that get to know sites at a time lose nothing of what the others have written, and a site has one first time.
func TestKnownSitesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known_sites")
	if err := os.WriteFile(file, []byte("# mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	const n = 8
	var taken atomic.Int32
	var wg sync.WaitGroup
	for i := range n {
		key := public25519(newKey(t))
		wg.Go(func() {
			k := &KnownSites{File: file, Relay: "relay.test:443"}
			if err := k.Trust(fmt.Sprint("site", i), key, nil); err != nil {
				t.Error(err)
			}
			if k.Trust("office", key, nil) == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(file)
	if lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"); err != nil || len(lines) != n+2 || lines[0] != "# mine" {
		t.Errorf("%d lines, %v: %s", len(lines), err, b)
	}
	if taken.Load() != 1 {
		t.Errorf("%d keys of one site are taken", taken.Load())
	}
}

func FuzzKnownSites(f *testing.F) {
	f.Add("relay.test:443 office ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n# x\n")
	f.Fuzz(func(t *testing.T, s string) {
		keys, err := parseKnown([]byte(s), "relay.test:443", "office")
		if err == nil {
			const other = "ed25519:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA"
			b := changeKnown([]byte(s), "relay.test:443", "office", []string{other})
			if keys, err := parseKnown(b, "relay.test:443", "office"); err != nil || len(keys) < 1 || keys[0] != other {
				t.Errorf("%q becomes %q: %q, %v", s, b, keys, err)
			}
		}
		for _, key := range keys {
			if err == nil && !strings.Contains(s, key) {
				t.Errorf("%q is not in %q", key, s)
			}
		}
	})
}
