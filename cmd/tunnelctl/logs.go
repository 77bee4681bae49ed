package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

func logsCommand(at *where) *cobra.Command {
	var in admin.Lines
	var follow bool
	var f follower
	var level string
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Print the last lines of the relay's log, and those that come",
		Long:  "Print the last lines of the relay's log; with -f also those that come, until Ctrl-C. It waits for a relay that is restarted.",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			least := levels[strings.ToLower(level)]
			switch {
			case least == 0:
				return daemon.UsageError(fmt.Sprintf("--level %q: want debug, info, warn or error", level))
			case in.Lines < 1 || in.Lines > maxLimit:
				return daemon.UsageError(fmt.Sprintf("--lines %d: want 1 to %d", in.Lines, maxLimit))
			}
			v := at.view(cmd)
			if follow {
				return f.logs(cmd.Context(), at, v, in, least)
			}
			var lines []admin.LogLine
			err := ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) (err error) {
				lines, err = c.Logs(ctx, in)
				return err
			})
			if err != nil {
				return err
			}
			lines = slices.DeleteFunc(lines, func(l admin.LogLine) bool { return levelOf(l) < least })
			return v.print(lines, func() {
				for _, l := range lines {
					v.logLine(l)
				}
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come, until Ctrl-C")
	f.flag(cmd)
	cmd.Flags().IntVarP(&in.Lines, "lines", "n", 50, "how many of those that are there")
	cmd.Flags().StringVar(&level, "level", "debug", "only lines of this `level` or a higher one: debug, info, warn, error")
	cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]cobra.Completion{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// levels ranks them; 0 is none.
var levels = map[string]int{"debug": 1, "info": 2, "warn": 3, "error": 4}

func levelOf(l admin.LogLine) int {
	name, _, _ := strings.Cut(strings.ToLower(l.Level), "+") // INFO+2
	if n := levels[name]; n > 0 {
		return n
	}
	return levels["error"] // one that is not known is not left out
}

// logs prints the last lines, and others as they come, until ctx ends.
func (f *follower) logs(ctx context.Context, at *where, v *view, in admin.Lines, least int) (err error) {
	if f.c, err = at.client(); err != nil {
		return err
	}
	f.v = v
	printed, isAgain := recent{seed: maphash.MakeSeed()}, false
	feed := func(again bool) iter.Seq2[admin.LogLine, error] {
		if again { // all that the relay has: some have come meanwhile
			in.Lines, isAgain = maxLimit, true
		}
		return f.c.FollowLogs(ctx, in)
	}
	return follow(ctx, f, feed, func(l admin.LogLine) error {
		if isNew := printed.add(fmt.Sprint(l)); isAgain && !isNew || levelOf(l) < least {
			return nil
		}
		return v.line(l, func() { v.logLine(l) })
	})
}

// recent is what was printed last: maxLimit lines at least, as many as the relay has at most, and twice as many at most.
type recent struct {
	seed        maphash.Seed
	now, before map[uint64]bool // hashes of lines
}

// add reports whether a line is a new one.
func (r *recent) add(line string) bool {
	key := maphash.String(r.seed, line)
	if r.now[key] || r.before[key] {
		return false
	}
	if r.now == nil || len(r.now) >= maxLimit {
		r.before, r.now = r.now, make(map[uint64]bool)
	}
	r.now[key] = true
	return true
}

// logLine prints a line as the relay does on a terminal.
func (v *view) logLine(l admin.LogLine) {
	level := fmt.Sprintf("%-5s", oneLine(l.Level))
	if v.color {
		switch levelOf(l) {
		case 4:
			level = red.paint(level)
		case 3:
			level = yellow.paint(level)
		case 1:
			level = dim.paint(level)
		}
	}
	var attrs strings.Builder
	for _, name := range slices.Sorted(maps.Keys(l.Attrs)) {
		value := l.Attrs[name]
		if value == "" || strings.ContainsAny(value, " =\"\n") {
			value = strconv.Quote(value)
		}
		attrs.WriteString(" " + oneLine(name) + "=" + oneLine(value))
	}
	v.printf("%s %s %s%s\n", l.Time.Local().Format("2006-01-02 15:04:05.000"), level, oneLine(l.Message), attrs.String())
}
