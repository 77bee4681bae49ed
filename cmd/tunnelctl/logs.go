package main

import (
	"context"
	"fmt"
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
	var level string
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Print the last lines of the relay's log, and those that come",
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
				return followLogs(cmd.Context(), at, v, in, least)
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
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on with those that come, until Ctrl-C")
	f.IntVarP(&in.Lines, "lines", "n", 50, "how many of those that are there")
	f.StringVar(&level, "level", "debug", "only lines of this `level` or a higher one: debug, info, warn, error")
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

// followLogs prints the last lines, and others as they come, until ctx ends.
func followLogs(ctx context.Context, at *where, v *view, in admin.Lines, least int) error {
	c, err := at.client()
	if err != nil {
		return err
	}
	for l, err := range c.FollowLogs(ctx, in) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return explain(c, err)
		}
		if levelOf(l) < least {
			continue
		}
		if err := v.line(l, func() { v.logLine(l) }); err != nil {
			return err
		}
	}
	return endOfFeed(ctx)
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
