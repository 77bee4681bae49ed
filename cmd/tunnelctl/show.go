package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
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
	err = question(ctx, c)
	var refused *admin.Error
	if errors.As(err, &refused) && c.Base.Scheme == "https" && (refused.Code == http.StatusNotFound || refused.Code == http.StatusMisdirectedRequest) {
		return fmt.Errorf("%s serves no admin API on its domain (forward and connect alone work there): run this on the relay's machine, or through ssh -L 7070:%s", c.Base.Host, defaultAdmin)
	}
	return explain(c, err)
}

// shown is a status, and the one before it if there are rates to be shown.
type shown struct {
	*admin.Status
	before *admin.Status // nil: none
}

// rateTime is how long rates are measured.
const rateTime = time.Second

// showCommand makes a command that fetches the status and prints a part of it, as tables or JSON.
func showCommand(at *where, name, short string, part func(*admin.Status) any, print func(io.Writer, shown)) *cobra.Command {
	var asJSON, rates bool
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s shown
			err := ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) (err error) {
				if s.Status, err = c.Status(ctx); err != nil || !rates || asJSON {
					return err
				}
				select {
				case <-time.After(rateTime):
				case <-ctx.Done():
					return ctx.Err()
				}
				s.before = s.Status
				s.Status, err = c.Status(ctx)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(part(s.Status))
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			print(w, s)
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&rates, "rates", false, "look twice, a second apart, and show bytes per second instead of bytes")
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

func certificatesCommand(at *where) *cobra.Command {
	list := showCommand(at, "certificates", "List the certificates that the relay obtains by itself",
		func(s *admin.Status) any { return s.Certificates },
		func(w io.Writer, s shown) { printCertificates(w, s.Status, time.Now()) })
	list.AddCommand(&cobra.Command{
		Use:   "renew NAME",
		Short: "Have another certificate ordered, with a new key",
		Long: "Have another certificate ordered for a name, with a new key, or tried again what has failed. Until it is\n" +
			"there the old one is used. Authorities count orders: a few in a week are well.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				if err := c.RenewCertificate(ctx, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: being ordered; tunnelctl certificates shows what comes of it\n", printable(args[0]))
				return nil
			})
		},
	})
	return list
}

func printStatus(w io.Writer, s shown) {
	up := time.Duration(s.Uptime * float64(time.Second))
	fmt.Fprintf(w, "relay %s, version %s, wire %d, up %s, %d visitors\n", s.Domain, printable(s.Version), s.Wire, age(up), s.Visitors)
	c := s.Counters
	fmt.Fprintf(w, "so far %d requests, %d answered by the relay itself", c.Requests, c.Answered)
	for _, some := range []struct {
		n    uint64
		what string
	}{
		{c.Rejected, "malformed or slow"}, {c.Malformed, "malformed responses"}, {c.TurnedAway, "connections turned away"},
		{c.Refused, "refused by a service's policy"}, {c.HandshakesLimited, "TLS handshakes beyond the limit"},
		{c.HandshakesFailed, "failed TLS handshakes"}, {c.Prefaces, "bad PROXY headers"},
	} {
		if some.n > 0 {
			fmt.Fprintf(w, ", %d %s", some.n, some.what)
		}
	}
	fmt.Fprintln(w)
	if s.TFTP != nil {
		printTFTP(w, s.TFTP)
	}
	if s.Draining {
		fmt.Fprintln(w, "draining: no new visitors")
	}
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "listening on %s\t%s\n", l.Addr, l.Name)
	}
	for _, c := range s.Certificates {
		if c.Error != "" {
			fmt.Fprintf(w, "certificate of %s: %s; `tunnelctl certificates` says more\n", printable(c.Name), printable(c.Error))
		}
	}
	fmt.Fprintln(w)
	printSites(w, s)
	if len(s.Services) > 0 {
		fmt.Fprintln(w)
		printServices(w, s)
	}
}

func printSites(w io.Writer, s shown) {
	if len(s.Sites) == 0 {
		fmt.Fprintln(w, "no sites yet: tunnelctl site add NAME --publish 'https://*.example.com' makes a join token")
		return
	}
	fmt.Fprintln(w, "SITE\tSTATE\tID\tFROM\tSTREAMS\t"+s.titles())
	for _, site := range s.Sites {
		if len(site.Sessions) == 0 || !site.Sessions[0].Active { // nobody gets the visitors
			fmt.Fprintf(w, "%s\t%s\t\t\t\t\t\n", site.Name, state(site))
		}
		for _, one := range site.Sessions {
			name := "" // once is enough
			if one.Active {
				name = site.Name
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", name, sessionState(one), printable(one.ID), dash(one.Remote),
				one.Streams, s.ofSession(site.Name, one))
		}
	}
	for _, site := range s.Sites {
		fmt.Fprintln(w)
		wrap(w, site.Name+" may publish "+cmp.Or(strings.Join(site.Publish, " "), "nothing"), "  ")
		for _, one := range site.Sessions {
			printSession(w, one)
		}
	}
}

// printSession tells how a private relay is connected.
func printSession(w io.Writer, s admin.Session) {
	parts := []string{cmp.Or(s.Software, "unknown software")}
	for _, l := range s.Links {
		parts = append(parts, link(l))
	}
	if len(s.Links) == 0 {
		parts = append(parts, "no link")
	}
	wrap(w, "  "+s.ID+": "+strings.Join(parts, ", "), "    ")
	if s.Choice != "" {
		wrap(w, "    "+s.Choice, "    ")
	}
	verb := "would not be"
	if s.Active {
		verb = "is not"
	}
	for _, r := range s.Refused {
		wrap(w, fmt.Sprintf("    %s %s published: %s", r.Service, verb, r.Error), "      ")
	}
}

// link tells of one link in a few words.
func link(l admin.Link) string {
	text := l.Transport + " " + l.Role
	if l.Role == "none" {
		text = l.Transport + " (being closed)"
	}
	if l.RTT > 0 {
		text += fmt.Sprintf(" %.1f ms", l.RTT)
	}
	if l.Suspect {
		text += " (silent)"
	}
	return text
}

// width is how many columns a line of text may have.
const width = 100

// wrap prints text as lines that fit, those behind the first with an indent.
func wrap(w io.Writer, text, indent string) {
	text = printable(text)
	for len(text) > width {
		at := strings.LastIndexByte(text[:width+1], ' ')
		if at <= len(indent) { // one long word
			if at = strings.IndexByte(text[width:], ' '); at < 0 {
				break
			}
			at += width
		}
		fmt.Fprintln(w, text[:at])
		text = indent + text[at+1:]
	}
	fmt.Fprintln(w, text)
}

// state is the state of a site that has no active session.
func state(s admin.Site) string {
	if s.State == admin.StateInvited && s.InvitedUntil != nil {
		return s.State + " for " + age(time.Until(*s.InvitedUntil)) + " more"
	}
	return s.State
}

// sessionState is the session's state and since when.
func sessionState(s admin.Session) string {
	if s.SuspendedSince != nil {
		return s.State + " for " + age(time.Since(*s.SuspendedSince))
	}
	return s.State + " for " + age(time.Since(s.ConnectedSince))
}

func printServices(w io.Writer, s shown) {
	if len(s.Services) == 0 {
		fmt.Fprintln(w, "no services: no site is connected, or their private.toml has no [[service]]")
		return
	}
	fmt.Fprintln(w, "SERVICE\tPUBLISHED AT\tTARGET\tVISITORS\tTOTAL\t"+s.titles())
	for _, v := range s.Services {
		published := v.Publish
		if published == "" {
			published = "operators only"
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%d\t%d\t%s\n", v.Site, v.Name, published, v.Target, v.Visitors, v.Total, s.ofService(v))
	}
	for _, v := range s.Services {
		if len(v.Errors) == 0 {
			continue
		}
		var parts []string
		for _, word := range slices.Sorted(maps.Keys(v.Errors)) {
			parts = append(parts, fmt.Sprintf("%d %s", v.Errors[word], word))
		}
		wrap(w, fmt.Sprintf("  %s/%s: what went wrong so far: %s", v.Site, v.Name, strings.Join(parts, ", ")), "    ")
	}
	printCameras(w, s.Services, time.Now())
	printFiles(w, s.Services)
}

// printCameras tells of those services that are cameras.
func printCameras(w io.Writer, services []admin.Service, now time.Time) {
	title := "\nCAMERA\tVIEWERS\tRATE\tSHOWS\tKEY FRAME\tRECONNECTS\tFRAMES LEFT OUT"
	for _, v := range services {
		c := v.Camera
		if c == nil {
			continue
		}
		if title != "" {
			fmt.Fprintln(w, title)
			title = ""
		}
		var shows []string
		for _, t := range c.Tracks {
			text := printable(cmp.Or(t.Codec, t.Media, "?"))
			if t.Width > 0 && t.Height > 0 {
				text += fmt.Sprintf(" %dx%d", t.Width, t.Height)
			}
			shows = append(shows, text)
		}
		key := "-"
		if c.KeyFrame != nil {
			key = age(now.Sub(*c.KeyFrame)) + " ago"
		}
		fmt.Fprintf(w, "%s/%s\t%d\t%s\t%s\t%s\t%d\t%d\n", v.Site, v.Name, c.Viewers, bitRate(c.Rate), cmp.Or(strings.Join(shows, ", "), "not watched yet"),
			key, c.Reconnects, c.Dropped)
	}
}

// printTFTP tells of TFTP in all.
func printTFTP(w io.Writer, t *admin.TFTP) {
	text := fmt.Sprintf("TFTP: %d transfers, %d so far", t.Running, t.Total)
	var refused uint64
	for _, n := range t.Refused {
		refused += n
	}
	for _, some := range []struct {
		n    uint64
		what string
	}{
		{uint64(t.Unproven), "from addresses that have not answered yet"}, {refused, "requests refused"}, {t.Retransmitted, "packets sent again"},
		{t.ErrorsSent, "errors sent"}, {t.Dropped, "datagrams dropped"}, {t.Hits, "files had not to come from a site"},
	} {
		if some.n > 0 {
			text += fmt.Sprintf(", %d %s", some.n, some.what)
		}
	}
	if t.CacheLimit > 0 {
		text += fmt.Sprintf("; cache: %s of %s", size(uint64(t.Cached)), size(uint64(t.CacheLimit)))
	}
	wrap(w, text, "  ")
}

// printFiles tells of those services that have files by TFTP.
func printFiles(w io.Writer, services []admin.Service) {
	title := "\nFILES\tTRANSFERS\tRATE\tPACKETS SENT AGAIN\tREFUSED\tKEPT\tREAD FROM THAT"
	for _, v := range services {
		f := v.Files
		if f == nil {
			continue
		}
		if title != "" {
			fmt.Fprintln(w, title)
			title = ""
		}
		fmt.Fprintf(w, "%s/%s\t%d\t%s\t%d\t%d\t%s\t%d\n", v.Site, v.Name, v.Visitors, bitRate(f.Rate), f.Retransmitted, f.Refused, size(uint64(f.Cached)), f.Hits)
	}
}

// bitRate writes bits per second as cameras have them: in thousands.
func bitRate(n uint64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f kbit/s", float64(n)/1e3)
	}
	return fmt.Sprintf("%d bit/s", n)
}

// titles are those of the columns for bytes.
func (s shown) titles() string {
	if s.before == nil {
		return "RECEIVED\tSENT"
	}
	return "RECEIVED/S\tSENT/S"
}

func (s shown) ofService(v admin.Service) string {
	if s.before == nil {
		return columns(v.Received, v.Sent)
	}
	for _, was := range s.before.Services {
		if was.Site == v.Site && was.Name == v.Name && was.Received <= v.Received && was.Sent <= v.Sent {
			return s.rates(v.Received-was.Received, v.Sent-was.Sent)
		}
	}
	return s.rates(v.Received, v.Sent)
}

func (s shown) ofSession(site string, one admin.Session) string {
	if s.before == nil {
		return columns(one.Received, one.Sent)
	}
	for _, b := range s.before.Sites {
		for _, was := range b.Sessions {
			if b.Name == site && was.ID == one.ID {
				return s.rates(one.Received-was.Received, one.Sent-was.Sent)
			}
		}
	}
	return s.rates(one.Received, one.Sent)
}

// rates are what came and went between the two looks. The relay knows best when they were.
func (s shown) rates(received, sent uint64) string {
	took := s.Uptime - s.before.Uptime
	if took <= 0 { // it has been restarted
		return "-\t-"
	}
	return columns(uint64(float64(received)/took+0.5), uint64(float64(sent)/took+0.5))
}

func columns(received, sent uint64) string { return size(received) + "\t" + size(sent) }

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
		Short: "Add and revoke sites, and have stand-bys take over",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("site add, site revoke or site promote? tunnelctl site --help")
		},
	}
	site.AddCommand(addCommand(at), revokeCommand(at), promoteCommand(at))
	return site
}

func addCommand(at *where) *cobra.Command {
	var in admin.Invite
	var ttl time.Duration
	add := &cobra.Command{
		Use:   "add NAME {--publish PATTERN... | --stand-by}",
		Short: "Make a join token for a new site, or for another private relay of a site",
		Long: "Make a join token. It is a secret, works once, and expires.\n\n" +
			"With --publish it is for a new site, or replaces the private relay of one that is there. A pattern is a URL: " +
			"https://*.example.com, http://files.example.com/pub, wss://..., rtsp://cams.example.com/*, tcp://:15000-15999, udp://:5514, tftp:///boot/*.\n\n" +
			"With --stand-by it is for another private relay of the site, with a key of its own, which takes over when the first one fails.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case in.Standby && len(in.Publish) > 0:
				return daemon.UsageError("--stand-by and --publish exclude each other: a stand-by publishes what its site may publish")
			case !in.Standby && len(in.Publish) == 0:
				return daemon.UsageError("--publish is missing: what may this site publish? For example --publish 'https://*.example.com'; or --stand-by for another private relay of a site that is there")
			}
			in.Name, in.TTL = args[0], ttl.Seconds()
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				inv, err := c.AddSite(ctx, in)
				if err != nil {
					return err
				}
				machine := "the site's machine"
				if in.Standby {
					machine = "the other machine"
				}
				// The token alone on stdout, so that a script can use it.
				fmt.Fprintf(cmd.ErrOrStderr(), "on %s, until %s, once:\n  relay-private join TOKEN\n", machine, inv.Expires.Local().Format("2006-01-02 15:04 MST"))
				fmt.Fprintln(cmd.OutOrStdout(), printable(inv.Token))
				return nil
			})
		},
	}
	add.Flags().StringArrayVar(&in.Publish, "publish", nil, "a `pattern` of what the site may publish; may be repeated")
	add.Flags().BoolVar(&in.Standby, "stand-by", false, "add a private relay to a site that is there")
	add.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used")
	return add
}

func revokeCommand(at *where) *cobra.Command {
	var key string
	revoke := &cobra.Command{
		Use:   "revoke NAME [--key KEY]",
		Short: "Forget a site's keys, or one of them, and cut their sessions",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("key") && key == "" {
				return daemon.UsageError("--key is empty: which one? tunnelctl sites --json shows them")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				return c.RevokeSite(ctx, args[0], key)
			})
		},
	}
	revoke.Flags().StringVar(&key, "key", "", "only this `key`, \"ed25519:...\": the others go on")
	return revoke
}

func promoteCommand(at *where) *cobra.Command {
	var p admin.Promote
	promote := &cobra.Command{
		Use:   "promote NAME [ID]",
		Short: "Have a stand-by take a site's visitors over",
		Long: "Have a stand-by take over: visitors who come from now on go to it. ID is what tunnelctl sites shows, or its\n" +
			"beginning; it may be left out if there is one stand-by. What visitors have under way finishes where it is,\n" +
			"or with --cut is reset after the relay's drain_timeout. The private relay that was active stands by.",
		Args: usage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				p.Session = args[1]
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				done, err := c.PromoteSite(ctx, args[0], p)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s is active\n", args[0], printable(done.Session))
				return nil
			})
		},
	}
	promote.Flags().BoolVar(&p.Cut, "cut", false, "reset what is still under way on the other one after the relay's drain_timeout")
	return promote
}

func printCertificates(w io.Writer, s *admin.Status, now time.Time) {
	if len(s.Certificates) == 0 {
		fmt.Fprintln(w, "the relay obtains no certificates: [acme] in its public.toml has it do so")
		return
	}
	ahead := func(t *time.Time) string {
		switch {
		case t == nil:
			return "-"
		case t.Before(now):
			return age(now.Sub(*t)) + " ago"
		}
		return "in " + age(t.Sub(now))
	}
	fmt.Fprintln(w, "NAME\tISSUER\tEXPIRES\tRENEWS\tSTATE")
	for _, c := range s.Certificates {
		state := "good"
		switch {
		case c.Error != "" && c.Ordering:
			state = "failed, being tried again"
		case c.Error != "":
			state = "failed, next try " + ahead(c.NextTry)
		case c.Ordering && c.Expires == nil:
			state = "being ordered"
		case c.Expires == nil:
			state = "waiting"
		case c.Expires.Before(now):
			state = "expired"
		case c.OnDemand:
			state = "good, on demand"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(c.Name), printable(cmp.Or(c.Issuer, "-")), ahead(c.Expires), ahead(c.Renews), state)
	}
	for _, c := range s.Certificates {
		if c.Error != "" {
			fmt.Fprintf(w, "\n%s: %s\n", printable(c.Name), printable(c.Error))
		}
	}
}
