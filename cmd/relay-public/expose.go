package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
)

// Bounds of ephemeral sites.
const (
	maxExposed        = 256 // in all
	maxExposedOfOne   = 8   // of one operator
	maxExposedPublish = 16  // URLs of one
	exposedTime       = time.Minute
	sweepTime         = 5 * time.Second
)

// exposed are the ephemeral sites: those that operators have made by `tunnelctl expose`. They are in memory alone. One is
// gone exposedTime after its last session, or as soon as the token is not good any more that it was made with.
type exposed struct {
	operators *auth.Operators                        // immutable, as is the rest of this group
	sessions  func() map[string]bool                 // names of sites that have some; true: with a link
	changed   func()                                 // the sites have changed; not called with mu held
	taken     func(name string) bool                 // there is another site of that name
	others    func() []public.Site                   // those that are not ephemeral
	reached   func() (address, ca string, err error) // where private relays find this one; see admin.Exposed
	wake      chan struct{}                          // of one: a token is not good any more

	// Both are read with another lock held.
	now   atomic.Pointer[[]public.Site]   // what list has
	allow atomic.Pointer[[]relay.Pattern] // of what operators may publish who are no admins

	mu   sync.Mutex
	list []*ephemeral
}

type ephemeral struct {
	site     public.Site
	operator string
	seen     time.Time // when it had a session last, or was made
	over     bool      // the token is not good any more
	stop     func()    // following that
}

// setAllowed takes what a configuration says.
func (e *exposed) setAllowed(patterns []relay.Pattern) { e.allow.Store(&patterns) }

// allowed are the patterns of what operators may publish.
func (e *exposed) allowed() []relay.Pattern {
	if p := e.allow.Load(); p != nil {
		return *p
	}
	return nil
}

// sites are those that there are.
func (e *exposed) sites() []public.Site {
	if p := e.now.Load(); p != nil {
		return *p
	}
	return nil
}

// storeLocked has sites see what has changed.
func (e *exposed) storeLocked() {
	list := make([]public.Site, 0, len(e.list))
	for _, one := range e.list {
		list = append(list, one.site)
	}
	e.now.Store(&list)
}

// has reports whether there is one of that name.
func (e *exposed) has(name string) bool {
	return slices.ContainsFunc(e.sites(), func(s public.Site) bool { return s.Name == name })
}

// remove ends one, and reports whether there was one.
func (e *exposed) remove(name string) bool {
	e.mu.Lock()
	i := slices.IndexFunc(e.list, func(one *ephemeral) bool { return one.site.Name == name && one.stop != nil })
	if i < 0 {
		e.mu.Unlock()
		return false
	}
	stop := e.list[i].stop
	e.list = slices.Delete(e.list, i, i+1)
	e.storeLocked()
	e.mu.Unlock()
	stop()
	e.changed()
	return true
}

// add makes one.
func (e *exposed) add(ctx context.Context, in admin.Expose) (*admin.Exposed, error) {
	who, ok := admin.OperatorOf(ctx)
	if !ok {
		return nil, &admin.Error{Code: http.StatusForbidden, Text: "nobody knows who asks"}
	}
	return e.addFor(who, in)
}

// addFor makes one for an operator.
func (e *exposed) addFor(who auth.Identity, in admin.Expose) (*admin.Exposed, error) {
	one := &ephemeral{operator: who.Operator, seen: time.Now(), site: public.Site{Name: in.Name, Keys: []string{in.Key}}}
	if in.Name == "" {
		one.site.Name = "expose-" + strings.ToLower(rand.Text()[:8])
	}
	if err := relay.CheckName(one.site.Name); err != nil {
		return nil, &admin.Error{Code: http.StatusBadRequest, Text: "site: " + err.Error()}
	}
	if _, err := auth.ParsePublicKey(in.Key); err != nil {
		return nil, &admin.Error{Code: http.StatusBadRequest, Text: err.Error()}
	}
	if len(in.Publish) > maxExposedPublish {
		return nil, &admin.Error{Code: http.StatusBadRequest, Text: fmt.Sprintf("publish has %d URLs: want %d at most", len(in.Publish), maxExposedPublish)}
	}
	if len(in.Publish) == 0 {
		url, err := e.choose()
		if err != nil {
			return nil, err
		}
		in.Publish = []string{url}
	}
	address, ca, err := e.reached()
	if err != nil {
		return nil, err
	}
	if e.taken(one.site.Name) {
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("there is a site %q already: leave the name out, and one is chosen", one.site.Name)}
	}
	others := e.others()
	var urls []relay.Publish
	for _, text := range in.Publish {
		url, err := relay.ParsePublish(text)
		if err != nil {
			return nil, &admin.Error{Code: http.StatusBadRequest, Text: err.Error()}
		}
		pattern, err := relay.ParsePattern(text)
		if err != nil {
			return nil, &admin.Error{Code: http.StatusBadRequest, Text: err.Error()}
		}
		if strings.Contains(url.Host, "*") {
			return nil, &admin.Error{Code: http.StatusBadRequest, Text: fmt.Sprintf("%s: an ephemeral site publishes one name, not all below another one", text)}
		}
		for _, site := range others {
			// A pattern with a wildcard is for whatever comes, and who publishes first has it. Without one it is that
			// site's own, whether it is there at the moment or not.
			if slices.ContainsFunc(site.Publish, func(p relay.Pattern) bool { return !isWide(p) && p.Allows(url) }) {
				return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("%s is what site %q publishes: take another name", text, site.Name)}
			}
		}
		one.site.Publish = append(one.site.Publish, pattern)
		urls = append(urls, url)
	}
	sessions := e.sessions()
	e.mu.Lock()
	old, err := e.addLocked(one, in.Publish, urls, who, sessions)
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, o := range old {
		o.stop()
	}
	stop := e.operators.Follow(who, func() { e.end(one) })
	e.mu.Lock()
	one.stop = stop
	e.mu.Unlock()
	e.changed()
	return &admin.Exposed{Site: one.site.Name, Publish: in.Publish, Relay: address, CA: ca}, nil
}

// choose makes a URL that operators may publish.
func (e *exposed) choose() (string, error) {
	for _, p := range e.allowed() {
		if rest, ok := strings.CutPrefix(p.Host, "*."); ok && p.Scheme == "https" {
			p.Host = strings.ToLower(rand.Text()[:10]) + "." + rest
			return p.String(), nil
		}
	}
	return "", &admin.Error{Code: http.StatusBadRequest, Text: "the relay has no name to choose: say which with --publish, or add \"https://*.try.DOMAIN\" to [operators] expose in its public.toml"}
}

// isWide reports whether a pattern is for more than one name or port.
func isWide(p relay.Pattern) bool {
	return strings.HasPrefix(p.Host, "*") || p.MinPort != p.MaxPort
}

// addLocked adds one, and returns those that it takes the place of: what the same operator has exposed at the same URL, by a
// program that is not there any more.
func (e *exposed) addLocked(one *ephemeral, texts []string, urls []relay.Publish, who auth.Identity, sessions map[string]bool) (old []*ephemeral, err error) {
	for i, url := range urls {
		allowed := slices.ContainsFunc(e.allowed(), func(p relay.Pattern) bool { return p.Allows(url) })
		if !allowed && who.Role < auth.Administer {
			return nil, &admin.Error{Code: http.StatusForbidden, Text: fmt.Sprintf("operators may not expose %s here: [operators] expose in the relay's public.toml has the patterns of what they may; admins may expose anything", texts[i])}
		}
		for _, other := range e.list {
			switch {
			case !slices.ContainsFunc(other.site.Publish, func(p relay.Pattern) bool { return p.Allows(url) }):
			case other.operator == who.Operator && !sessions[other.site.Name] && other.stop != nil && other.site.Name != one.site.Name:
				old = append(old, other)
			case other.operator == who.Operator && other.site.Name == one.site.Name && slices.Equal(other.site.Keys, one.site.Keys) && other.stop != nil:
				old = append(old, other) // the same program once more
			default:
				return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("%s is exposed by %q already, as site %q: take another name", texts[i], other.operator, other.site.Name)}
			}
		}
	}
	n := 0
	for _, other := range e.list {
		if slices.Contains(old, other) {
			continue
		}
		if other.site.Name == one.site.Name {
			return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("there is a site %q already: leave the name out, and one is chosen", one.site.Name)}
		}
		if other.operator == who.Operator {
			n++
		}
	}
	if n >= maxExposedOfOne || len(e.list)-len(old) >= maxExposed {
		return nil, &admin.Error{Code: http.StatusTooManyRequests, Text: fmt.Sprintf("%q has %d ephemeral sites, and there are %d: end some, and wait a minute", who.Operator, n, len(e.list))}
	}
	e.list = slices.DeleteFunc(e.list, func(other *ephemeral) bool { return slices.Contains(old, other) })
	e.list = append(e.list, one)
	e.storeLocked()
	return old, nil
}

// end is called when a token is not good any more.
func (e *exposed) end(one *ephemeral) {
	e.mu.Lock()
	one.over = true
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // sweep will see it
	}
}

// sweep forgets those that are over, until ctx ends.
func (e *exposed) sweep(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	t := time.NewTicker(sweepTime)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-e.wake:
		}
		e.look(time.Now())
	}
}

// look forgets those that are over.
func (e *exposed) look(now time.Time) {
	e.mu.Lock()
	n := len(e.list)
	e.mu.Unlock()
	if n == 0 {
		return
	}
	sessions := e.sessions()
	var gone []*ephemeral
	e.mu.Lock()
	e.list = slices.DeleteFunc(e.list, func(one *ephemeral) bool {
		if _, ok := sessions[one.site.Name]; ok {
			one.seen = now
		}
		if isOver := one.over || now.Sub(one.seen) >= exposedTime; !isOver || one.stop == nil {
			return false // without stop it has just been made
		}
		gone = append(gone, one)
		return true
	})
	e.storeLocked()
	e.mu.Unlock()
	for _, one := range gone {
		one.stop()
	}
	if len(gone) > 0 {
		e.changed()
	}
}
