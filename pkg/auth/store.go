package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/atomicfile"
)

// DefaultTTL is how long a join token lives.
const DefaultTTL = 24 * time.Hour

var (
	// ErrToken says that no token has this secret: it was never one, was used, was
	// replaced by a newer one, or has expired.
	ErrToken = errors.New("token is unknown, used or expired")

	// ErrUnknownSite says that the store has no site of that name.
	ErrUnknownSite = errors.New("no such site")

	// ErrUnknownKey says that a site does not have that key, or not any more.
	ErrUnknownKey = errors.New("no such key")

	// ErrTooManyKeys says that a site cannot have another key, see MaxKeys.
	ErrTooManyKeys = errors.New("too many keys")
)

// MaxKeys is how many keys a site may have, and how many tokens for further ones may
// be out.
const MaxKeys = 16

// A Site is a site that was made by an invitation.
type Site struct {
	Name         string    // unique
	Keys         []string  // "ed25519:…", those that joined first come first; none until it joins, or if all are revoked
	Revoked      []string  // keys that are not accepted any more; the last MaxKeys are remembered
	Publish      []string  // patterns of what it may publish
	InvitedUntil time.Time // when the last of the tokens that are out expires; zero: none is out
}

// A Store keeps the sites that joined and the invitations, in the file sites.json of
// a relay's state folder. It may be used by several goroutines.
type Store struct {
	file string // immutable

	mu    sync.Mutex
	state state // as in the file
}

// state is the content of the file.
type state struct {
	Sites       []storedSite `json:"sites"`       // by name
	Invitations []invitation `json:"invitations"` // by site, one each
}

type storedSite struct {
	Name    string      `json:"name"`
	Keys    []storedKey `json:"keys"` // by time
	Publish []string    `json:"publish"`

	// A site had one key before it could have several. These are read, and not written.
	Key     string     `json:"key,omitempty"`
	Joined  *time.Time `json:"joined,omitempty"`
	Revoked bool       `json:"revoked,omitempty"`
}

type storedKey struct {
	Key     string    `json:"key"`
	Joined  time.Time `json:"joined"`
	Revoked bool      `json:"revoked,omitempty"`
}

// invitation is a token that was given out. Its secret is not kept.
type invitation struct {
	Site    string    `json:"site"`
	Digest  string    `json:"sha256"` // of the secret, in hex
	Publish []string  `json:"publish,omitempty"`
	Standby bool      `json:"standby,omitempty"` // adds a key, and leaves the rest of the site as it is
	Expires time.Time `json:"expires"`
}

// site is what others see of o.
func (o *storedSite) site() Site {
	s := Site{Name: o.Name, Publish: slices.Clone(o.Publish)}
	for _, k := range o.Keys {
		if k.Revoked {
			s.Revoked = append(s.Revoked, k.Key)
		} else {
			s.Keys = append(s.Keys, k.Key)
		}
	}
	return s
}

// joined is whether a key of o is accepted.
func (o *storedSite) joined() bool {
	return slices.ContainsFunc(o.Keys, func(k storedKey) bool { return !k.Revoked })
}

// find returns the site of that name, or nil.
func (st *state) find(name string) *storedSite {
	for i := range st.Sites {
		if st.Sites[i].Name == name {
			return &st.Sites[i]
		}
	}
	return nil
}

// OpenStore opens the store of a state folder, which must exist. Without a file it is
// empty.
func OpenStore(dir string) (*Store, error) {
	s := &Store{file: filepath.Join(dir, "sites.json")}
	b, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sites: %w", err)
	}
	if err := json.Unmarshal(b, &s.state); err != nil {
		return nil, fmt.Errorf("sites: %s: %w", s.file, err)
	}
	for i := range s.state.Sites {
		o := &s.state.Sites[i]
		if o.Key != "" {
			k := storedKey{Key: o.Key, Revoked: o.Revoked}
			if o.Joined != nil {
				k.Joined = *o.Joined
			}
			o.Keys = []storedKey{k}
		}
		o.Key, o.Joined, o.Revoked = "", nil, false
	}
	return s, nil
}

// Sites returns all sites by name, those that have not joined yet included.
func (s *Store) Sites() []Site {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var list []Site
	for _, o := range s.state.Sites {
		list = append(list, o.site())
	}
	for _, o := range s.state.Invitations {
		if !now.Before(o.Expires) {
			continue
		}
		i := slices.IndexFunc(list, func(l Site) bool { return l.Name == o.Site })
		if i < 0 {
			i = len(list)
			list = append(list, Site{Name: o.Site, Publish: slices.Clone(o.Publish)})
		}
		if o.Expires.After(list[i].InvitedUntil) {
			list[i].InvitedUntil = o.Expires
		}
	}
	slices.SortFunc(list, func(a, b Site) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Invite makes the secret of a token that lets a site join within ttl, 0 meaning
// DefaultTTL, and publish what the patterns allow. Earlier invitations of that
// site end. One that has joined stays as it is until the token is used; it
// has the new key alone, and the new patterns, then.
func (s *Store) Invite(site string, publish []string, ttl time.Duration) (secret []byte, expires time.Time, err error) {
	return s.invite(invitation{Site: site, Publish: slices.Clone(publish)}, ttl)
}

// InviteStandby makes the secret of a token that gives a site one more key: that of a
// private relay which stands by. Other invitations stay. The error is ErrUnknownSite
// if no private relay of the site has joined, or ErrTooManyKeys.
func (s *Store) InviteStandby(site string, ttl time.Duration) (secret []byte, expires time.Time, err error) {
	return s.invite(invitation{Site: site, Standby: true}, ttl)
}

func (s *Store) invite(in invitation, ttl time.Duration) (secret []byte, expires time.Time, err error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	secret = make([]byte, secretLen)
	rand.Read(secret)
	digest := sha256.Sum256(secret)
	in.Digest = hex.EncodeToString(digest[:])
	in.Expires = time.Now().Add(ttl).UTC().Truncate(time.Second)
	err = s.change(func(st *state) error {
		if in.Standby {
			o := st.find(in.Site)
			if o == nil || !o.joined() {
				return fmt.Errorf("%w: %q", ErrUnknownSite, in.Site)
			}
			n := len(o.site().Keys)
			for _, other := range st.Invitations {
				if other.Site == in.Site && other.Standby {
					n++
				}
			}
			if n >= MaxKeys {
				return fmt.Errorf("%w: site %q has %d, those invited included", ErrTooManyKeys, in.Site, n)
			}
		} else {
			st.Invitations = slices.DeleteFunc(st.Invitations, func(o invitation) bool { return o.Site == in.Site })
		}
		st.Invitations = append(st.Invitations, in)
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return secret, in.Expires, nil
}

// Redeem uses up the token with that secret, and makes key the key of its site, or
// one of its keys. When it returns, that is on disk. The error is ErrToken if there
// is no such token.
func (s *Store) Redeem(secret []byte, key string) (Site, error) {
	if _, err := ParsePublicKey(key); err != nil {
		return Site{}, err
	}
	sum := sha256.Sum256(secret)
	digest := hex.EncodeToString(sum[:])
	var made Site
	err := s.change(func(st *state) error {
		found := -1
		for i, o := range st.Invitations {
			if subtle.ConstantTimeCompare([]byte(o.Digest), []byte(digest)) == 1 {
				found = i
			}
		}
		if found < 0 || !time.Now().Before(st.Invitations[found].Expires) {
			return ErrToken
		}
		in := st.Invitations[found]
		st.Invitations = slices.Delete(st.Invitations, found, found+1)
		site := storedSite{Name: in.Site, Publish: in.Publish}
		if in.Standby {
			o := st.find(in.Site)
			if o == nil { // it is there as long as the invitation is, unless somebody has edited the file
				return ErrToken
			}
			site = *o
			site.Keys = slices.DeleteFunc(slices.Clone(site.Keys), func(k storedKey) bool { return k.Key == key })
		} else {
			st.Invitations = slices.DeleteFunc(st.Invitations, func(o invitation) bool { return o.Site == in.Site })
		}
		site.Keys = append(site.Keys, storedKey{Key: key, Joined: time.Now().UTC().Truncate(time.Second)})
		st.Sites = slices.DeleteFunc(st.Sites, func(o storedSite) bool { return o.Name == in.Site })
		st.Sites = append(st.Sites, site)
		made = site.site()
		return nil
	})
	if err != nil {
		return Site{}, err
	}
	return made, nil
}

// Revoke ends a key of a site, or with "" all its keys and its invitations. The keys are
// remembered, so that who comes with them can be told. The error is ErrUnknownSite or
// ErrUnknownKey.
func (s *Store) Revoke(site, key string) error {
	return s.change(func(st *state) error {
		o, known := st.find(site), false
		if o != nil {
			o.Keys = slices.Clone(o.Keys)
			for i, k := range o.Keys {
				if key == "" || key == k.Key && !k.Revoked {
					o.Keys[i].Revoked, known = true, true
				}
			}
			gone := len(o.Keys) - len(o.site().Keys) - MaxKeys // too many to remember
			o.Keys = slices.DeleteFunc(o.Keys, func(k storedKey) bool {
				if k.Revoked && gone > 0 {
					gone--
					return true
				}
				return false
			})
		}
		switch {
		case key != "" && o == nil:
			return fmt.Errorf("%w: %q", ErrUnknownSite, site)
		case key != "" && !known:
			return fmt.Errorf("%w: %q", ErrUnknownKey, key)
		case key != "" && o.joined():
			return nil
		}
		n := len(st.Invitations)
		st.Invitations = slices.DeleteFunc(st.Invitations, func(o invitation) bool { return o.Site == site })
		if !known && len(st.Invitations) == n {
			return fmt.Errorf("%w: %q", ErrUnknownSite, site)
		}
		return nil
	})
}

// change applies f to a copy of the state, and writes that before it is ours.
func (s *Store) change(f func(*state) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := state{Sites: slices.Clone(s.state.Sites), Invitations: slices.Clone(s.state.Invitations)}
	if err := f(&next); err != nil {
		return err
	}
	now := time.Now()
	next.Invitations = slices.DeleteFunc(next.Invitations, func(o invitation) bool { return !now.Before(o.Expires) })
	slices.SortFunc(next.Sites, func(a, b storedSite) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(next.Invitations, func(a, b invitation) int { return strings.Compare(a.Site, b.Site) })
	b, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("sites: %w", err)
	}
	s.state = next
	return nil
}

// OpenSecret reads 32 random bytes from a file of a state folder, and makes them if
// there are none.
func OpenSecret(dir, name string) ([]byte, error) {
	file := filepath.Join(dir, name)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b = make([]byte, secretLen)
		rand.Read(b)
		err = atomicfile.Write(file, b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	if len(b) != secretLen {
		return nil, fmt.Errorf("secret: %s has %d bytes, not %d; remove it, and a new one is made", file, len(b), secretLen)
	}
	return b, nil
}

// AdminToken is the operators' token, as far as a relay has to know it.
type AdminToken struct{ digest [sha256.Size]byte }

// OpenAdminToken reads the operators' token from the file admin.token of a state
// folder, and makes it if there is none.
func OpenAdminToken(dir string) (*AdminToken, error) {
	file := filepath.Join(dir, "admin.token")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		var secret [secretLen]byte
		rand.Read(secret[:])
		b = append(base64.RawURLEncoding.AppendEncode(nil, secret[:]), '\n')
		err = atomicfile.Write(file, b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("admin token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 20 {
		return nil, fmt.Errorf("admin token: %s is too short to be one; remove it, and a new one is made", file)
	}
	return &AdminToken{sha256.Sum256([]byte(token))}, nil
}

// Matches reports whether token is the operators' token, in constant time.
func (t *AdminToken) Matches(token string) bool {
	digest := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(digest[:], t.digest[:]) == 1
}
