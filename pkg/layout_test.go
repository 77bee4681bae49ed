// Package pkg_test holds the shape of the repository: which package may import which, and the few
// rules about files that reviewers would otherwise have to remember.
package pkg_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "culvert.dev/"

// arrows lists what each package may import of our own, tests aside. They point downward: commands,
// then admin, then the two relays, then what both need, then the leaves, which import nothing of
// ours. Before adding an arrow, ask whether a return value or an optional func field carries it up.
var arrows = map[string][]string{
	"cmd/relay-public": {
		"pkg/accesslog", "pkg/acme", "pkg/acmetoml", "pkg/admin", "pkg/alert", "pkg/auth", "pkg/daemon", "pkg/dashboard", "pkg/evloop", "pkg/history", "pkg/http1", "pkg/httpd", "pkg/metrics", "pkg/relay", "pkg/relay/public", "pkg/rest", "pkg/tftp",
	},
	"cmd/relay-private": {
		"pkg/acme", "pkg/acmetoml", "pkg/auth", "pkg/daemon", "pkg/diag", "pkg/evloop", "pkg/onvif", "pkg/relay", "pkg/relay/private", "pkg/rest", "pkg/site", "pkg/socks",
	},
	"cmd/tunnelctl": {
		"pkg/admin", "pkg/atomicfile", "pkg/auth", "pkg/daemon", "pkg/diag", "pkg/evloop", "pkg/onvif", "pkg/operate", "pkg/relay", "pkg/relay/private", "pkg/rest", "pkg/socks", "pkg/tftp", "pkg/tftpd",
	},

	"docs/example": {"pkg/rest", "pkg/site"},

	"pkg/site":    {"pkg/atomicfile", "pkg/auth", "pkg/evloop", "pkg/relay", "pkg/relay/private"},
	"pkg/admin":   {"pkg/accesslog", "pkg/auth", "pkg/rest"},
	"pkg/metrics": {"pkg/relay/public"},

	"pkg/relay/public":  {"pkg/auth", "pkg/camera", "pkg/evloop", "pkg/forward", "pkg/http1", "pkg/http2", "pkg/http3", "pkg/link", "pkg/relay", "pkg/rtsp", "pkg/tftp", "pkg/tftpd", "pkg/tunnel", "pkg/websocket"},
	"pkg/relay/private": {"pkg/auth", "pkg/camera", "pkg/evloop", "pkg/forward", "pkg/httpd", "pkg/link", "pkg/relay", "pkg/rtsp", "pkg/tftp", "pkg/tftpd", "pkg/tunnel"},

	"pkg/link":  {"pkg/auth", "pkg/evloop", "pkg/relay", "pkg/tunnel", "pkg/websocket"},
	"pkg/httpd": {"pkg/evloop", "pkg/http1", "pkg/http2"},
	"pkg/rest":  {"pkg/evloop", "pkg/httpd", "pkg/websocket"},

	"pkg/accesslog":  {},
	"pkg/acme":       {"pkg/atomicfile"},
	"pkg/alert":      {"pkg/atomicfile"},
	"pkg/acmetoml":   {"pkg/acme", "pkg/daemon"},
	"pkg/atomicfile": {},
	"pkg/auth":       {"pkg/atomicfile"},
	"pkg/camera":     {},
	"pkg/dashboard":  {}, // files: what they show comes from pkg/admin, by way of a browser
	"pkg/daemon":     {"pkg/atomicfile"},
	"pkg/diag":       {"pkg/egress", "pkg/onvif", "pkg/rest"},
	"pkg/e2e":        {},
	"pkg/egress":     {},
	"pkg/evloop":     {},
	"pkg/forward":    {"pkg/evloop", "pkg/tunnel"},
	"pkg/history":    {},
	"pkg/http1":      {},
	"pkg/http2":      {"pkg/http1"},
	"pkg/http3":      {"pkg/http1"},
	"pkg/memnet":     {},
	"pkg/netem":      {},
	"pkg/operate":    {"pkg/atomicfile", "pkg/auth", "pkg/evloop", "pkg/link", "pkg/relay", "pkg/tunnel", "pkg/websocket"},
	"pkg/onvif":      {"pkg/rtsp"},
	"pkg/relay":      {},
	"pkg/rtsp":       {},
	"pkg/socks":      {"pkg/egress"},
	"pkg/tftp":       {},
	"pkg/tftpd":      {"pkg/evloop", "pkg/relay", "pkg/tftp"},
	"pkg/tunnel":     {},
	"pkg/websocket":  {},
}

// readsEnvironment are the packages outside cmd that look at the environment, with the reason.
var readsEnvironment = map[string]string{
	"pkg/daemon": "NOTIFY_SOCKET, WATCHDOG_USEC and LISTEN_FDS are a protocol of the service manager, not settings of ours",
}

// listed is one package of `go list -json`.
type listed struct {
	Dir          string
	ImportPath   string
	GoFiles      []string // for this system
	IgnoredFiles []string `json:"IgnoredGoFiles"` // for others
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// name is the path below the module: pkg/tunnel.
func (p *listed) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// packages lists all our packages that have code of their own.
func packages(t *testing.T) []*listed {
	cmd := exec.Command("go", "list", "-e", "-json=Dir,ImportPath,GoFiles,IgnoredGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all []*listed
	for d := json.NewDecoder(out); ; {
		p := new(listed)
		err := d.Decode(p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.name() != "pkg" { // this test
			all = append(all, p)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

func ours(imports []string) []string {
	var names []string
	for _, i := range imports {
		if n, ok := strings.CutPrefix(i, module); ok {
			names = append(names, n)
		}
	}
	return names
}

func TestArrows(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		seen[p.name()] = true
		allowed, ok := arrows[p.name()]
		if !ok {
			t.Errorf("%s is new: add it to the arrows in pkg/layout_test.go and to the table in docs/architecture.md", p.name())
			continue
		}
		for _, i := range ours(p.Imports) {
			if i == "pkg/memnet" || i == "pkg/netem" {
				t.Errorf("%s imports %s outside its tests: take a net.Listener or a dial function instead", p.name(), i)
			} else if !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s, which is no arrow: carry it up by a return value or a func field, or add the arrow in pkg/layout_test.go and say why in the commit", p.name(), i)
			}
		}
		for _, i := range allowed {
			if !slices.Contains(p.Imports, module+i) {
				t.Errorf("%s does not import %s any more: remove the arrow in pkg/layout_test.go", p.name(), i)
			}
		}
		// A test beside the relays may start both in one process, but neither relay's own tests
		// may lean on the other: what they share is the wire.
		other := map[string]string{"pkg/relay/public": "pkg/relay/private", "pkg/relay/private": "pkg/relay/public"}[p.name()]
		if other != "" && slices.Contains(ours(slices.Concat(p.Imports, p.TestImports)), other) {
			t.Errorf("%s imports %s: the relays share pkg/relay and the wire, nothing else", p.name(), other)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(arrows)) {
		if !seen[name] {
			t.Errorf("%s is in the arrows of pkg/layout_test.go but not in the repository: remove its line", name)
		}
	}
}

func TestNames(t *testing.T) {
	for _, p := range packages(t) {
		switch path.Base(p.name()) {
		case "util", "utils", "common", "helper", "helpers", "types", "misc", "shared":
			t.Errorf("%s says nothing about what is in it: name the package after its noun, or move each part to where it is used", p.name())
		}
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	top := []string{"LICENSE", "Makefile", "README.md", "bin", "certs", "cmd", "docs", "go.mod", "go.sum", "pkg"}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(top, e.Name()) {
			t.Errorf("%s does not belong at the top of the repository: the top is %s and dot files", e.Name(), strings.Join(top, ", "))
		}
	}
}

func TestFiles(t *testing.T) {
	for _, p := range packages(t) {
		fset := token.NewFileSet()
		var docs []string
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredFiles) {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc.Text() != "" {
				docs = append(docs, name)
			}
			if strings.HasPrefix(p.name(), "pkg/") {
				for _, problem := range inPkg(p.name(), f) {
					t.Errorf("%s/%s: %s", p.name(), name, problem)
				}
			}
		}
		switch len(docs) {
		case 0:
			t.Errorf("%s has no package doc: say in one file what it is, show an example, list its invariants", p.name())
		case 1:
		default:
			t.Errorf("%s has a package doc in each of %s: keep one", p.name(), strings.Join(docs, ", "))
		}
	}
}

// inPkg returns what a file under pkg does that only a command may do.
func inPkg(pkg string, f *ast.File) []string {
	var problems []string
	for _, i := range f.Imports {
		switch i.Path.Value {
		case `"flag"`, `"github.com/spf13/cobra"`, `"github.com/spf13/pflag"`:
			problems = append(problems, fmt.Sprintf("imports %s: only cmd reads flags; take the value as a field", i.Path.Value))
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				problems = append(problems, "has func init: make the value where it is used, or a package-level constant expression")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "os" && readsEnvironment[pkg] == "" {
				switch n.Sel.Name {
				case "Getenv", "LookupEnv", "Environ", "ExpandEnv":
					problems = append(problems, "calls os."+n.Sel.Name+": only cmd reads the environment; take the value as a field")
				case "Args":
					problems = append(problems, "reads os.Args: only cmd reads the command line")
				case "Exit":
					if pkg != "pkg/daemon" {
						problems = append(problems, "calls os.Exit: return an error")
					}
				}
			}
		}
		return true
	})
	return problems
}
