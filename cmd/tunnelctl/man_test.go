package main

import (
	"os"
	"os/exec"
	"path/filepath"
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
