package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

func siteCommand(at *where) *cobra.Command {
	site := &cobra.Command{
		Use:   "site",
		Short: "Add and revoke sites, renew their keys, have stand-bys take over",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("site add, site revoke or site promote? tunnelctl site --help lists all; tunnelctl sites lists the sites")
		},
	}
	site.AddCommand(addCommand(at), rotateCommand(at), revokeCommand(at), promoteCommand(at), kickCommand(at))
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
		Example: "  tunnelctl site add office --publish 'https://*.example.com' --publish tcp://:15000-15999",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case in.Standby && len(in.Publish) > 0:
				return daemon.UsageError("--stand-by and --publish exclude each other: a stand-by publishes what its site may publish")
			case !in.Standby && len(in.Publish) == 0:
				return daemon.UsageError("--publish is missing: what may this site publish? For example --publish 'https://*.example.com'; or --stand-by for another private relay of a site that is there")
			case ttl <= 0:
				return daemon.UsageError("--ttl: want a time, such as 24h")
			}
			in.Name, in.TTL = args[0], ttl.Seconds()
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				old, _ := c.Site(ctx, in.Name) // none, mostly
				inv, err := c.AddSite(ctx, in)
				if err != nil {
					if in.Standby {
						err = aboutSite(ctx, c, in.Name, err)
					}
					return err
				}
				if len(old.Keys) > 0 && !in.Standby {
					at.view(cmd).note("%s is there already: who joins with this token takes its place, and its private relays are not let in any more; it may publish then what --publish says here, and nothing else", in.Name)
				}
				machine := "the site's machine"
				if in.Standby {
					machine = "the other machine"
				}
				return at.view(cmd).invitation(inv, machine, "  relay-private join TOKEN")
			})
		},
	}
	add.Flags().StringArrayVar(&in.Publish, "publish", nil, "a `pattern` of what the site may publish; may be repeated")
	add.Flags().BoolVar(&in.Standby, "stand-by", false, "add a private relay to a site that is there")
	add.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used")
	return add
}

// invitation prints a join token, alone on stdout, so that a script can use it; and on stderr what to do with it.
func (v *view) invitation(inv *admin.Invitation, machine, commands string) error {
	return v.print(inv, func() {
		v.note("on %s, until %s, once:\n%s\n(with --token-file - instead of TOKEN it is read from stdin, and nobody sees it in ps)",
			machine, inv.Expires.Local().Format("2006-01-02 15:04 MST"), commands)
		v.printf("%s\n", oneLine(inv.Token))
	})
}

func revokeCommand(at *where) *cobra.Command {
	var key string
	revoke := &cobra.Command{
		Use:               "revoke NAME [--key KEY]",
		Short:             "Forget a site's keys, or one of them, and cut their sessions",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("key") && key == "" {
				return daemon.UsageError("--key is empty: which one? tunnelctl sites --json shows them")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				if err := c.RevokeSite(ctx, args[0], key); err != nil {
					return aboutSite(ctx, c, args[0], err)
				}
				v := at.view(cmd)
				return v.print(struct{}{}, func() {
					if key == "" {
						v.note("%s: its keys are forgotten, and its sessions cut; tunnelctl site add %[1]s lets it join anew", args[0])
					}
				})
			})
		},
	}
	revoke.Flags().StringVar(&key, "key", "", "only this `key`, \"ed25519:...\": the others go on")
	return revoke
}

func rotateCommand(at *where) *cobra.Command {
	var ttl time.Duration
	rotate := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Make a join token that replaces a site's keys",
		Long: "Make a join token that replaces the keys of a site: they are good until the token is used, and are forgotten then.\n" +
			"What the site may publish stays as it is, and so does its private.toml: the new key takes the place of the old one.",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl <= 0 {
				return daemon.UsageError("--ttl: want a time, such as 24h")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				inv, err := c.RotateSite(ctx, admin.Rotate{Name: args[0], TTL: ttl.Seconds()})
				if err != nil {
					return aboutSite(ctx, c, args[0], err)
				}
				name := oneLine(inv.Site)
				return at.view(cmd).invitation(inv, "the site's machine", fmt.Sprintf("  relay-private join TOKEN --dir new\n"+
					"  mv new/%s.key /etc/culvert/          # or where the key of its private.toml is\n"+
					"  systemctl restart culvert-private", name))
			})
		},
	}
	rotate.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used")
	return rotate
}

func kickCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "kick NAME [ID]",
		Short: "Cut a session of a site; its private relay connects anew",
		Long: "Cut a session of a site, the active one or that of ID: visitors' connections over it are reset at once. Its private relay comes\n" +
			"back by itself with a new session. To keep it away, tunnelctl site revoke.",
		Args:              usage(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeSessions(at),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				s, err := ofSite(ctx, c, args[:1])
				if err != nil {
					return err
				}
				one, err := sessionOf(s.Sites[0], args[1:])
				if err != nil {
					return err
				}
				if err := c.KickSession(ctx, one.ID); err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(one, func() { v.printf("%s: session %s is cut\n", args[0], oneLine(one.ID)) })
			})
		},
	}
}

// sessionOf is the session of a site that is named by its ID or the beginning of it, or else the active one.
func sessionOf(site admin.Site, id []string) (one admin.Session, err error) {
	if len(site.Sessions) == 0 {
		return one, failf(exitUnreachable, "site %q has no private relay connected: there is nothing to cut", site.Name)
	}
	if len(id) == 0 {
		for _, s := range site.Sessions {
			if s.Active {
				return s, nil
			}
		}
		return one, daemon.UsageError(fmt.Sprintf("no session of %q is active: name the one that is meant, such as %s", site.Name, site.Sessions[0].ID))
	}
	found := slices.DeleteFunc(slices.Clone(site.Sessions), func(s admin.Session) bool { return id[0] == "" || !strings.HasPrefix(s.ID, id[0]) })
	switch len(found) {
	case 0:
		return one, failf(exitNotFound, "site %q has no session %q: `tunnelctl sessions %[1]s` lists them", site.Name, id[0])
	case 1:
		return found[0], nil
	}
	return one, daemon.UsageError(fmt.Sprintf("%d sessions of %q begin with %q: say more of it", len(found), site.Name, id[0]))
}

func promoteCommand(at *where) *cobra.Command {
	var p admin.Promote
	promote := &cobra.Command{
		Use:   "promote NAME [ID]",
		Short: "Have a stand-by take a site's visitors over",
		Long: "Have a stand-by take over: visitors who come from now on go to it. ID is what tunnelctl sites shows, or its\n" +
			"beginning; it may be left out if there is one stand-by. What visitors have under way finishes where it is,\n" +
			"or with --cut is reset after the relay's drain_timeout. The private relay that was active stands by.",
		Args:              usage(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: completeSessions(at),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			if len(args) > 1 {
				p.Session = args[1]
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				done, err := c.PromoteSite(ctx, args[0], p)
				if err != nil {
					return aboutSite(ctx, c, args[0], err)
				}
				v := at.view(cmd)
				return v.print(done, func() { v.printf("%s: %s is active\n", args[0], oneLine(done.Session)) })
			})
		},
	}
	promote.Flags().BoolVar(&p.Cut, "cut", false, "reset what is still under way on the other one after the relay's drain_timeout")
	return promote
}
