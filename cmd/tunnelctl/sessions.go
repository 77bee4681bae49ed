package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

func sessionsCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:               "sessions [SITE]",
		Short:             "List the private relays that are connected",
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				all, err := c.Sessions(ctx, first(args...))
				if err != nil {
					return aboutSite(ctx, c, first(args...), err)
				}
				t := newTable("SITE", "SESSION", "STATE", "FROM~12", "SOFTWARE~8", ">LINKS", ">STREAMS", ">BUFFERED", ">RECEIVED", ">SENT")
				for _, one := range all {
					state := sessionState(one)
					if one.Active {
						state += ", active"
					}
					t.add(one.Site, one.ID, stateStyle(one.State).of(state), dash(one.Remote), dash(one.Software), len(one.Links), one.Streams,
						size(uint64(max(one.Buffered, 0))), size(one.Received), size(one.Sent))
				}
				v := at.view(cmd)
				return v.print(all, func() { v.tableOr(t, "no sessions: no private relay is connected; tunnelctl sites says since when") })
			})
		},
	}
}

func linksCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:               "links [SITE]",
		Short:             "List the transport connections of private relays",
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				all, err := c.Links(ctx, first(args...))
				if err != nil {
					return aboutSite(ctx, c, first(args...), err)
				}
				t := newTable("SITE", "SESSION", "TRANSPORT", "ROLE", "FROM~12", ">RTT", "AGE", "STATE")
				for _, l := range all {
					state := green.of("good")
					switch {
					case l.Suspect:
						state = red.of("silent")
					case l.Role == "none":
						state = yellow.of("being closed")
					}
					t.add(l.Site, l.Session, l.Transport, l.Role, l.Remote, millis(l.RTT), age(time.Since(l.Since)), state)
				}
				v := at.view(cmd)
				return v.print(all, func() { v.tableOr(t, "no links: no private relay is connected; tunnelctl sites says since when") })
			})
		},
	}
}

// ofSite returns the status, of one site if it is named.
func ofSite(ctx context.Context, c *admin.Client, args []string) (*admin.Status, error) {
	s, err := c.Status(ctx)
	if err != nil || len(args) == 0 {
		return s, err
	}
	return s, shown{Status: s}.narrow(args[0])
}

// tableOr prints t, or what is to be said if it has no rows.
func (v *view) tableOr(t *table, none string) {
	if len(t.rows) == 0 {
		v.printf("%s\n", none)
		return
	}
	v.table(t)
}
