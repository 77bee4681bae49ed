//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// workerEnv names the role of a re-executed test binary: "client", "target" or "camera". The load
// of the benchmark and of the floods comes from processes of its own, so that neither
// their memory nor their garbage collector shows in what is measured.
const workerEnv = "CULVERT_E2E_WORKER"

// root is the folder of everything the run makes: binaries, certificates, test folders.
// TestMain sets it before any test and removes it after the last.
var root string

func TestMain(m *testing.M) {
	switch role := os.Getenv(workerEnv); role {
	case "":
	case "client":
		os.Exit(runClient())
	case "target":
		os.Exit(runTarget())
	case "camera":
		os.Exit(runCamera())
	default:
		fmt.Fprintf(os.Stderr, "%s=%q: no such role\n", workerEnv, role)
		os.Exit(2)
	}
	flag.Parse()
	flag.Set("test.parallel", "12") // those that may run beside others wait more than they work
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "culvert-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// nginx, sshd and postgres run as other users and have to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	root = dir
	os.Setenv("XDG_CONFIG_HOME", filepath.Join(root, "config")) // tunnelctl remembers sites and logins there
	if err := makeCertificates(filepath.Join(root, "certs")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildBinaries compiles the three commands into root/bin, once for the whole run.
var buildBinaries = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(root, "bin")+"/", "./cmd/...")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
	}
	return nil
})

// command returns the path of one of our commands.
func command(t testing.TB, name string) string {
	t.Helper()
	if err := buildBinaries(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "bin", name)
}

// tool returns the path of a program that is not ours. The paths beside PATH are where
// Debian puts servers.
func tool(t testing.TB, name, debianPackage string, paths ...string) string {
	t.Helper()
	for _, pattern := range paths {
		found, _ := filepath.Glob(pattern)
		if len(found) > 0 {
			return found[len(found)-1]
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run .ci/tools, or apt-get install %s", name, debianPackage)
	}
	return path
}

// builtTool returns the path of a program in Go that is not ours, and that .ci/tools has built.
func builtTool(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", ".ci", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if exists(path) {
		return path
	}
	if path, err = exec.LookPath(name); err != nil {
		t.Fatalf("%s is neither in .ci/bin nor in the PATH: run .ci/tools", name)
	}
	return path
}
