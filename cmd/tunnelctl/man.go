package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func manCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the man pages",
		Long: "Write the man pages of all commands into a folder: tunnelctl.1, tunnelctl-status.1 and so on. For all users of this machine:\n\n" +
			"  tunnelctl man /usr/local/share/man/man1",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o777); err != nil {
				return fmt.Errorf("%w: give a folder that you may write to", err)
			}
			n := 0
			var failed error
			eachCommand(cmd.Root(), func(c *cobra.Command) {
				if failed != nil || c.Hidden || !c.IsAvailableCommand() && c != cmd.Root() {
					return
				}
				failed = os.WriteFile(filepath.Join(args[0], pageName(c)+".1"), []byte(manPage(c)), 0o666)
				n++
			})
			if failed != nil {
				return failed
			}
			v := at.view(cmd)
			return v.print(map[string]any{"pages": n, "folder": args[0]}, func() { v.printf("%d pages in %s: man %s\n", n, args[0], filepath.Join(args[0], "tunnelctl.1")) })
		},
	}
}

// pageName is the name of a command's page: tunnelctl-site-add.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is the page of a command, in roff with the man macros.
func manPage(c *cobra.Command) string {
	var b strings.Builder
	section := func(title string) { fmt.Fprintf(&b, ".SH %s\n", title) }
	fmt.Fprintf(&b, ".TH %q 1 \"\" \"Culvert %s\" \"Culvert\"\n", strings.ToUpper(pageName(c)), roff(version))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(pageName(c)), roff(c.Short))
	section("SYNOPSIS")
	use := c.UseLine()
	if !c.Runnable() || c.HasAvailableSubCommands() && c == c.Root() {
		use = c.CommandPath() + " COMMAND [flags]"
	}
	name, rest, _ := strings.Cut(use, " ")
	fmt.Fprintf(&b, ".B %s\n%s\n", roff(name), roff(rest))
	section("DESCRIPTION")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	roffText(&b, long)
	if c.Example != "" {
		section("EXAMPLES")
		roffText(&b, c.Example)
	}
	if c.HasAvailableSubCommands() {
		section("COMMANDS")
		for _, below := range c.Commands() {
			if below.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n\\fB%s\\fP(1)\n%s\n", roff(pageName(below)), roff(below.Short))
			}
		}
	}
	roffFlags(&b, "OPTIONS", c.NonInheritedFlags())
	roffFlags(&b, "OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c == c.Root() {
		section("EXIT STATUS")
		roffText(&b, indented(exitHelp))
		section("ENVIRONMENT")
		roffText(&b, indented(environmentHelp))
		section("JSON")
		roffText(&b, jsonHelp)
	}
	section("SEE ALSO")
	if c.HasParent() {
		fmt.Fprintf(&b, "\\fB%s\\fP(1)\n", roff(pageName(c.Parent())))
	} else {
		b.WriteString("relay-public, relay-private, and docs/operations.md of Culvert\n")
	}
	return b.String()
}

// roffFlags writes a section of flags.
func roffFlags(b *strings.Builder, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(b, ".TP\n\\fB%s\\fP", roff(name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fP", roff(value))
		}
		if !isZeroDefault(f) {
			text += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(b, "\n%s\n", roff(text))
	})
}

// isZeroDefault says whether the default of a flag goes without saying.
func isZeroDefault(f *pflag.Flag) bool {
	switch f.DefValue {
	case "", "0", "false", "0s", "[]":
		return true
	}
	return false
}

// roffText writes paragraphs. Lines that begin with spaces, and lists in columns, stay as they are.
func roffText(b *strings.Builder, text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		asIs := strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "   ")
		if asIs {
			b.WriteString(".nf\n")
		}
		for line := range strings.Lines(paragraph) {
			b.WriteString(roff(strings.TrimSuffix(line, "\n")) + "\n")
		}
		if asIs {
			b.WriteString(".fi\n")
		}
	}
}

func indented(text string) string { return "  " + strings.ReplaceAll(text, "\n", "\n  ") }

// roff escapes text: a line may begin with no dot or quote, and a hyphen that is to be copied is a minus.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, "’", "'").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}
