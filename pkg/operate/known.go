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

	"culvert.dev/pkg/atomicfile"
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

	// Accept are keys that whoever is in charge has named: those count, whatever is in the file. A site whose key is none of them
	// is refused, and of one whose key is one of them all others are forgotten. If nil, a site that is not in the file is taken for what
	// the relay says.
	Accept []string

	// OnNew is told which keys of a site were added to the file without having been named. If nil, nobody is.
	OnNew func(site string, keys []string)

	// OnForget is told which keys of a site were taken out of the file because of Accept. If nil, nobody is.
	OnForget func(site string, keys []string)

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
		"(relay-private key) and give it with --site-key, as often as the site has private relays; if not, somebody may be reading along at the public relay. Known are, in %s: %s", e.Site, e.Key, e.File, strings.Join(e.Known, ", "))
}

// Trust is for Client.Trust.
func (k *KnownSites) Trust(site, key string, listed []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, known, err := k.read(site)
	if err != nil {
		return err
	}
	if keep, err := k.judge(site, key, known, listed); err != nil || slices.Equal(keep, known) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.File), 0o700); err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	unlock, err := atomicfile.Lock(k.File)
	if err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	defer unlock()
	text, known, err := k.read(site) // another process may have been faster
	if err != nil {
		return err
	}
	keep, err := k.judge(site, key, known, listed)
	if err != nil || slices.Equal(keep, known) {
		return err
	}
	file := k.File
	if linked, err := filepath.EvalSymlinks(file); err == nil {
		file = linked
	}
	if err := atomicfile.Write(file, changeKnown(text, k.Relay, site, keep), 0o600); err != nil {
		return fmt.Errorf("known sites: %w", err)
	}
	forgotten := slices.DeleteFunc(known, func(key string) bool { return slices.Contains(keep, key) })
	switch {
	case len(forgotten) > 0 && k.OnForget != nil:
		k.OnForget(site, forgotten)
	case k.Accept == nil && k.OnNew != nil:
		k.OnNew(site, keep)
	}
	return nil
}

// judge returns the keys that are known of a site from now on, those that were known in their order and then others, or why key is
// none of them.
func (k *KnownSites) judge(site, key string, known, listed []string) (keep []string, err error) {
	add := func(key string) {
		if !slices.Contains(keep, key) {
			keep = append(keep, key)
		}
	}
	switch {
	case k.Accept != nil && !slices.Contains(k.Accept, key):
		return nil, &KeyError{site, key, k.Accept, k.File, true}
	case k.Accept != nil:
		for _, old := range known {
			if slices.Contains(k.Accept, old) {
				keep = append(keep, old)
			}
		}
		add(key)
		for _, other := range k.Accept { // which may be those of other sites
			if slices.Contains(listed, other) {
				add(other)
			}
		}
		return keep, nil
	case slices.Contains(known, key):
		return known, nil
	case len(known) > 0:
		return nil, &KeyError{site, key, known, k.File, false}
	}
	// The first time it is the public relay that says whose keys these are. A stand-by, which has another one, is as good.
	add(key)
	for _, other := range listed {
		if _, err := auth.ParsePublicKey(other); err == nil {
			add(other)
		}
	}
	return keep, nil
}

// read returns the file, and the keys of a site in it.
func (k *KnownSites) read(site string) (text []byte, keys []string, err error) {
	f, err := os.Open(k.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("known sites: %w", err)
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, maxKnown+1))
	if err != nil {
		return nil, nil, fmt.Errorf("known sites: %w", err)
	}
	if len(text) > maxKnown {
		return nil, nil, fmt.Errorf("known sites: %s is longer than %d bytes", k.File, maxKnown)
	}
	if keys, err = parseKnown(text, k.Relay, site); err != nil {
		return nil, nil, fmt.Errorf("known sites: %s: %w", k.File, err)
	}
	return text, keys, nil
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

// changeKnown returns b with these keys of a site, and no others. All other lines stay as they are.
func changeKnown(b []byte, relay, site string, keys []string) []byte {
	var out bytes.Buffer
	var there []string
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) == 3 && fields[0][0] != '#' && strings.EqualFold(fields[0], relay) && fields[1] == site {
			if !slices.Contains(keys, fields[2]) {
				continue
			}
			there = append(there, fields[2])
		}
		out.Write(line)
	}
	if n := out.Len(); n > 0 && out.Bytes()[n-1] != '\n' { // somebody has edited it
		out.WriteByte('\n')
	}
	for _, key := range keys {
		if !slices.Contains(there, key) {
			fmt.Fprintf(&out, "%s %s %s\n", relay, site, key)
		}
	}
	return out.Bytes()
}
