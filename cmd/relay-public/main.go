// Relay-public is the relay on the internet: visitors come in, private relays dial in, and streams join them.
//
//	relay-public --config public.toml
//	relay-public --config public.toml --check
//
// public.toml is described in config.go. SIGHUP reads it, and the certificates, again without dropping a
// stream; SIGTERM and Ctrl-C let visitors finish first, a second one does not. Exit codes: 0 done, 1 failed,
// 2 usage or configuration.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
)

// version is set by the linker, see the Makefile.
var version = "devel"

func main() {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "1") // the relay's log says it, and what to do
	os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// command is the whole program; it returns the exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	root := &cobra.Command{
		Use:           "relay-public --config FILE",
		Short:         "Publish the services of closed networks, whose private relays dial in",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return daemon.UsageError(fmt.Sprintf("unexpected argument %q (see --help)", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, stdout, stderr)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return daemon.UsageError(err.Error()) })
	f := root.Flags()
	f.StringVar(&o.config, "config", "", "configuration `file`, such as public.toml")
	f.BoolVar(&o.check, "check", false, "check the configuration, print every problem, and exit")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "auto", "auto (text on a terminal, else JSON), text or json")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return daemon.Exit(stderr, "relay-public", root.ExecuteContext(ctx))
}
