//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// terminal is a program in a terminal of tmux.
type terminal struct {
	t      testing.TB
	tmux   string
	server string // its socket's name
}

// terminals counts them: a server that is ending does not take the next one.
var terminals atomic.Int32

// startTerminal runs a program in a terminal of so many cells. When it has ended the terminal says so: "ended with CODE", and
// how the terminal is set.
func startTerminal(t testing.TB, width, height int, cmd *exec.Cmd) *terminal {
	t.Helper()
	m := &terminal{t: t, tmux: tool(t, "tmux", "tmux"), server: fmt.Sprintf("culvert-%d-%d", os.Getpid(), terminals.Add(1))}
	words := make([]string, len(cmd.Args))
	for i, arg := range cmd.Args {
		words[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	t.Cleanup(func() { exec.Command(m.tmux, "-L", m.server, "kill-server").Run() })
	m.do("-u", "-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height),
		strings.Join(words, " ")+`; echo "ended with $?"; stty -a; exec sleep 1000`)
	return m
}

// do runs a command of tmux.
func (m *terminal) do(args ...string) string {
	m.t.Helper()
	cmd := exec.Command(m.tmux, append([]string{"-L", m.server}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=", "NO_COLOR=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// shows waits until the screen has all of what, and returns it.
func (m *terminal) shows(what ...string) (screen string) {
	m.t.Helper()
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("the screen, when %q was waited for:\n%s", what, screen)
		}
	})
	eventually(m.t, fmt.Sprintf("%q on the screen", what), func() bool {
		screen = m.do("capture-pane", "-p")
		for _, s := range what {
			if !strings.Contains(screen, s) {
				return false
			}
		}
		return true
	})
	return screen
}

// goOn does what fg does in a shell: the program has been stopped.
func (m *terminal) goOn() {
	m.t.Helper()
	shell := strings.TrimSpace(m.do("list-panes", "-F", "#{pane_pid}"))
	children, err := os.ReadFile("/proc/" + shell + "/task/" + shell + "/children")
	if err != nil {
		m.t.Fatal(err)
	}
	for child := range strings.FieldsSeq(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			m.t.Fatal(err)
		}
		eventually(m.t, "the program to be stopped", func() bool {
			stat, err := os.ReadFile("/proc/" + child + "/stat")
			return err != nil || strings.Contains(string(stat), ") T ")
		})
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			m.t.Fatalf("child %d of the shell: %v", pid, err)
		}
	}
}

func (m *terminal) press(keys ...string) { m.do(append([]string{"send-keys"}, keys...)...) }

// The live view in a terminal: it fits, follows its size, knows its keys, waits for a relay that is restarted, and leaves the terminal as
// it was.
func TestTop(t *testing.T) {
	_, target := startTarget(t)
	s := startSystemDirect(t, service{"web", "https://web.example.com", "http://" + target.HTTP}, service{"hidden", "", "tcp://" + target.Echo})
	cmd := s.tunnelctl("top", "--every", "200ms")
	m := startTerminal(t, 80, 24, cmd)
	for range 3 {
		s.curl(s.url("web", "/"))
	}
	screen := m.shows("localhost", "live", "in ", "out ", "requests", "1 of 1 site connected", "office ", "connected", "office/web", "office/hidden", "q quit")
	if strings.Contains(screen, "…") {
		t.Errorf("something is cut at 80x24:\n%s", screen)
	}

	m.do("resize-window", "-x", "130", "-y", "40")
	m.shows("1 2 3 alone")
	m.do("resize-window", "-x", "36", "-y", "8")
	m.shows("live", "SITE", "q quit")
	m.do("resize-window", "-x", "80", "-y", "24")

	m.press("/", "hidd", "Enter")
	if screen := m.shows("filter hidd", "office/hidden"); strings.Contains(screen, "office/web") {
		t.Errorf("filtered:\n%s", screen)
	}
	m.press("Escape")
	m.shows("office/web")
	m.press("?")
	m.shows("any key goes back")
	m.press("x")
	m.press("p")
	m.shows("paused at")
	m.press("p")
	m.shows("live")

	s.public.stop()
	m.shows("no answer for", "nothing listens on", "office ") // of the services, the last answer may have been that they go
	s.startPublic()
	m.shows(" live", "1 of 1 site connected", "office/web")

	m.press("q")
	m.shows("ended with 0", " echo ", " icanon ")

	// Ctrl-Z gives the terminal to the shell for a while; Ctrl-C is a key, too.
	m = startTerminal(t, 80, 24, cmd)
	m.shows("live")
	m.press("C-z")
	eventually(t, "the shell's screen", func() bool { return !strings.Contains(m.do("capture-pane", "-p"), "live") })
	m.goOn()
	m.shows("live")
	m.press("C-c")
	m.shows("ended with 0", " echo ")
}
