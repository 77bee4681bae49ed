// Tunnelctl is for the people who operate Culvert relays.
//
//	tunnelctl status | sites | services [--json]          what a relay is doing
//	tunnelctl site add NAME --publish PATTERN...          prints a join token for a new site
//	tunnelctl site add NAME --stand-by                    the same for another private relay of a site
//	tunnelctl site revoke NAME [--key KEY]                forgets a site's keys and cuts its sessions
//	tunnelctl site promote NAME [ID]                      has a stand-by take a site's visitors over
//	tunnelctl cameras SITE [--user NAME] [--json]         looks for cameras on the site's network
//	tunnelctl forward SITE/SERVICE [LOCAL]                a service of a site, on a port of this machine
//	tunnelctl connect SITE/SERVICE                        the same on stdin and stdout, for ProxyCommand
//	tunnelctl tftp get|put|serve                          a TFTP client, and a TFTP server of a folder
//	tunnelctl certs DIR NAME...                           a development CA and a certificate
//	tunnelctl password [USER]                             the hash of a visitor's password
//	tunnelctl demo                                        everything on this machine
//
// It speaks to the admin API: on the relay's machine through its loopback listener (--admin), from
// elsewhere, for forward and connect, through the relay's own domain (--relay). The operators' token is read from
// a file. Exit codes: 0 done, 1 failed, 2 usage.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
)

// version is set by the linker, see the Makefile.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is the whole program; it returns the exit code.
func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newCommand(os.Getenv)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "tunnelctl: %s\n", printable(err.Error()))
	}
	return daemon.ExitCode(err)
}

// printable removes what could steer a terminal: some texts come from a relay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func newCommand(env func(string) string) *cobra.Command {
	root := &cobra.Command{
		Use:           "tunnelctl",
		Short:         "Operate Culvert relays",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemon.UsageError("which command? tunnelctl --help lists them")
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return daemon.UsageError(err.Error()) })

	var at where
	f := root.PersistentFlags()
	f.StringVar(&at.admin, "admin", "", "the relay's admin `address` (default $CULVERT_ADMIN or 127.0.0.1:7070)")
	f.StringVar(&at.relay, "relay", "", "instead of --admin, for forward and connect: the relay's own `URL` (default $CULVERT_RELAY)")
	f.StringVar(&at.ca, "ca", "", "with --relay: PEM `file` of a private CA (default $CULVERT_CA)")
	f.StringVar(&at.tokenFile, "token-file", "", "`file` with the operators' token (default $CULVERT_TOKEN_FILE, or admin.token in --state)")
	f.StringVar(&at.state, "state", "/var/lib/culvert", "the relay's state `folder`")
	at.env = env

	root.AddCommand(
		statusCommand(&at), sitesCommand(&at), servicesCommand(&at), certificatesCommand(&at), siteCommand(&at), camerasCommand(&at),
		forwardCommand(&at), connectCommand(&at), tftpCommand(),
		certsCommand(), passwordCommand(), demoCommand(),
		&cobra.Command{
			Use:   "version",
			Short: "Print the version",
			Args:  usage(cobra.NoArgs),
			Run: func(cmd *cobra.Command, _ []string) {
				fmt.Fprintf(cmd.OutOrStdout(), "culvert %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			},
		},
	)
	return root
}

// usage makes usage errors of a check of arguments.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return daemon.UsageError(fmt.Sprintf("%v\nusage: %s", err, cmd.UseLine()))
		}
		return nil
	}
}
