package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/atomicfile"
)

// A Role is what an operator may do. Each one may do what those before it may.
type Role uint8

// The roles.
const (
	NoRole     Role = iota // may do nothing
	Viewer                 // sees what the relay does
	Operate                // ends, repeats and replaces what is under way; opens streams to services
	Administer             // changes who may come in: sites, operators
)

var roles = [...]string{NoRole: "none", Viewer: "viewer", Operate: "operator", Administer: "admin"}

func (r Role) String() string {
	if int(r) < len(roles) {
		return roles[r]
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// ParseRole reads what String writes, but for NoRole.
func ParseRole(s string) (Role, error) {
	if i := slices.Index(roles[:], s); i > int(NoRole) {
		return Role(i), nil
	}
	return NoRole, fmt.Errorf("%w %q: want viewer, operator or admin", ErrRole, s)
}

// MarshalText writes a role as String does.
func (r Role) MarshalText() ([]byte, error) {
	if r == NoRole || int(r) >= len(roles) {
		return nil, fmt.Errorf("%v is not to be stored", r)
	}
	return []byte(r.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (r *Role) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRole(string(b))
	return err
}

var (
	// ErrRole says that there is no such role, or that it is above that of the operator.
	ErrRole = errors.New("no such role")

	// ErrOperatorName says that nobody can have that name.
	ErrOperatorName = errors.New("bad name of an operator")

	// ErrUnknownOperator says that there is no operator of that name.
	ErrUnknownOperator = errors.New("no such operator")

	// ErrOperatorExists says that there is one already.
	ErrOperatorExists = errors.New("operator exists")

	// ErrUnknownToken says that no token has that ID.
	ErrUnknownToken = errors.New("no such token")

	// ErrTooMany says that there can be no more operators, or no more tokens of one.
	ErrTooMany = errors.New("too many")

	// ErrTTL says that a token cannot live so long.
	ErrTTL = errors.New("bad lifetime of a token")

	// ErrNote says that a note is too long, or not printable.
	ErrNote = errors.New("bad note")
)

// Bounds of operators and their tokens.
const (
	MaxOperators       = 1000
	MaxOperatorTokens  = 64  // of one operator
	maxOperatorName    = 64  // bytes
	maxNote            = 200 // bytes
	maxOperatorsFile   = 64 << 20
	OperatorTTL        = 90 * 24 * time.Hour       // that a token lives unless something else is said
	MaxOperatorTTL     = 10 * 365 * 24 * time.Hour // that it may live unless it never expires
	operatorTokenStart = "cvo_"

	// AdminName is the operator whose token is in the file admin.token, and AdminTokenID the ID of that token. It
	// cannot be removed, so whoever can read the state folder can put everything else right.
	AdminName    = "admin"
	AdminTokenID = "admin.token"
)

// lastUseEvery is how exactly it is known when a token was last used.
const lastUseEvery = time.Minute

// Identity is what a token proves. Two of the same token are equal unless something about it has changed.
type Identity struct {
	Operator string
	Role     Role      // of the token: not above that of the operator
	Token    string    // ID
	Expires  time.Time // zero: never
}

// Operator is somebody who may use a relay's API.
type Operator struct {
	Name     string
	Role     Role
	Created  time.Time
	Tokens   int       // that are good
	LastUsed time.Time // when one of them last was; zero: never
}

// OperatorToken is what is known of a token of an operator.
type OperatorToken struct {
	Identity
	Note     string
	Created  time.Time
	LastUsed time.Time  // zero: never
	LastFrom netip.Addr // where it was used from then
}

// Operators are those of a relay, in the file operators.json of its state folder, and the one of admin.token. Of
// tokens there is a digest alone: they have 256 random bits, so that needs no salt, and finding one by its digest
// tells nobody who measures time anything. Operators may be used by several goroutines.
type Operators struct {
	file string // immutable
	dir  string // immutable

	writing sync.Mutex // held by whoever changes state, before mu

	mu        sync.Mutex // never held while the disk is waited for
	admin     *AdminToken
	state     operatorState
	tokens    map[[sha256.Size]byte]Identity
	ids       map[string]Identity
	uses      map[string]use // by token ID
	unsaved   bool           // uses has something that the file has not
	followers map[*follower]struct{}
}

// use is when and from where a token was used last.
type use struct {
	at   time.Time
	from netip.Addr
}

// follower wants to know when an identity is no longer good.
type follower struct {
	id    Identity
	end   func()
	timer *time.Timer // nil: it does not expire
}

// operatorState is the content of the file.
type operatorState struct {
	Operators []storedOperator `json:"operators"` // by name
}

type storedOperator struct {
	Name    string        `json:"name"`
	Role    Role          `json:"role"`
	Created time.Time     `json:"created"`
	Tokens  []storedToken `json:"tokens"` // by time
}

type storedToken struct {
	ID       string     `json:"id"`
	Digest   string     `json:"sha256"`        // of the token, in hex
	Role     Role       `json:"role,omitzero"` // at most; NoRole: that of the operator
	Note     string     `json:"note,omitempty"`
	Created  time.Time  `json:"created"`
	Expires  *time.Time `json:"expires,omitempty"` // nil: never
	LastUsed *time.Time `json:"last_used,omitempty"`
	LastFrom netip.Addr `json:"last_from,omitzero"`
}

// identity is what the token of an operator proves.
func (o *storedOperator) identity(t *storedToken) Identity {
	id := Identity{Operator: o.Name, Role: o.Role, Token: t.ID}
	if t.Role != NoRole {
		id.Role = min(o.Role, t.Role)
	}
	if t.Expires != nil {
		id.Expires = t.Expires.UTC()
	}
	return id
}

// good is whether the identity has not expired.
func (id Identity) good(now time.Time) bool { return id.Expires.IsZero() || now.Before(id.Expires) }

// find returns the operator of that name, or nil.
func (st *operatorState) find(name string) *storedOperator {
	for i := range st.Operators {
		if st.Operators[i].Name == name {
			return &st.Operators[i]
		}
	}
	return nil
}

// clone copies all that change may change.
func (st *operatorState) clone() operatorState {
	next := operatorState{Operators: slices.Clone(st.Operators)}
	for i := range next.Operators {
		next.Operators[i].Tokens = slices.Clone(next.Operators[i].Tokens)
	}
	return next
}

// OpenOperators opens those of a state folder, which must exist, and makes its admin.token if there is none. Without
// operators.json nobody else is there.
func OpenOperators(dir string) (*Operators, error) {
	admin, err := OpenAdminToken(dir)
	if err != nil {
		return nil, err
	}
	o := &Operators{
		file: filepath.Join(dir, "operators.json"), dir: dir, admin: admin,
		uses: make(map[string]use), followers: make(map[*follower]struct{}),
	}
	f, err := os.Open(o.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("operators: %w", err)
	default:
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxOperatorsFile+1))
		if err == nil {
			o.state, err = parseOperators(b)
		}
		if err != nil {
			return nil, fmt.Errorf("operators: %s: %w", o.file, err)
		}
	}
	for _, one := range o.state.Operators {
		for _, t := range one.Tokens {
			if t.LastUsed != nil {
				o.uses[t.ID] = use{*t.LastUsed, t.LastFrom}
			}
		}
	}
	o.indexLocked()
	return o, nil
}

// parseOperators reads the file. Somebody may have edited it.
func parseOperators(b []byte) (operatorState, error) {
	var st operatorState
	if len(b) > maxOperatorsFile {
		return st, fmt.Errorf("has more than %d bytes", maxOperatorsFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&st); err != nil {
		return st, err
	}
	if _, err := d.Token(); err != io.EOF {
		return st, errors.New("something follows the operators")
	}
	if len(st.Operators) > MaxOperators {
		return st, fmt.Errorf("%w: %d operators, more than %d", ErrTooMany, len(st.Operators), MaxOperators)
	}
	ids, digests, names := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, o := range st.Operators {
		switch err := checkOperatorName(o.Name); {
		case err != nil:
			return st, err
		case names[o.Name]:
			return st, fmt.Errorf("%w: %q is there twice", ErrOperatorExists, o.Name)
		case o.Role == NoRole:
			return st, fmt.Errorf("%w: operator %q has none", ErrRole, o.Name)
		case len(o.Tokens) > MaxOperatorTokens:
			return st, fmt.Errorf("%w: operator %q has %d tokens, more than %d", ErrTooMany, o.Name, len(o.Tokens), MaxOperatorTokens)
		}
		names[o.Name] = true
		for _, t := range o.Tokens {
			digest, err := hex.DecodeString(t.Digest)
			switch {
			case err != nil || len(digest) != sha256.Size || t.Digest != strings.ToLower(t.Digest):
				return st, fmt.Errorf("a token of %q has a sha256 that is none", o.Name)
			case t.ID == "" || len(t.ID) > maxOperatorName || t.ID == AdminTokenID || ids[t.ID] || digests[t.Digest]:
				return st, fmt.Errorf("token %q of %q has no ID of its own, or is there twice", t.ID, o.Name)
			}
			if err := checkNote(t.Note); err != nil {
				return st, fmt.Errorf("token %q of %q: %w", t.ID, o.Name, err)
			}
			ids[t.ID], digests[t.Digest] = true, true
		}
	}
	slices.SortFunc(st.Operators, func(a, b storedOperator) int { return strings.Compare(a.Name, b.Name) })
	return st, nil
}

// checkOperatorName says what is wrong with a name. Addresses of e-mail are good ones.
func checkOperatorName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrOperatorName)
	case len(name) > maxOperatorName:
		return fmt.Errorf("%w: it has %d bytes, more than %d", ErrOperatorName, len(name), maxOperatorName)
	case name == AdminName:
		return fmt.Errorf("%w: %q is who has the relay's admin.token", ErrOperatorName, name)
	}
	for i := range len(name) {
		c := name[i]
		isAlnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !isAlnum && (i == 0 || !strings.ContainsRune("._-@+", rune(c))) {
			return fmt.Errorf("%w %q: want letters, digits and . _ - @ +, starting with a letter or digit", ErrOperatorName, name)
		}
	}
	return nil
}

func checkNote(note string) error {
	if len(note) > maxNote {
		return fmt.Errorf("%w: it has %d bytes, more than %d", ErrNote, len(note), maxNote)
	}
	for _, c := range note {
		if c < ' ' || c >= 0x7f && c < 0xa0 || c == '\ufffd' {
			return fmt.Errorf("%w: it has characters that cannot be shown", ErrNote)
		}
	}
	return nil
}

// indexLocked makes the maps of the state.
func (o *Operators) indexLocked() {
	o.tokens, o.ids = make(map[[sha256.Size]byte]Identity), make(map[string]Identity)
	for i := range o.state.Operators {
		one := &o.state.Operators[i]
		for j := range one.Tokens {
			t := &one.Tokens[j]
			var digest [sha256.Size]byte
			hex.Decode(digest[:], []byte(t.Digest))
			o.tokens[digest] = one.identity(t)
			o.ids[t.ID] = one.identity(t)
		}
	}
}

func adminIdentity() Identity {
	return Identity{Operator: AdminName, Role: Administer, Token: AdminTokenID}
}

// Verify returns who has that token, and remembers that it was used from there. It does not touch the disk.
func (o *Operators) Verify(token string, from netip.Addr) (Identity, bool) {
	digest := sha256.Sum256([]byte(token))
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	id, ok := o.tokens[digest]
	if !ok {
		if !o.admin.Matches(token) {
			return Identity{}, false
		}
		id = adminIdentity()
	}
	if !id.good(now) {
		return Identity{}, false
	}
	if last := o.uses[id.Token]; now.Sub(last.at) >= lastUseEvery || last.from != from {
		o.uses[id.Token] = use{now.UTC().Truncate(time.Second), from}
		o.unsaved = true
	}
	return id, true
}

// Current returns what a token proves now, by its ID; false if it proves nothing any more.
func (o *Operators) Current(token string) (Identity, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.currentLocked(token)
}

func (o *Operators) currentLocked(token string) (Identity, bool) {
	if token == AdminTokenID {
		return adminIdentity(), true
	}
	id, ok := o.ids[token]
	return id, ok && id.good(time.Now())
}

// Follow calls end as soon as id is not what its token proves any more: it was revoked, has expired, or has another
// role; at once if that is so already. It is called once, from any goroutine, and must not block or use o. Stop has it
// not called from then on.
func (o *Operators) Follow(id Identity, end func()) (stop func()) {
	f := &follower{id: id, end: end}
	o.mu.Lock()
	now, ok := o.currentLocked(id.Token)
	if !ok || now != id {
		o.mu.Unlock()
		end()
		return func() {}
	}
	o.followers[f] = struct{}{}
	if !id.Expires.IsZero() {
		f.timer = time.AfterFunc(time.Until(id.Expires), func() { o.endFollower(f) })
	}
	o.mu.Unlock()
	return func() { o.drop(f) }
}

// drop forgets a follower, and reports whether there was one.
func (o *Operators) drop(f *follower) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.followers[f]
	delete(o.followers, f)
	if f.timer != nil {
		f.timer.Stop()
	}
	return ok
}

func (o *Operators) endFollower(f *follower) {
	if o.drop(f) {
		f.end()
	}
}

// checkFollowers ends those whose identity is no longer good.
func (o *Operators) checkFollowers() {
	o.endFollowers(func(f *follower) bool {
		now, ok := o.currentLocked(f.id.Token)
		return !ok || now != f.id
	})
}

// endFollowers ends those that are over, which is asked with the lock held.
func (o *Operators) endFollowers(over func(*follower) bool) {
	var ended []*follower
	o.mu.Lock()
	for f := range o.followers {
		if over(f) {
			ended = append(ended, f)
		}
	}
	o.mu.Unlock()
	for _, f := range ended {
		o.endFollower(f)
	}
}

// ReadAdminToken reads admin.token again: somebody may have removed or replaced it, because it has become known.
func (o *Operators) ReadAdminToken() error {
	admin, err := OpenAdminToken(o.dir)
	if err != nil {
		return err
	}
	o.mu.Lock()
	changed := o.admin.digest != admin.digest
	o.admin = admin
	o.mu.Unlock()
	if changed {
		o.endFollowers(func(f *follower) bool { return f.id.Token == AdminTokenID })
	}
	return nil
}

// List returns the operators by name, but for that of admin.token.
func (o *Operators) List() []Operator {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	var list []Operator
	for i := range o.state.Operators {
		s := &o.state.Operators[i]
		one := Operator{Name: s.Name, Role: s.Role, Created: s.Created}
		for j := range s.Tokens {
			if s.identity(&s.Tokens[j]).good(now) {
				one.Tokens++
			}
			if at := o.uses[s.Tokens[j].ID].at; at.After(one.LastUsed) {
				one.LastUsed = at
			}
		}
		list = append(list, one)
	}
	return list
}

// Tokens returns those of an operator, or of all with "", but for admin.token; expired ones as long as they are remembered.
func (o *Operators) Tokens(operator string) []OperatorToken {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []OperatorToken
	for i := range o.state.Operators {
		s := &o.state.Operators[i]
		if operator != "" && operator != s.Name {
			continue
		}
		for j := range s.Tokens {
			t := &s.Tokens[j]
			last := o.uses[t.ID]
			list = append(list, OperatorToken{Identity: s.identity(t), Note: t.Note, Created: t.Created, LastUsed: last.at, LastFrom: last.from})
		}
	}
	return list
}

// Add makes an operator, who has no token yet.
func (o *Operators) Add(name string, role Role) error {
	if err := checkOperatorName(name); err != nil {
		return err
	}
	if role == NoRole || int(role) >= len(roles) {
		return fmt.Errorf("%w: %v", ErrRole, role)
	}
	return o.change(func(st *operatorState) error {
		switch {
		case st.find(name) != nil:
			return fmt.Errorf("%w: %q", ErrOperatorExists, name)
		case len(st.Operators) >= MaxOperators:
			return fmt.Errorf("%w: there are %d operators", ErrTooMany, MaxOperators)
		}
		st.Operators = append(st.Operators, storedOperator{Name: name, Role: role, Created: time.Now().UTC().Truncate(time.Second), Tokens: []storedToken{}})
		return nil
	})
}

// SetRole gives an operator another role, and those tokens that were made without one of their own.
func (o *Operators) SetRole(name string, role Role) error {
	if role == NoRole || int(role) >= len(roles) {
		return fmt.Errorf("%w: %v", ErrRole, role)
	}
	return o.change(func(st *operatorState) error {
		one := st.find(name)
		if one == nil {
			return fmt.Errorf("%w: %q", ErrUnknownOperator, name)
		}
		one.Role = role
		return nil
	})
}

// Remove forgets an operator and all tokens of that name.
func (o *Operators) Remove(name string) error {
	return o.change(func(st *operatorState) error {
		if st.find(name) == nil {
			return fmt.Errorf("%w: %q", ErrUnknownOperator, name)
		}
		st.Operators = slices.DeleteFunc(st.Operators, func(s storedOperator) bool { return s.Name == name })
		return nil
	})
}

// Create makes a token for an operator. Role NoRole is that of the operator, whatever that will be;
// another one is the most that the token is good for, and not above it. A ttl of 0
// means OperatorTTL, and a negative one that it never expires. The token is not kept.
func (o *Operators) Create(operator string, role Role, ttl time.Duration, note string) (token string, id Identity, err error) {
	switch {
	case ttl > MaxOperatorTTL:
		return "", Identity{}, fmt.Errorf("%w: at most %d days", ErrTTL, MaxOperatorTTL/(24*time.Hour))
	case ttl == 0:
		ttl = OperatorTTL
	}
	if err := checkNote(note); err != nil {
		return "", Identity{}, err
	}
	var secret [secretLen]byte
	rand.Read(secret[:])
	token = operatorTokenStart + base64.RawURLEncoding.EncodeToString(secret[:])
	digest := sha256.Sum256([]byte(token))
	now := time.Now().UTC().Truncate(time.Second)
	t := storedToken{Digest: hex.EncodeToString(digest[:]), Role: role, Note: note, Created: now}
	if ttl > 0 {
		expires := now.Add(ttl)
		t.Expires = &expires
	}
	err = o.change(func(st *operatorState) error {
		one := st.find(operator)
		if one == nil {
			return fmt.Errorf("%w: %q", ErrUnknownOperator, operator)
		}
		switch {
		case t.Role > one.Role:
			return fmt.Errorf("%w: %v is above that of %q, which is %v", ErrRole, t.Role, operator, one.Role)
		case len(one.Tokens) >= MaxOperatorTokens:
			return fmt.Errorf("%w: %q has %d tokens", ErrTooMany, operator, MaxOperatorTokens)
		}
		t.ID = st.newID()
		one.Tokens = append(one.Tokens, t)
		id = one.identity(&t)
		return nil
	})
	if err != nil {
		return "", Identity{}, err
	}
	return token, id, nil
}

// newID returns one that no token has.
func (st *operatorState) newID() string {
	for {
		var b [4]byte
		rand.Read(b[:])
		id := hex.EncodeToString(b[:])
		if !slices.ContainsFunc(st.Operators, func(o storedOperator) bool {
			return slices.ContainsFunc(o.Tokens, func(t storedToken) bool { return t.ID == id })
		}) {
			return id
		}
	}
}

// Revoke ends a token, by its ID.
func (o *Operators) Revoke(token string) error {
	return o.change(func(st *operatorState) error {
		for i := range st.Operators {
			one := &st.Operators[i]
			if j := slices.IndexFunc(one.Tokens, func(t storedToken) bool { return t.ID == token }); j >= 0 {
				one.Tokens = slices.Delete(one.Tokens, j, j+1)
				return nil
			}
		}
		return fmt.Errorf("%w: %q", ErrUnknownToken, token)
	})
}

// Save writes when tokens were last used, if the file does not say so yet.
func (o *Operators) Save() error {
	o.mu.Lock()
	unsaved := o.unsaved
	o.mu.Unlock()
	if !unsaved {
		return nil
	}
	return o.change(func(*operatorState) error { return nil })
}

// rememberExpired is how long a token is shown that has expired, so that its owner can see why it does not work.
const rememberExpired = 30 * 24 * time.Hour

// change applies f to a copy of the state, and writes that before it is ours. Then it ends followers.
func (o *Operators) change(f func(*operatorState) error) error {
	o.writing.Lock()
	defer o.writing.Unlock()
	o.mu.Lock()
	next := o.state.clone() // nobody else changes it now
	uses := maps.Clone(o.uses)
	o.mu.Unlock()

	old := time.Now().Add(-rememberExpired)
	for i := range next.Operators {
		one := &next.Operators[i]
		one.Tokens = slices.DeleteFunc(one.Tokens, func(t storedToken) bool { return t.Expires != nil && t.Expires.Before(old) })
	}
	if err := f(&next); err != nil {
		return err
	}
	for i := range next.Operators {
		for j := range next.Operators[i].Tokens {
			t := &next.Operators[i].Tokens[j]
			if u, ok := uses[t.ID]; ok {
				t.LastUsed, t.LastFrom = &u.at, u.from
			}
		}
	}
	slices.SortFunc(next.Operators, func(a, b storedOperator) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(o.file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("operators: %w", err)
	}
	o.mu.Lock()
	o.state = next
	o.indexLocked()
	maps.DeleteFunc(o.uses, func(token string, _ use) bool { _, ok := o.ids[token]; return !ok && token != AdminTokenID })
	o.unsaved = !maps.Equal(o.uses, uses) && o.unsaved
	o.mu.Unlock()
	o.checkFollowers()
	return nil
}
