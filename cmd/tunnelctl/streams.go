package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

// defaultLimit and maxLimit are those of lists in the API.
const (
	defaultLimit = 200
	maxLimit     = 10_000
)

// filterFlags adds the flags that choose streams or requests.
func filterFlags(cmd *cobra.Command, at *where, in *admin.Filter, what string) {
	f := cmd.Flags()
	f.StringVar(&in.Site, "site", "", "only those of this `site`")
	f.StringVar(&in.Service, "service", "", "only those of this `service`: NAME, or SITE/NAME")
	f.IntVar(&in.Limit, "limit", defaultLimit, "how many "+what+" at most, the newest")
	cmd.RegisterFlagCompletionFunc("site", completeSites(at, 1))
	cmd.RegisterFlagCompletionFunc("service", completeServices(at, 1))
}

// checkFilter completes a filter: its site may be named with the service.
func checkFilter(in *admin.Filter) error {
	if site, service, ok := strings.Cut(in.Service, "/"); ok {
		if in.Site != "" && in.Site != site {
			return daemon.UsageError(fmt.Sprintf("--site %s and --service %s are about two sites", in.Site, in.Service))
		}
		in.Site, in.Service = site, service
	}
	if in.Limit < 1 || in.Limit > maxLimit {
		return daemon.UsageError(fmt.Sprintf("--limit %d: want 1 to %d", in.Limit, maxLimit))
	}
	return nil
}

// knownFilter returns an error for a filter that matches nothing because there is no such site or service.
func knownFilter(ctx context.Context, c *admin.Client, in admin.Filter) error {
	if in.Site == "" && in.Service == "" {
		return nil
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if in.Site != "" {
		if err := (shown{Status: s}).narrow(in.Site); err != nil {
			return err
		}
	}
	if in.Service == "" {
		return nil
	}
	var names []string
	for _, v := range s.Services {
		if v.Name == in.Service {
			return nil
		}
		names = append(names, v.Name)
	}
	return unknown("service", in.Service, names, "tunnelctl services")
}

func streamsCommand(at *where) *cobra.Command {
	var in admin.Filter
	list := &cobra.Command{
		Use:   "streams",
		Short: "List connections that are open, and end them",
		Long: "List the connections that are open, the newest first: of visitors, and of operators who forward. RECEIVED is from the visitor.\n\n" +
			"tunnelctl streams kick ID ends some of them.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFilter(&in); err != nil {
				return err
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				streams, err := c.Streams(ctx, in)
				if err != nil {
					return err
				}
				if len(streams) == 0 {
					if err := knownFilter(ctx, c, in); err != nil {
						return err
					}
				}
				v := at.view(cmd)
				return v.print(streams, func() { v.streams(streams, in.Limit, time.Now()) })
			})
		},
	}
	filterFlags(list, at, &in, "streams")
	list.AddCommand(&cobra.Command{
		Use:   "kick ID...",
		Short: "End streams: their visitors see a reset connection",
		Args:  usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeWith(at, func(ctx context.Context, c *admin.Client) (names []string, err error) {
			streams, err := c.Streams(ctx, admin.Filter{})
			for _, s := range streams {
				names = append(names, s.ID+"\t"+s.Site+"/"+s.Service+" "+s.Remote)
			}
			return names, err
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				for _, id := range args {
					if err := c.KickStream(ctx, id); err != nil {
						return withHint(err, 404, "tunnelctl streams")
					}
				}
				v := at.view(cmd)
				return v.print(struct{}{}, func() { v.printf("%s ended\n", plural(len(args), "stream")) })
			})
		},
	})
	return list
}

func (v *view) streams(streams []admin.Stream, limit int, now time.Time) {
	if len(streams) == 0 {
		v.printf("no streams: nobody is connected\n")
		return
	}
	t := newTable("STREAM", "SERVICE~10", "FROM~10", "FOR~8", "STATE~5", ">AGE", ">IDLE", ">RECEIVED", ">SENT")
	for _, s := range streams {
		from := s.Remote
		if s.Operator != "" {
			from = s.Operator + " " + s.Remote
		}
		host := s.Scheme
		if s.Host != "" {
			host += "://" + s.Host
		}
		t.add(s.ID, s.Site+"/"+s.Service, from, host, dash(s.State), age(now.Sub(s.Since)), age(time.Duration(s.Idle*float64(time.Second))), size(s.Received), size(s.Sent))
	}
	v.table(t)
	if len(streams) == limit {
		v.note("these are the newest %d: --limit has more of them, --site and --service others", limit)
	}
}

func visitorsCommand(at *where) *cobra.Command {
	var in admin.Limit
	cmd := &cobra.Command{
		Use:   "visitors",
		Short: "List the addresses that are connected",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in.Limit < 1 || in.Limit > maxLimit {
				return daemon.UsageError(fmt.Sprintf("--limit %d: want 1 to %d", in.Limit, maxLimit))
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				visitors, err := c.Visitors(ctx, in)
				if err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(visitors, func() {
					if len(visitors) == 0 {
						v.printf("no visitors: nobody is connected\n")
						return
					}
					t := newTable("ADDRESS", ">STREAMS", "SINCE", ">RECEIVED", ">SENT", "SERVICES~12")
					for _, one := range visitors {
						t.add(one.Address, one.Streams, age(time.Since(one.Since)), size(one.Received), size(one.Sent), strings.Join(one.Services, " "))
					}
					v.table(t)
					if len(visitors) == in.Limit {
						v.note("these are %d: --limit has more of them", in.Limit)
					}
				})
			})
		},
	}
	cmd.Flags().IntVar(&in.Limit, "limit", defaultLimit, "how many at most")
	return cmd
}
