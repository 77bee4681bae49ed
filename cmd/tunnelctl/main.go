// Tunnelctl is for the people who operate Culvert relays.
//
//	tunnelctl status | sites | services | sessions | links    what a relay is doing
//	tunnelctl top                                             the same, live
//	tunnelctl site add|revoke|rotate|promote|kick             lets sites join, and governs their private relays
//	tunnelctl forward | connect                               reaches services of a site from this machine
//	tunnelctl certs, password, tftp, demo, man, completion    and what else there is
//
// tunnelctl --help lists all commands; docs/operations.md is the manual, and tunnelctl help exit-codes has the exit codes.
//
// It speaks to the admin API: on the relay's machine through its loopback listener (--admin), from
// elsewhere through the relay's own domain (--relay). No secret is taken from the command line: tokens are read from
// files, passwords are typed.
//
// Each command is a function that returns a *cobra.Command and is listed in newCommand. What a relay answers is printed by a
// view (view.go), what went wrong gets its exit code in exit.go, and both know --json.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
)

// version is set by the linker, see the Makefile.
var version = "devel"

func main() {
	// ssh ends its ProxyCommand by SIGHUP, and so does a terminal that is closed: what is open is ended in good order then,
	// instead of being kept by the relay in case that its operator comes back. Under nohup that signal stays without effect.
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	code := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is the whole program; it returns the exit code.
func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	at := &where{env: os.Getenv}
	root := newCommand(at, stdin, stdout, stderr)
	root.SetArgs(args)
	return report(stderr, root.ExecuteContext(ctx), at.look.json)
}

// The groups of commands in the help.
const (
	groupWatch = "watch"
	groupSites = "sites"
	groupReach = "reach"
	groupRelay = "relay"
	groupHere  = "here"
)

func newCommand(at *where, stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "tunnelctl",
		Short:         "Operate Culvert relays",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemon.UsageError("which command? tunnelctl --help lists them")
		},
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return daemon.UsageError(fmt.Sprintf("%v: %s --help lists the flags", err, cmd.CommandPath()))
	})

	f := root.PersistentFlags()
	f.StringVar(&at.admin, "admin", "", "the relay's admin `address` (default $CULVERT_ADMIN or 127.0.0.1:7070)")
	f.StringVar(&at.relay, "relay", "", "instead of --admin, from other machines: the relay's own `URL` (default $CULVERT_RELAY)")
	f.StringVar(&at.ca, "ca", "", "with --relay, and for expose: PEM `file` of a private CA (default $CULVERT_CA)")
	f.StringVar(&at.tokenFile, "token-file", "", "`file` with the operators' token (default $CULVERT_TOKEN_FILE, or admin.token in --state)")
	f.StringVar(&at.state, "state", defaultState, "the relay's state `folder`")
	f.StringVar(&at.context, "context", "", "the relay of that `name`, which you are logged in to (default $CULVERT_CONTEXT, or the last login)")
	f.BoolVar(&at.look.json, "json", false, "print JSON, as the relay's API has it; errors, too")
	f.BoolVar(&at.look.plain, "plain", false, "no colours, nothing redrawn, and tables with a tab between columns")

	for _, group := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{groupWatch, "What is going on:", []*cobra.Command{
			statusCommand(at), topCommand(at), sitesCommand(at), sessionsCommand(at), linksCommand(at), servicesCommand(at),
			streamsCommand(at), visitorsCommand(at), requestsCommand(at), certsCommand(at), alertsCommand(at), logsCommand(at),
		}},
		{groupSites, "Sites:", []*cobra.Command{
			siteCommand(at), camerasCommand(at),
		}},
		{groupReach, "Services of a site, from here:", []*cobra.Command{
			forwardCommand(at), connectCommand(at), socksCommand(at), exposeCommand(at), httpCommand(at), diagCommand(at), pingCommand(at),
			benchCommand(at),
		}},
		{groupRelay, "The relay and its operators:", []*cobra.Command{
			loginCommand(at), logoutCommand(at), contextCommand(at), whoamiCommand(at), tokenCommand(at), operatorCommand(at),
			auditCommand(at), configCommand(at), drainCommand(at),
		}},
		{groupHere, "On this machine:", []*cobra.Command{
			tftpCommand(), passwordCommand(at), demoCommand(), versionCommand(at), manCommand(at),
		}},
	} {
		root.AddGroup(&cobra.Group{ID: group.id, Title: group.title})
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	root.SetHelpCommand(helpCommand())
	root.SetHelpCommandGroupID(groupHere)
	root.SetCompletionCommandGroupID(groupHere)
	root.InitDefaultCompletionCmd("completion")
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			eachCommand(c, func(c *cobra.Command) { c.Args = usage(cobra.NoArgs) })
		}
	}
	root.AddCommand(topics()...)
	return root
}

// helpCommand replaces cobra's, which ends with 0 for a command that is not there.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND | TOPIC]",
		Short: "Explain a command, or a topic",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
			of, _, err := cmd.Root().Find(args)
			if err == nil {
				for _, c := range of.Commands() {
					if strings.HasPrefix(c.Name(), typed) && !c.Hidden {
						names = append(names, c.Name()+"\t"+c.Short)
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(cmd.Root(), strings.Join(args, " "))
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}

// unknownCommand is the error for a command that is not there below another one.
func unknownCommand(parent *cobra.Command, name string) error {
	var names []string
	for _, c := range parent.Commands() {
		names = append(names, c.Name())
	}
	hint := ""
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near)
	}
	return daemon.UsageError(fmt.Sprintf("no command %q: %s%s --help lists them", name, hint, parent.CommandPath()))
}

// eachCommand calls f for c and all below it.
func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, below := range c.Commands() {
		eachCommand(below, f)
	}
}

// usage makes usage errors of a check of arguments.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		switch {
		case err != nil && cmd.HasSubCommands() && len(args) > 0:
			return unknownCommand(cmd, args[0])
		case err != nil:
			return daemon.UsageError(fmt.Sprintf("%v\nusage: %s", err, cmd.UseLine()))
		}
		return nil
	}
}
