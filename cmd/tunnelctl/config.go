package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

// maxConfig is how long a configuration file may be that the relay is asked about.
const maxConfig = 200 << 10

func configCommand(at *where) *cobra.Command {
	config := &cobra.Command{
		Use:   "config",
		Short: "Check configuration files",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("config check? tunnelctl config --help")
		},
	}
	var kind string
	var remote bool
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a public.toml or private.toml, and change nothing",
		Long: "Say what is wrong with a configuration file, and change nothing. The relay program of this machine does it, next to\n" +
			"tunnelctl or in PATH, with the files that the configuration names. Without one, or with --remote, the public\n" +
			"relay is asked, as its role admin, about a public.toml; files that it names are then those of the relay's machine.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readConfig(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			if kind == "" {
				kind = kindOf(args[0], text)
			}
			switch kind {
			case "public", "private":
			case "":
				return daemon.UsageError(fmt.Sprintf("%s looks neither like a public.toml nor like a private.toml: say which with --kind", args[0]))
			default:
				return daemon.UsageError(fmt.Sprintf("--kind %q: want public or private", kind))
			}
			program := ""
			if !remote && args[0] != "-" {
				program = relayProgram("relay-" + kind)
			}
			v := at.view(cmd)
			switch {
			case program != "":
				return checkHere(cmd.Context(), v, program, args[0])
			case kind == "private":
				return failf(daemon.ExitFailed, "relay-private is not on this machine, and nothing else knows its file: run `relay-private --config %s --check` where it is", args[0])
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				report, err := c.CheckConfig(ctx, string(text))
				if err != nil {
					return err
				}
				return v.printReport(report, args[0])
			})
		},
	}
	check.Flags().StringVar(&kind, "kind", "", "public or private (default: what it looks like)")
	check.Flags().BoolVar(&remote, "remote", false, "ask the relay")
	config.AddCommand(check)
	return config
}

// readConfig reads a file, or stdin as "-".
func readConfig(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, daemon.UsageError(err.Error())
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxConfig+1))
	if err != nil {
		return nil, daemon.UsageError(err.Error())
	}
	if len(text) > maxConfig {
		return nil, daemon.UsageError(fmt.Sprintf("%s has more than %d bytes: it is no configuration file", name, maxConfig))
	}
	return text, nil
}

// What only one of the two files has.
var (
	publicOnly  = regexp.MustCompile(`(?m)^\s*(domain\s*=|\[\[site\]\]|\[limits\]|\[operators\])`)
	privateOnly = regexp.MustCompile(`(?m)^\s*(relay\s*=|site\s*=|\[\[service\]\])`)
)

// kindOf guesses which relay a file is for, by what is in it, or its name; "" if nothing says so.
func kindOf(name string, text []byte) string {
	public, private := publicOnly.Match(text), privateOnly.Match(text)
	switch {
	case public && !private:
		return "public"
	case private && !public:
		return "private"
	case strings.Contains(filepath.Base(name), "public"):
		return "public"
	case strings.Contains(filepath.Base(name), "private"):
		return "private"
	}
	return ""
}

// relayProgram finds a program of Culvert: beside this one, or in PATH; "" if there is none.
func relayProgram(name string) string {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if runtime.GOOS == "windows" {
			beside += ".exe"
		}
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// checkHere has a relay program check a file.
func checkHere(ctx context.Context, v *view, program, file string) error {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--config", file, "--check")
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return v.printReport(&admin.ConfigReport{OK: true}, file)
	case errors.As(err, &exit) && exit.ExitCode() == daemon.ExitUsage:
		report := new(admin.ConfigReport)
		for line := range strings.Lines(errs.String()) {
			report.Mistakes = append(report.Mistakes, strings.TrimPrefix(strings.TrimSpace(line), filepath.Base(program)+": "))
		}
		return v.printReport(report, file)
	}
	return fmt.Errorf("%s --check: %w: %s", program, err, strings.TrimSpace(errs.String()))
}

// printReport says what is wrong with a file; its error has the exit code of a bad one.
func (v *view) printReport(r *admin.ConfigReport, file string) error {
	err := v.print(r, func() {
		if !r.OK {
			return
		}
		v.printf("%s is well\n", printable(file))
		if len(r.Restart) > 0 {
			v.note("a reload does not change %s: that needs a restart of the relay", printable(strings.Join(r.Restart, ", ")))
		}
	})
	if err != nil || r.OK {
		return err
	}
	return daemon.UsageError(strings.Join(r.Mistakes, "\n"))
}
