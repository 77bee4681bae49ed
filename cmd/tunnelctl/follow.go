package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

// The wait before a relay that has gone away is asked again grows from minAway to maxAway.
const (
	minAway = 200 * time.Millisecond
	maxAway = 10 * time.Second
)

// follower is a command that prints a feed until Ctrl-C, whatever becomes of the relay meanwhile.
type follower struct {
	c *admin.Client
	v *view

	once bool // the end of the feed is that of the command
}

// flag is that of such a command.
func (f *follower) flag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.once, "no-reconnect", false, "end with exit code 5 when the relay goes away, instead of waiting for it")
}

// who asks whose the token is: it is the cheapest question, and tells whether the relay is there and lets us in.
func (f *follower) who(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	me, err := f.c.Me(ctx)
	return me.Name + " " + me.Role, explain(f.c, err)
}

// note says something on stderr that is not the end.
func (f *follower) note(format string, values ...any) {
	text := fmt.Sprintf(format, values...)
	if f.v.json {
		b, _ := json.Marshal(map[string]string{"note": text})
		fmt.Fprintf(f.v.errs, "%s\n", escaped(b))
		return
	}
	fmt.Fprintf(f.v.errs, "%s %s\n", time.Now().Format(time.TimeOnly), printable(text))
}

// follow gives each event of a feed to print, until ctx ends, which is no error. When the feed breaks off, it is begun again as
// soon as the relay is there: feed is told so. A relay that is away at first, or does not let us in, is an error.
func follow[E any](ctx context.Context, f *follower, feed func(again bool) iter.Seq2[E, error], print func(E) error) error {
	me, err := f.who(ctx)
	if err != nil {
		return err
	}
	wait := minAway
	for again := false; ; again = true {
		var why error
		for e, err := range feed(again) {
			if err != nil {
				why = err
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			if err := print(e); err != nil {
				return err
			}
			wait = minAway
		}
		if ctx.Err() != nil {
			return nil
		}
		heard := cmp.Or(why, endOfFeed(ctx))
		why = explain(f.c, heard)
		code := exitCode(why)
		if f.once && code == exitUnreachable || code != exitUnreachable && code != exitDenied {
			return why
		}
		if code == exitUnreachable {
			f.note("%s is away: waiting for it (%v)", f.c.Base.Host, heard)
			if !pause(ctx, wait) {
				return nil
			}
		}
		for {
			now, err := f.who(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				if code == exitDenied && now == me { // nothing has changed that would let us in
					return why
				}
				me = now
				break
			}
			if exitCode(err) != exitUnreachable || f.once {
				return err
			}
			wait = min(2*wait, maxAway)
			if !pause(ctx, wait) {
				return nil
			}
		}
		if code == exitUnreachable {
			f.note("%s is back", f.c.Base.Host)
		}
		wait = min(2*wait, maxAway)
	}
}
