package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/admin"
)

// answerTimeout bounds a question to the admin API.
const answerTimeout = 15 * time.Second

// ask runs one question to the relay and explains its error.
func ask(ctx context.Context, at *where, question func(context.Context, *admin.Client) error) error {
	return askFor(ctx, at, answerTimeout, question)
}

// askFor is ask for a question that takes time.
func askFor(ctx context.Context, at *where, limit time.Duration, question func(context.Context, *admin.Client) error) error {
	c, err := at.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return explain(c, question(ctx, c))
}

// aboutSite has an error about a site that is not there name the one that may be meant.
func aboutSite(ctx context.Context, c *admin.Client, name string, err error) error {
	if !isRefusal(err, http.StatusNotFound) {
		return err
	}
	s, failed := c.Status(ctx)
	if failed != nil || slices.Contains(siteNames(s), name) {
		return err
	}
	return unknown("site", name, siteNames(s), "tunnelctl sites")
}

// isRefusal says whether the relay has answered with that status.
func isRefusal(err error, status int) bool {
	var refused *admin.Error
	return errors.As(err, &refused) && refused.Code == status
}

// unknown is the error for a name that is not among those that there are; list is the command that lists them.
func unknown(what, name string, names []string, list string) error {
	if near := nearest(name, names); near != "" {
		return failf(exitNotFound, "no %s %q: did you mean %q? `%s` lists what there is", what, name, near, list)
	}
	return failf(exitNotFound, "no %s %q: `%s` lists what there is", what, name, list)
}

// nearest returns the name that most likely was meant, or "".
func nearest(name string, names []string) (best string) {
	least := max(1, len(name)/3) + 1
	for _, n := range names {
		d := distance(strings.ToLower(name), strings.ToLower(n))
		if len(name) > 2 && strings.HasPrefix(n, name) {
			d = min(d, 1)
		}
		if d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is how many letters have to be added, removed, replaced or swapped with their neighbour.
func distance(a, b string) int {
	if len(a) > 256 || len(b) > 256 {
		return 256
	}
	var before, last, next []int
	last = make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		next = make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(next[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, last = last, next
	}
	return last[len(b)]
}

func siteNames(s *admin.Status) (names []string) {
	for _, site := range s.Sites {
		names = append(names, site.Name)
	}
	return names
}
