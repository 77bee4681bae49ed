package main

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

func topCommand(at *where) *cobra.Command {
	var every time.Duration
	var once bool
	var f follower
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the relay: rates, latency and streams, live",
		Long: "Watch the relay: its figures in all, sites with their latency, services and streams with what they move, live. ? explains the keys.\n\n" +
			"Without a terminal --plain prints one look, and --json a line of JSON each time. When the relay is restarted, top waits for it.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 200*time.Millisecond || every > time.Minute {
				return daemon.UsageError(fmt.Sprintf("--every %v: want 200ms to 1m", every))
			}
			v := at.view(cmd)
			c, err := at.client()
			if err != nil {
				return err
			}
			in, hasIn := cmd.InOrStdin().(*os.File)
			out, hasOut := v.out.(*os.File)
			isTerminal := hasIn && hasOut && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd()))
			switch {
			case v.json:
				f.c, f.v, f.once = c, v, f.once || once
				return f.figures(cmd.Context(), every, once)
			case v.plain || once:
				return explain(c, topOnce(cmd.Context(), v, c, every))
			case !isTerminal:
				return daemon.UsageError("top draws on a terminal, and this is none: --plain prints one look, --json a line each time")
			case at.env("TERM") == "dumb":
				return daemon.UsageError("top draws on a terminal that can more than TERM=dumb says: --plain prints one look, --json a line each time")
			}
			live := &liveView{client: c, once: f.once, every: every, out: out, in: in}
			live.model = newTop(0, 0, v.color)
			return explain(c, live.run(cmd.Context()))
		},
	}
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often to look, 200ms to 1m")
	f.flag(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "print one look and exit, as --plain does; with --json one object")
	return cmd
}

// figures prints figures as JSON, a line each time, or once.
func (f *follower) figures(told context.Context, every time.Duration, once bool) error {
	ctx, cancel := context.WithCancel(told)
	defer cancel()
	feed := func(bool) iter.Seq2[admin.Figures, error] {
		return f.c.WatchFigures(ctx, admin.Every{Every: every.Seconds()})
	}
	looks := 0
	err := follow(ctx, f, feed, func(l admin.Figures) error {
		if looks++; once && looks == 1 { // it has no rates
			return nil
		}
		if once {
			defer cancel()
		}
		return f.v.line(l, nil)
	})
	if once && looks < 2 {
		err = cmp.Or(err, told.Err())
	}
	return err
}

// endOfFeed is the error of a feed that has ended by itself, without one.
func endOfFeed(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return failf(exitUnreachable, "the relay has ended the answer: it is being stopped")
}

// topOnce prints one look as tables.
func topOnce(ctx context.Context, v *view, c *admin.Client, every time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout+2*every)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	m := newTop(max(v.width, textWidth), 1<<20, v.color)
	m.meet(s)
	m.once = true
	looks := 0
	for f, err := range c.WatchFigures(ctx, admin.Every{Every: every.Seconds()}) {
		if err != nil {
			return err
		}
		streams, err := c.Streams(ctx, admin.Filter{Limit: topLimit})
		if err != nil && !hasNone(err) {
			return err
		}
		m.see(f)
		m.seeStreams(f.Time, streams)
		if looks++; looks == 2 { // the first one has no rates
			break
		}
	}
	if looks < 2 {
		return endOfFeed(ctx)
	}
	for _, line := range m.head(time.Now()) {
		v.printf("%s\n", line)
	}
	for section := range sections {
		if section > 0 {
			v.printf("\n")
		}
		if t := m.table(section); len(t.rows) > 0 {
			v.table(t)
		} else {
			v.printf("no %s\n", sectionNames[section])
		}
	}
	return nil
}

// topLimit is how many streams are looked at: the relay sends the newest.
const topLimit = 1000

// hasNone says whether err is that of a relay which does not have what it was asked for.
func hasNone(err error) bool { return isRefusal(err, 404) }

// liveView runs a top on a terminal.
type liveView struct {
	client  *admin.Client
	every   time.Duration
	in, out *os.File
	model   *top
	once    bool // it ends when the relay goes away
}

// news is what the goroutine that asks the relay has heard.
type news struct {
	status  *admin.Status
	figures admin.Figures
	streams []admin.Stream
	err     error
	over    bool // it will not get better
}

// run shows the view until q, Ctrl-C or the end of ctx. It fails if the relay cannot be asked at all, and goes on for a relay that
// is away for a while.
func (l *liveView) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, err := l.first(ctx)
	if err != nil {
		return err
	}
	l.model.meet(first)
	s, err := openScreen(l.in, l.out)
	if err != nil {
		return err
	}
	defer s.close()

	heard := make(chan news)
	listened := make(chan struct{})
	go l.listen(ctx, heard, listened)
	defer func() { cancel(); <-listened }()
	done := make(chan struct{})
	defer close(done)
	keys := make(chan []key)
	go readKeys(l.in, keys, done)
	resized := make(chan os.Signal, 1)
	defer watchSize(resized)()
	tick := time.NewTicker(time.Second) // for ages, and sizes where nobody tells
	defer tick.Stop()

	for {
		l.model.width, l.model.height = s.size()
		if err := s.show(l.model.frame(time.Now()), l.model.height); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-resized:
			fmt.Fprint(s.out, clearScreen)
		case n := <-heard:
			if n.over {
				return n.err
			}
			if n.err != nil {
				l.model.lose(n.err.Error(), time.Now())
				continue
			}
			if n.status != nil {
				l.model.meet(n.status)
			}
			l.model.see(n.figures)
			l.model.seeStreams(n.figures.Time, n.streams)
		case pressed, ok := <-keys:
			if !ok {
				return nil // the terminal is gone
			}
			for _, k := range pressed {
				switch k {
				case keySuspend:
					s.close()
					suspend()
					if err := s.open(); err != nil {
						return err
					}
				case keyRedraw:
					fmt.Fprint(s.out, clearScreen)
				default:
					if l.model.press(k) {
						return nil
					}
				}
			}
		}
	}
}

// first asks for the relay's status, while there is no screen yet that an error would have to leave.
func (l *liveView) first(ctx context.Context) (*admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return l.client.Status(ctx)
}

// retryTime is how long the view waits before it asks a relay again that did not answer.
const retryTime = time.Second

// listen asks the relay, again and again if it is away, and tells what it hears until ctx ends.
func (l *liveView) listen(ctx context.Context, heard chan<- news, done chan<- struct{}) {
	defer close(done)
	tell := func(n news) bool {
		select {
		case heard <- n:
			return true
		case <-ctx.Done():
			return false
		}
	}
	again := false
	for {
		var err error
		var status *admin.Status
		isOver := false
		if again { // it may be another version now, and not want this token any more
			if status, err = l.first(ctx); err != nil {
				isOver = exitCode(explain(l.client, err)) == exitDenied
			}
		}
		if err == nil {
			err = l.follow(ctx, status, tell)
			isOver = l.once
		}
		if ctx.Err() != nil || !tell(news{err: explain(l.client, err), over: isOver}) || isOver || !pause(ctx, retryTime) {
			return
		}
		again = true
	}
}

// silence is how long figures may be late before the view asks anew.
const silence = 10 * time.Second

// follow tells figures until there are no more of them.
func (l *liveView) follow(ctx context.Context, status *admin.Status, tell func(news) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(l.every+silence, func() {
		cancel(failf(exitUnreachable, "nothing has come from %s for %v", l.client.Base.Host, l.every+silence))
	})
	defer late.Stop()
	for f, err := range l.client.WatchFigures(ctx, admin.Every{Every: l.every.Seconds()}) {
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		late.Reset(l.every + silence)
		streams, err := l.client.Streams(ctx, admin.Filter{Limit: topLimit})
		if err != nil && !hasNone(err) {
			return err
		}
		if !tell(news{status: status, figures: f, streams: streams}) {
			return nil
		}
		status = nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return endOfFeed(ctx)
}
