package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Each command has a page, and roff finds nothing wrong with any of them.
func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	code, stdout, stderr := tunnelctl(t.Context(), "", "man", dir)
	if code != 0 {
		t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	eachCommand(newCommand(&where{env: os.Getenv}, nil, nil, nil), func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c.HasParent() || c.Hidden {
			return
		}
		n++
		b, err := os.ReadFile(filepath.Join(dir, pageName(c)+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		for _, s := range []string{".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n", "\\-\\-json"} {
			if !strings.Contains(string(b), s) {
				t.Errorf("%s lacks %q", c.CommandPath(), s)
			}
		}
	})
	if len(pages) != n {
		t.Errorf("%d pages for %d commands", len(pages), n)
	}
	if runtime.GOOS != "linux" {
		return
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed, so nobody has read them")
	}
	out, err := exec.Command(groff, append([]string{"-man", "-ww", "-b", "-z", "-Tutf8"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

// Every command has words that explain it, and every flag.
func TestHelp(t *testing.T) {
	eachCommand(newCommand(&where{env: os.Getenv}, nil, nil, nil), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", c.CommandPath(), c.Short)
		}
		if c.HasParent() && !c.Parent().HasParent() && c.GroupID == "" && c.Runnable() {
			t.Errorf("%s is in no group of the help: newCommand lists them", c.CommandPath())
		}
		if strings.Contains(c.UsageString(), "\t") {
			t.Errorf("%s: tabs in its usage", c.CommandPath())
		}
	})
}

// The command lines in the help and in the manual are such: commands and flags that there are, with as many arguments as they want.
func TestExamples(t *testing.T) {
	text := make(map[string]string)
	eachCommand(newCommand(&where{env: os.Getenv}, nil, nil, nil), func(c *cobra.Command) { text[c.CommandPath()] = c.Long + "\n" + c.Example })
	for _, name := range []string{"../../docs/operations.md", "../../README.md"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range strings.Split(string(b), "```") {
			if i%2 == 1 {
				text[name] += regexp.MustCompile(`(?m)^`).ReplaceAllString(block, "  ")
			}
		}
	}
	line := regexp.MustCompile(`(?m)^  (?:[^#\n]*[ ='"])?tunnelctl (.*)$`)
	word := regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`)
	n := 0
	for in, text := range text {
		for _, found := range line.FindAllStringSubmatch(text, -1) {
			n++
			command := found[1]
			if strings.Count(command, "'")%2 == 1 { // it is in quotes itself
				command, _, _ = strings.Cut(command, "'")
			}
			var args []string
			for _, w := range word.FindAllString(command, -1) {
				if strings.ContainsAny(w[:1], `|#><\`) {
					break
				}
				args = append(args, strings.Trim(w, `'"`))
			}
			root := newCommand(&where{env: os.Getenv}, nil, nil, nil) // flags keep what they were given
			c, rest, err := root.Find(args)
			if err == nil {
				err = c.ParseFlags(rest)
			}
			if err == nil {
				err = c.ValidateArgs(c.Flags().Args())
			}
			if err == nil && !c.Runnable() {
				err = errors.New("this is no command")
			}
			if err != nil {
				t.Errorf("%s: tunnelctl %s: %v", in, found[1], err)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d examples were found", n)
	}
}
