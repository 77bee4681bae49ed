package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

// answerTimeout bounds a question to the admin API.
const answerTimeout = 15 * time.Second

// ask runs one question to the relay and explains its error.
func ask(ctx context.Context, at *where, question func(context.Context, *admin.Client) error) error {
	c, err := at.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err = question(ctx, c)
	var refused *admin.Error
	if errors.As(err, &refused) && c.Base.Scheme == "https" && (refused.Code == http.StatusNotFound || refused.Code == http.StatusMisdirectedRequest) {
		return fmt.Errorf("%s serves no admin API on its domain (forward and connect alone work there): run this on the relay's machine, or through ssh -L 7070:%s", c.Base.Host, defaultAdmin)
	}
	return explain(c, err)
}

// showCommand makes a command that fetches the status and prints a part of it, as tables or JSON.
func showCommand(at *where, name, short string, part func(*admin.Status) any, print func(io.Writer, *admin.Status)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s *admin.Status
			err := ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) (err error) {
				s, err = c.Status(ctx)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(part(s))
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			print(w, s)
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func statusCommand(at *where) *cobra.Command {
	return showCommand(at, "status", "Show what the relay is doing", func(s *admin.Status) any { return s }, printStatus)
}

func sitesCommand(at *where) *cobra.Command {
	return showCommand(at, "sites", "List the sites and their sessions", func(s *admin.Status) any { return s.Sites }, printSites)
}

func servicesCommand(at *where) *cobra.Command {
	return showCommand(at, "services", "List the services that connected sites offer", func(s *admin.Status) any { return s.Services }, printServices)
}

func printStatus(w io.Writer, s *admin.Status) {
	up := time.Duration(s.Uptime * float64(time.Second))
	fmt.Fprintf(w, "relay %s, version %s, wire %d, up %s, %d visitors\n", s.Domain, printable(s.Version), s.Wire, age(up), s.Visitors)
	if s.Draining {
		fmt.Fprintln(w, "draining: no new visitors")
	}
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "listening on %s\t%s\n", l.Addr, l.Name)
	}
	fmt.Fprintln(w)
	printSites(w, s)
	if len(s.Services) > 0 {
		fmt.Fprintln(w)
		printServices(w, s)
	}
}

func printSites(w io.Writer, s *admin.Status) {
	if len(s.Sites) == 0 {
		fmt.Fprintln(w, "no sites yet: tunnelctl site add NAME --publish 'https://*.example.com' makes a join token")
		return
	}
	fmt.Fprintln(w, "SITE\tSTATE\tFROM\tRTT\tSTREAMS\tRECEIVED\tSENT\tMAY PUBLISH")
	for _, site := range s.Sites {
		rtt := "-"
		if site.RTT > 0 {
			rtt = fmt.Sprintf("%.1f ms", site.RTT)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", site.Name, state(site), dash(site.Remote), rtt,
			site.Streams, size(site.Received), size(site.Sent), strings.Join(site.Publish, " "))
	}
}

// state is the site's state and since when, or until when.
func state(s admin.Site) string {
	switch {
	case s.State == admin.StateConnected && s.ConnectedSince != nil:
		return s.State + " for " + age(time.Since(*s.ConnectedSince))
	case s.State == admin.StateSuspended && s.SuspendedSince != nil:
		return s.State + " for " + age(time.Since(*s.SuspendedSince))
	case s.State == admin.StateInvited && s.InvitedUntil != nil:
		return s.State + " for " + age(time.Until(*s.InvitedUntil)) + " more"
	}
	return s.State
}

func printServices(w io.Writer, s *admin.Status) {
	if len(s.Services) == 0 {
		fmt.Fprintln(w, "no services: no site is connected, or their private.toml has no [[service]]")
		return
	}
	fmt.Fprintln(w, "SERVICE\tPUBLISHED AT\tTARGET\tVISITORS\tTOTAL\tRECEIVED\tSENT")
	for _, v := range s.Services {
		published := v.Publish
		if published == "" {
			published = "operators only"
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%d\t%d\t%s\t%s\n", v.Site, v.Name, published, v.Target, v.Visitors, v.Total, size(v.Received), size(v.Sent))
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// size writes bytes with the unit that leaves one to four digits.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for ; v >= 1024 && unit < 4; unit++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// age writes a duration with its two largest units.
func age(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.String()
}

func siteCommand(at *where) *cobra.Command {
	site := &cobra.Command{
		Use:   "site",
		Short: "Add and revoke sites",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("site add or site revoke? tunnelctl site --help")
		},
	}
	var publish []string
	var ttl time.Duration
	add := &cobra.Command{
		Use:   "add NAME --publish PATTERN...",
		Short: "Make a join token for a new site",
		Long: "Make a join token for a new site. The token is a secret, works once, and expires.\n\n" +
			"A pattern is a URL: https://*.example.com, http://files.example.com/pub, wss://..., tcp://:15000-15999.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(publish) == 0 {
				return daemon.UsageError("--publish is missing: what may this site publish? For example --publish 'https://*.example.com'")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				inv, err := c.AddSite(ctx, admin.Invite{Name: args[0], Publish: publish, TTL: ttl.Seconds()})
				if err != nil {
					return err
				}
				// The token alone on stdout, so that a script can use it.
				fmt.Fprintf(cmd.ErrOrStderr(), "on the site's machine, until %s, once:\n  relay-private join TOKEN\n", inv.Expires.Local().Format("2006-01-02 15:04 MST"))
				fmt.Fprintln(cmd.OutOrStdout(), printable(inv.Token))
				return nil
			})
		},
	}
	add.Flags().StringArrayVar(&publish, "publish", nil, "a `pattern` of what the site may publish; may be repeated")
	add.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used")
	revoke := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Forget a site's key and cut its session",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				return c.RevokeSite(ctx, args[0])
			})
		},
	}
	site.AddCommand(add, revoke)
	return site
}
