package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

// shown is a status, and the one before it if there are rates to be shown.
type shown struct {
	*admin.Status
	before *admin.Status // nil: none
}

// rateTime is how long rates are measured.
const rateTime = time.Second

// showCommand makes a command that fetches the status, prints a part of it, and takes the name of a site if use says so.
func showCommand(at *where, use, short, long string, part func(*admin.Status) any, print func(*view, shown)) *cobra.Command {
	var rates bool
	ofSite := strings.Contains(use, "[SITE]")
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := at.view(cmd)
			var s shown
			err := ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) (err error) {
				if s.Status, err = c.Status(ctx); err != nil || !rates || v.json {
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
			if len(args) > 0 {
				if err := s.narrow(args[0]); err != nil {
					return err
				}
			}
			return v.print(part(s.Status), func() { print(v, s) })
		},
	}
	if ofSite {
		cmd.Args = usage(cobra.MaximumNArgs(1))
		cmd.ValidArgsFunction = completeSites(at, 1)
	}
	cmd.Flags().BoolVar(&rates, "rates", false, "look twice, a second apart, and show bytes per second instead of bytes")
	return cmd
}

// narrow leaves what belongs to one site.
func (s shown) narrow(name string) error {
	i := slices.IndexFunc(s.Sites, func(site admin.Site) bool { return site.Name == name })
	if i < 0 {
		return unknown("site", name, siteNames(s.Status), "tunnelctl sites")
	}
	s.Sites = s.Sites[i : i+1]
	s.Services = slices.DeleteFunc(s.Services, func(v admin.Service) bool { return v.Site != name })
	return nil
}

func statusCommand(at *where) *cobra.Command {
	return showCommand(at, "status", "Show what the relay is doing", "", func(s *admin.Status) any { return s }, (*view).status)
}

func sitesCommand(at *where) *cobra.Command {
	return showCommand(at, "sites [SITE]", "List the sites and their sessions",
		"List the sites and their sessions, the active one of a site first, and how each private relay is connected.",
		func(s *admin.Status) any { return s.Sites }, (*view).sites)
}

func (v *view) status(s shown) {
	up := time.Duration(s.Uptime * float64(time.Second))
	v.printf("relay %s, version %s, wire %d, up %s, %d visitors\n", oneLine(s.Domain), oneLine(s.Version), s.Wire, age(up), s.Visitors)
	c := s.Counters
	text := fmt.Sprintf("so far %d requests, %d answered by the relay itself", c.Requests, c.Answered)
	for _, some := range []struct {
		n    uint64
		what string
	}{
		{c.Rejected, "malformed or slow"}, {c.Malformed, "malformed responses"}, {c.TurnedAway, "connections turned away"},
		{c.Refused, "refused by a service's policy"}, {c.HandshakesLimited, "TLS handshakes beyond the limit"},
		{c.HandshakesFailed, "failed TLS handshakes"}, {c.Prefaces, "bad PROXY headers"},
	} {
		if some.n > 0 {
			text += fmt.Sprintf(", %d %s", some.n, some.what)
		}
	}
	v.wrap(text, "  ")
	if s.TFTP != nil {
		v.tftp(s.TFTP)
	}
	if s.Draining {
		v.printf("draining: no new visitors\n")
	}
	for _, l := range s.Listeners {
		v.printf("listening on %-22s %s\n", oneLine(l.Addr), oneLine(l.Name))
	}
	for _, c := range s.Certificates {
		if c.Error != "" {
			v.wrap(fmt.Sprintf("certificate of %s: %s; `tunnelctl certs` says more", c.Name, c.Error), "  ")
		}
	}
	v.printf("\n")
	v.sites(s)
	if len(s.Services) > 0 {
		v.printf("\n")
		v.services(s)
	}
}

func (v *view) sites(s shown) {
	if len(s.Sites) == 0 {
		v.printf("no sites yet: tunnelctl site add NAME --publish 'https://*.example.com' makes a join token\n")
		return
	}
	t := newTable("SITE", "STATE", "ID", "FROM~15", ">RTT", ">STREAMS", ">"+s.title("RECEIVED"), ">"+s.title("SENT"))
	for _, site := range s.Sites {
		if len(site.Sessions) == 0 || !site.Sessions[0].Active { // nobody gets the visitors
			t.add(site.Name, stateStyle(site.State).of(state(site)), "", "", "", "", "", "")
		}
		for _, one := range site.Sessions {
			name := "" // once is enough
			if one.Active {
				name = site.Name
			}
			in, out := s.ofSession(site.Name, one)
			t.add(name, stateStyle(one.State).of(sessionState(one)), one.ID, dash(one.Remote), millis(one.RTT), one.Streams, in, out)
		}
	}
	v.table(t)
	for _, site := range s.Sites {
		v.printf("\n")
		v.wrap(site.Name+" may publish "+cmp.Or(strings.Join(site.Publish, " "), "nothing"), "  ")
		for _, one := range site.Sessions {
			v.session(one)
		}
	}
}

// session tells how a private relay is connected.
func (v *view) session(s admin.Session) {
	parts := []string{cmp.Or(s.Software, "unknown software")}
	for _, l := range s.Links {
		parts = append(parts, link(l))
	}
	if len(s.Links) == 0 {
		parts = append(parts, "no link")
	}
	v.wrap("  "+s.ID+": "+strings.Join(parts, ", "), "    ")
	if s.Choice != "" {
		v.wrap("    "+s.Choice, "    ")
	}
	verb := "would not be"
	if s.Active {
		verb = "is not"
	}
	for _, r := range s.Refused {
		v.wrap(fmt.Sprintf("    %s %s published: %s", r.Service, verb, r.Error), "      ")
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

// textWidth is how many columns a line of text has where there is no terminal.
const textWidth = 100

// wrap prints text as lines that fit, those behind the first with an indent.
func (v *view) wrap(text, indent string) {
	width := textWidth
	if v.width > 0 {
		width = max(v.width, 40)
	}
	text = oneLine(text)
	for len(text) > width && !v.plain {
		at := strings.LastIndexByte(text[:width+1], ' ')
		if at <= len(indent) { // one long word
			if at = strings.IndexByte(text[width:], ' '); at < 0 {
				break
			}
			at += width
		}
		v.printf("%s\n", text[:at])
		text = indent + text[at+1:]
	}
	v.printf("%s\n", text)
}

// stateStyle has what an operator should look at stand out.
func stateStyle(state string) style {
	switch state {
	case admin.StateConnected, admin.StateStandby:
		return green
	case admin.StateSuspended, admin.StateLeaving, admin.StateInvited:
		return yellow
	case admin.StateAway:
		return red
	}
	return 0
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

// tftp tells of TFTP in all.
func (v *view) tftp(t *admin.TFTP) {
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
	v.wrap(text, "  ")
}

// title is that of a column for bytes.
func (s shown) title(of string) string {
	if s.before == nil {
		return of
	}
	return of + "/S"
}

func (s shown) ofService(v admin.Service) (in, out string) {
	if s.before == nil {
		return size(v.Received), size(v.Sent)
	}
	for _, was := range s.before.Services {
		if was.Site == v.Site && was.Name == v.Name && was.Received <= v.Received && was.Sent <= v.Sent {
			return s.rates(v.Received-was.Received, v.Sent-was.Sent)
		}
	}
	return s.rates(v.Received, v.Sent)
}

func (s shown) ofSession(site string, one admin.Session) (in, out string) {
	if s.before == nil {
		return size(one.Received), size(one.Sent)
	}
	for _, b := range s.before.Sites {
		for _, was := range b.Sessions {
			if b.Name == site && was.ID == one.ID && was.Received <= one.Received && was.Sent <= one.Sent {
				return s.rates(one.Received-was.Received, one.Sent-was.Sent)
			}
		}
	}
	return s.rates(one.Received, one.Sent)
}

// rates are what came and went between the two looks. The relay knows best when they were.
func (s shown) rates(received, sent uint64) (in, out string) {
	took := s.Uptime - s.before.Uptime
	if took <= 0 { // it has been restarted
		return "-", "-"
	}
	return size(uint64(float64(received)/took + 0.5)), size(uint64(float64(sent)/took + 0.5))
}
