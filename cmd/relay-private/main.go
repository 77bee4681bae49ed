// Relay-private joins a closed network to a public relay. It only ever dials out.
//
//	relay-private join TOKEN                  makes the site's key, registers it and writes private.toml
//	relay-private --config private.toml       runs
//	relay-private --config private.toml --check
//	relay-private cameras [--user NAME]       looks for cameras on the networks of this machine
//	relay-private key [FILE]                  prints the public half of the site's key, for operators to compare
//	relay-private keygen FILE                 makes a key by hand and prints its public half
//	relay-private --relay HOST --key FILE --site NAME --publish https://app.example.com=http://127.0.0.1:8080
//
// private.toml is described in config.go. SIGHUP reads it again without dropping a stream; SIGTERM and Ctrl-C
// let the streams finish first, a second one does not. Exit codes: 0 done, 1 failed, 2 usage or configuration.
package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
)

// version is set by the linker, see the Makefile.
var version = "devel"

func main() {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "1") // the relay's log says it, and what to do
	os.Exit(command(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// command is the whole program; it returns the exit code.
func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newCommand(stdin, stdout, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return daemon.Exit(stderr, "relay-private", root.ExecuteContext(ctx))
}

func newCommand(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "relay-private",
		Short:         "Join a closed network to a public relay",
		Args:          usage(cobra.NoArgs),
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, stdout, stderr)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return daemon.UsageError(err.Error()) })
	f := root.Flags()
	f.StringVar(&o.config, "config", "", "configuration `file`, such as private.toml")
	f.BoolVar(&o.check, "check", false, "check the configuration, print every problem, and exit")
	f.StringVar(&o.relay, "relay", "", "without a file: the public relay's `host[:port]`")
	f.StringVar(&o.site, "site", "", "without a file: the site's `name`")
	f.StringVar(&o.key, "key", "", "without a file: the site's key `file`")
	f.StringVar(&o.ca, "ca", "", "without a file: PEM `file` of the relay's private CA")
	f.StringArrayVar(&o.publish, "publish", nil, "without a file: a service, `URL=TARGET`; may be repeated")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "auto", "auto (text on a terminal, else JSON), text or json")

	var j joinOptions
	joinCommand := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make the site's key, register it with the public relay and write private.toml",
		Long: "Make the site's key, register it with the public relay and write private.toml.\n\n" +
			"The token comes from `tunnelctl site add` and works once. To keep it out of the process list and the\n" +
			"shell's history, give it in the environment variable CULVERT_TOKEN or with --token-file.",
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				j.token = args[0]
			}
			return join(cmd.Context(), j, stdin, stdout)
		},
	}
	joinCommand.Flags().StringVar(&j.dir, "dir", ".", "`folder` to write to, made if it is missing")
	joinCommand.Flags().StringVar(&j.ca, "ca", "", "PEM `file` of the relay's private CA, if the token does not know it")
	joinCommand.Flags().StringVar(&j.tokenFile, "token-file", "", "read the token from a `file`, - for the standard input")

	keygen := &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a key by hand and print its public half for public.toml",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			public, err := auth.GenerateKey(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(stdout, auth.FormatPublicKey(public))
			return nil
		},
	}
	root.AddCommand(joinCommand, camerasCommand(stdin, stdout, stderr), keygen, keyCommand(stdout))
	return root
}

// keyCommand prints the public half of a key.
func keyCommand(stdout io.Writer) *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "key [FILE]",
		Short: "Print the public half of the site's key",
		Long: "Print the public half of the site's key: of the key file FILE, or of the one that private.toml names.\n\n" +
			"Operators compare it with what tunnelctl says when it reaches the site for the first time, or give it to tunnelctl as --site-key.",
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			var key ed25519.PrivateKey
			switch {
			case len(args) == 1 && config != "":
				return daemon.UsageError("FILE and --config exclude each other")
			case len(args) == 1:
				var err error
				if key, err = auth.ReadKey(args[0]); err != nil {
					return err
				}
			default:
				s, err := load(cmp.Or(config, "private.toml"))
				if err != nil {
					return err
				}
				key = s.key
			}
			fmt.Fprintln(stdout, auth.FormatPublicKey(key.Public().(ed25519.PublicKey)))
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "`private.toml` (default: that in this folder)")
	return cmd
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
