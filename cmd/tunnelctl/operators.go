package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

func tokenCommand(at *where) *cobra.Command {
	token := &cobra.Command{
		Use:   "token",
		Short: "List, make and revoke operators' tokens",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("token list, token create or token revoke? tunnelctl token --help")
		},
	}
	token.AddCommand(tokenListCommand(at), tokenCreateCommand(at), tokenRevokeCommand(at))
	return token
}

func tokenListCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List your tokens; for admins, those of all operators",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				all, err := c.Tokens(ctx)
				if err != nil {
					return err
				}
				t := newTable("ID", "OPERATOR~8", "ROLE", "EXPIRES", "LAST USED", "FROM~10", "NOTE~10")
				for _, one := range all {
					used := "never"
					if one.LastUsed != nil {
						used = age(time.Since(*one.LastUsed)) + " ago"
					}
					if one.Current {
						used = "now, by this command"
					}
					t.add(one.ID, one.Operator, one.Role, untilText(one.Expires), used, dash(one.LastFrom), dash(one.Note))
				}
				v := at.view(cmd)
				return v.print(all, func() {
					v.tableOr(t, "no tokens but the relay's own, in admin.token: tunnelctl operator add NAME --role viewer makes an operator")
				})
			})
		},
	}
}

// printToken prints a token alone on stdout, so that a script can use it, and what to do with it elsewhere. c has made it.
func (v *view) printToken(ctx context.Context, c *admin.Client, t admin.NewToken) error {
	return v.print(t, func() {
		until := "it never expires"
		if t.Expires != nil {
			until = "until " + t.Expires.Local().Format("2006-01-02 15:04 MST")
		}
		v.note("token %s of %s, %s, %s; it is shown this once, and is for\n  %s", printable(t.ID), printable(t.Operator), printable(t.Role), until, printable(loginHint(ctx, c, t)))
		v.printf("%s\n", printable(t.Token))
	})
}

// loginHint is how somebody logs in with a token that c has made.
func loginHint(ctx context.Context, c *admin.Client, t admin.NewToken) string {
	switch {
	case t.Login != "":
		return "tunnelctl login --relay " + t.Login
	case c.Base.Scheme == "https":
		return "tunnelctl login --relay " + c.Base.String()
	}
	machine := "RELAY"
	if s, err := c.Status(ctx); err == nil && s.Domain != "" {
		machine = s.Domain
	}
	return fmt.Sprintf("tunnelctl login --admin %s\non this machine; on others, behind ssh -L %s:%s %s (or with domain = true in [operators] of public.toml)",
		c.Base.Host, c.Base.Port(), c.Base.Host, machine)
}

func tokenCreateCommand(at *where) *cobra.Command {
	var in admin.CreateToken
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create [--operator NAME] [--role ROLE] [--ttl TIME] [--note TEXT]",
		Short: "Make a token, for yourself or, as an admin, for somebody else",
		Long: "Make a token. It is shown once, and only its digest is kept. --role makes one for less than its operator may:\n" +
			"for a script that only looks, say. --ttl 0 makes one that never expires, for admins.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case ttl < 0:
				return daemon.UsageError("--ttl is negative: want a time such as 720h, or 0 for a token that never expires")
			case ttl == 0:
				in.Never = true
			default:
				in.TTL = ttl.Seconds()
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				t, err := c.CreateToken(ctx, in)
				if err != nil {
					return err
				}
				return at.view(cmd).printToken(ctx, c, t)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Operator, "operator", "", "whose token, by `name` (default yours)")
	f.StringVar(&in.Role, "role", "", "what it is for at most: viewer, operator or admin (default the operator's `role`)")
	f.DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long it is good; 0: for ever")
	f.StringVar(&in.Note, "note", "", "what it is for, as `text` for token list")
	return cmd
}

func tokenRevokeCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token, and what was opened by it",
		Args:  usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeWith(at, func(ctx context.Context, c *admin.Client) (ids []string, _ error) {
			all, err := c.Tokens(ctx)
			for _, t := range all {
				ids = append(ids, t.ID+"\t"+t.Operator+" "+t.Note)
			}
			return ids, err
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				if err := c.RevokeToken(ctx, args[0]); err != nil {
					return err
				}
				at.view(cmd).note("token %s is revoked", printable(args[0]))
				return nil
			})
		},
	}
}

func operatorCommand(at *where) *cobra.Command {
	operator := &cobra.Command{
		Use:   "operator",
		Short: "Say who may use the relay's API, and with what role",
		Long: "Operators have a role. A viewer sees what the relay does. An operator may also end sessions and streams, replay\n" +
			"requests, have a stand-by take over, and reach services. An admin may also invite and revoke sites, and\n" +
			"make operators. Who has the relay's admin.token is an admin, whatever becomes of all others.",
		Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("operator list, operator add, operator role, operator remove or operator key? tunnelctl operator --help")
		},
	}
	var role string
	add := &cobra.Command{
		Use:   "add NAME --role ROLE",
		Short: "Make an operator, and print a first token",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if role == "" {
				return daemon.UsageError("--role is missing: viewer (sees), operator (acts, and reaches services) or admin (invites sites, makes operators)?")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				t, err := c.AddOperator(ctx, args[0], role)
				if err != nil {
					return err
				}
				return at.view(cmd).printToken(ctx, c, t)
			})
		},
	}
	add.Flags().StringVar(&role, "role", "", "viewer, operator or admin")
	add.RegisterFlagCompletionFunc("role", completeRoles)
	operator.AddCommand(add, operatorKeyCommand(at),
		&cobra.Command{
			Use:   "list",
			Short: "List the operators",
			Args:  usage(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
					all, err := c.Operators(ctx)
					if err != nil {
						return err
					}
					t := newTable("OPERATOR~8", "ROLE", ">TOKENS", "LAST SEEN")
					for _, o := range all {
						seen := "never"
						if o.LastUsed != nil {
							seen = age(time.Since(*o.LastUsed)) + " ago"
						}
						t.add(o.Name, o.Role, o.Tokens, seen)
					}
					v := at.view(cmd)
					return v.print(all, func() {
						v.tableOr(t, "nobody but who has the relay's admin.token: tunnelctl operator add NAME --role viewer")
					})
				})
			},
		},
		&cobra.Command{
			Use:   "role NAME ROLE",
			Short: "Give an operator another role",
			Long:  "Give an operator another role, and with it the tokens that were made without one of their own. What is open by them is ended.",
			Args:  usage(cobra.ExactArgs(2)),
			ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
				if len(args) == 1 {
					return completeRoles(cmd, args, typed)
				}
				return completeOperators(at)(cmd, args, typed)
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
					if err := c.SetRole(ctx, args[0], args[1]); err != nil {
						return err
					}
					at.view(cmd).note("%s has the role %s", printable(args[0]), printable(args[1]))
					return nil
				})
			},
		},
		&cobra.Command{
			Use:               "remove NAME",
			Short:             "Forget an operator, and end all tokens of that name",
			Args:              usage(cobra.ExactArgs(1)),
			ValidArgsFunction: completeOperators(at),
			RunE: func(cmd *cobra.Command, args []string) error {
				return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
					if err := c.RemoveOperator(ctx, args[0]); err != nil {
						return err
					}
					at.view(cmd).note("operator %s is removed", printable(args[0]))
					return nil
				})
			},
		},
	)
	return operator
}

func completeRoles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"viewer\tsees", "operator\tacts, and reaches services", "admin\tinvites sites, makes operators"}, cobra.ShellCompDirectiveNoFileComp
}

func completeOperators(at *where) completion {
	return completeWith(at, func(ctx context.Context, c *admin.Client) (names []string, _ error) {
		all, err := c.Operators(ctx)
		for _, o := range all {
			names = append(names, o.Name+"\t"+o.Role)
		}
		return names, err
	})
}

func whoamiCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Say who you are to the relay, and what your role is",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				me, err := c.Me(ctx)
				if err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(me, func() {
					v.printf("%s, %s, at %s; expires: %s\n", printable(me.Name), printable(me.Role), c.Base.Host, untilText(me.Expires))
				})
			})
		},
	}
}

func auditCommand(at *where) *cobra.Command {
	var lines int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who has changed what, and who was refused",
		Long:  "Show the last lines of the relay's audit log: who has changed what, from where, with what outcome, and who was refused. All of it is in audit.log in the relay's state folder.",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 1 || lines > 10_000 {
				return daemon.UsageError("--lines: want 1 to 10000")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				all, err := c.AuditLog(ctx, admin.Lines{Lines: lines})
				if err != nil {
					return err
				}
				t := newTable("TIME", "OPERATOR~8", "FROM~10", "WHAT", "OUTCOME~12", "WITH~12")
				for _, l := range all {
					outcome := green.of("done")
					if l.Code != http.StatusOK {
						outcome = red.of(fmt.Sprintf("%d %s", l.Code, l.Error))
					}
					t.add(l.Time.Local().Format("01-02 15:04:05"), cmp.Or(l.Operator, "?"), l.Remote, l.Call, outcome, dash(string(l.In)))
				}
				v := at.view(cmd)
				return v.print(all, func() { v.tableOr(t, "nothing was changed yet, and nobody refused") })
			})
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 50, "how many")
	return cmd
}

func drainCommand(at *where) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Have the relay take no more visitors, and stop when those it has are done",
		Long: "Have the relay stop as it does on SIGTERM: it listens no more, lets visitors finish for up to drain_timeout, and\n" +
			"ends. Whatever has started it decides whether it comes back: systemd does so after a failure, which this is none.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return daemon.UsageError("the relay will stop: say so with --yes")
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				if err := c.Drain(ctx); err != nil {
					return err
				}
				at.view(cmd).note("%s drains; tunnelctl status shows it until it has stopped", c.Base.Host)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really")
	return cmd
}
