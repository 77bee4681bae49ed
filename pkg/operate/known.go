package operate

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"culvert.dev/pkg/auth"
)

// KnownSites is a file with the keys of the sites that somebody has reached, as ~/.ssh/known_hosts is one of hosts. A line
// has the name of the relay, that of the site, and a key; a site has a line for each key of its private relays. Lines
// that are empty or begin with # are for people. Its methods may be called from several goroutines; its fields are set
// before.
type KnownSites struct {
	// File is made when there is something to write into it, with its folder. Required.
	File string

	// Relay is the name that the relay has in the file, "relay.example.com:443". Required.
	Relay string

	// Accept are keys that whoever is in charge has named: each of them is taken, whatever is in the file, and added to it. A site
	// whose key is none of them is refused. If nil, a site that is not in the file is taken for what the relay says.
	Accept []string

	// OnNew is told which keys of a site were added to the file without having been named. If nil, nobody is.
	OnNew func(site string, keys []string)

	mu sync.Mutex
}

// maxKnown bounds the file, in bytes.
const maxKnown = 4 << 20

// A KeyError says that a private relay has a key that is none of its site's. Either somebody has put it there, or the one
// that was there is gone.
type KeyError struct {
	Site, Key string
	Known     []string // keys of the site, or those that were accepted
	File      string
	Accepted  bool // Known was named by whoever is in charge
}

func (e *KeyError) Error() string {
	if e.Accepted {
		return fmt.Sprintf("site %q has the key %s, which is not the one that was given (%s): nothing was sent", e.Site, e.Key, strings.Join(e.Known, ", "))
	}
	return fmt.Sprintf("the key of site %q is another one than it was, %s: nothing was sent. If a private relay of the site was added or set up anew, ask there for its key "+
		"(relay-private key) and give it with --site-key; if not, somebody may be reading along at the public relay. Known are, in %s: %s", e.Site, e.Key, e.File, strings.Join(e.Known, ", "))
}

// Trust is for Client.Trust.
func (k *KnownSites) Trust(site, key string, listed []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	known, err := k.read(site)
	if err != nil {
		return err
	}
	switch {
	case k.Accept != nil:
		if !slices.Contains(k.Accept, key) {
			return &KeyError{site, key, k.Accept, k.File, true}
		}
		if slices.Contains(known, key) {
			return nil
		}
		return k.add(site, []string{key})
	case slices.Contains(known, key):
		return nil
	case len(known) > 0:
		return &KeyError{site, key, known, k.File, false}
	}
	// The first time it is the public relay that says whose keys these are. A stand-by, which has another one, is as good.
	keys := []string{key}
	for _, other := range listed {
		if _, err := auth.ParsePublicKey(other); err == nil && !slices.Contains(keys, other) {
			keys = append(keys, other)
		}
	}
	if err := k.add(site, keys); err != nil {
		return err
	}
	if k.OnNew != nil {
		k.OnNew(site, keys)
	}
	return nil
}

// read returns the keys of a site.
func (k *KnownSites) read(site string) ([]string, error) {
	f, err := os.Open(k.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("known sites: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKnown+1))
	if err != nil {
		return nil, fmt.Errorf("known sites: %w", err)
	}
	if len(b) > maxKnown {
		return nil, fmt.Errorf("known sites: %s is longer than %d bytes", k.File, maxKnown)
	}
	keys, err := parseKnown(b, k.Relay, site)
	if err != nil {
		return nil, fmt.Errorf("known sites: %s: %w", k.File, err)
	}
	return keys, nil
}

// parseKnown finds the keys of a site. A line that makes no sense is an error, and not a site that is not known yet.
func parseKnown(b []byte, relay, site string) (keys []string, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("line %d: want RELAY SITE KEY", n)
		}
		if _, err := auth.ParsePublicKey(fields[2]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if strings.EqualFold(fields[0], relay) && fields[1] == site {
			keys = append(keys, fields[2])
		}
	}
	return keys, lines.Err()
}

// add appends keys of a site.
func (k *KnownSites) add(site string, keys []string) error {
	if err := os.MkdirAll(filepath.Dir(k.File), 0o700); err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	f, err := os.OpenFile(k.File, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	var b bytes.Buffer
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err == nil && last[0] != '\n' { // somebody has edited it
			b.WriteByte('\n')
		}
	}
	for _, key := range keys {
		fmt.Fprintf(&b, "%s %s %s\n", k.Relay, site, key)
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	return nil
}
