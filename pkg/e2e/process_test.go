//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// process is a program the tests started. Its output is kept and printed when the test fails.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended and all its output is in log
	err  error         // of Wait, after done

	abrupt bool // it is killed at the end of the test: ending in good order takes it a while

	mu    sync.Mutex
	log   []string
	added chan struct{} // closed and replaced at each new line
}

// maxLog is the number of lines kept of one program.
const maxLog = 4000

// start runs a program until the test ends. Children that keep running when their
// parent dies would outlive the test, so each program gets its own process group and the
// whole group is killed at the end.
func start(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	return startIn(t, nil, name, cmd)
}

// startIn is start in a namespace; nil is the test's own.
func startIn(t testing.TB, n *netem.Namespace, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, done: make(chan struct{}), added: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Stdout == nil {
		cmd.Stdout = w
	}
	cmd.Stderr = w
	err = n.Do(cmd.Start)
	w.Close()
	if err != nil {
		r.Close()
		t.Fatalf("start %s: %v", name, err)
	}
	go p.collect(r)
	t.Cleanup(func() {
		if p.abrupt {
			p.kill()
		} else {
			p.stop()
		}
		if t.Failed() {
			p.dump(t)
		}
	})
	return p
}

// collect reads the program's output to its end and then waits for it.
func (p *process) collect(r *os.File) {
	defer close(p.done)
	defer r.Close()
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		p.mu.Lock()
		if len(p.log) == maxLog {
			p.log = append(p.log[:0], p.log[maxLog/2:]...)
		}
		p.log = append(p.log, sc.Text())
		close(p.added)
		p.added = make(chan struct{})
		p.mu.Unlock()
	}
	io.Copy(io.Discard, r)
	p.err = p.cmd.Wait()
}

// startRelay runs one of our commands.
func startRelay(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return startRelayIn(t, nil, name, args...)
}

func startRelayIn(t testing.TB, n *netem.Namespace, name string, args ...string) *process {
	t.Helper()
	p := startIn(t, n, name, exec.Command(command(t, name), args...))
	p.abrupt = true
	return p
}

// dump prints the last lines of the program's output.
func (p *process) dump(t testing.TB) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := max(0, len(p.log)-60)
	t.Logf("--- output of %s (last %d of %d lines)\n%s", p.name, len(p.log)-from, len(p.log), strings.Join(p.log[from:], "\n"))
}

// find returns the first line at or after line number from that contains every one of
// the words, and the number of the line after it.
func (p *process) find(from int, words ...string) (line string, next int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
search:
	for i := from; i < len(p.log); i++ {
		for _, w := range words {
			if !strings.Contains(p.log[i], w) {
				continue search
			}
		}
		return p.log[i], i + 1, true
	}
	return "", len(p.log), false
}

// lines is the number of lines so far, for a later await.
func (p *process) lines() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.log)
}

// await waits for an output line, at or after line number from, that contains every one
// of the words.
func (p *process) await(t testing.TB, from int, words ...string) string {
	t.Helper()
	return p.awaitWithin(t, waitLimit, from, words...)
}

// awaitWithin is await for what takes long.
func (p *process) awaitWithin(t testing.TB, limit time.Duration, from int, words ...string) string {
	t.Helper()
	timeout := time.After(limit)
	for {
		p.mu.Lock()
		added := p.added
		p.mu.Unlock()
		if line, _, ok := p.find(from, words...); ok {
			return line
		}
		select {
		case <-added:
		case <-p.done:
			if line, _, ok := p.find(from, words...); ok {
				return line
			}
			t.Fatalf("%s ended (%v) before it said %q", p.name, p.err, words)
		case <-timeout:
			t.Fatalf("%s did not say %q", p.name, words)
		}
	}
}

// signal sends a signal to the program itself.
func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal %s: %v", p.name, err)
	}
}

// wait waits for the program to end by itself and returns its exit code, -1 for a signal.
func (p *process) wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s did not end within %v", p.name, limit)
		return -1
	}
}

// stop ends the program, asking first.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
	p.kill()
}

// kill ends the program and everything it started at once.
func (p *process) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// pids returns the program's process id and those of its children.
func (p *process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// rss returns the resident bytes of the program and its children.
func (p *process) rss() int64 {
	var sum int64
	for _, pid := range p.pids() {
		sum += statusKB(pid, "VmRSS:") << 10
	}
	return sum
}

// statusKB reads one number from /proc/PID/status, 0 when the process is gone.
func statusKB(pid int, key string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(string(f[0]), 10, 64)
				return n
			}
		}
	}
	return 0
}

// cpuSeconds returns user and system time of some processes since their start.
// The kernel counts in ticks of 10 ms.
func cpuSeconds(pids []int) float64 {
	var ticks int64
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The second field is the name in parentheses and may contain spaces.
		if i := bytes.LastIndexByte(b, ')'); i > 0 {
			if f := bytes.Fields(b[i+1:]); len(f) > 12 {
				user, _ := strconv.ParseInt(string(f[11]), 10, 64)
				system, _ := strconv.ParseInt(string(f[12]), 10, 64)
				ticks += user + system
			}
		}
	}
	return float64(ticks) / 100
}

// givenPorts are those that freePort has returned.
var givenPorts sync.Map

// freePort returns a port that nobody listens on, by TCP or UDP, and that no other test has been given. It stays below
// the kernel's range for outgoing connections, so that none of those takes it meanwhile. Nor does a program that is just
// being started: between fork and exec it has the sockets of this process, the closed ones that made sure too.
func freePort(t testing.TB) int {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		ln.Close()
		if pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err == nil {
			pc.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// freeAddr is the address of a freePort at 127.0.0.1.
func freeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePort(t))
}

// awaitPort waits until something accepts connections on addr.
func awaitPort(t testing.TB, p *process, network, addr string) {
	t.Helper()
	awaitPortIn(t, nil, p, network, addr)
}

func awaitPortIn(t testing.TB, n *netem.Namespace, p *process, network, addr string) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); {
		c, err := dialIn(n, network, addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended: %v", p.name, p.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatalf("%s: nothing listens on %s", p.name, addr)
}

// dialIn connects from a namespace. The address is numeric: a look-up would be made by a
// goroutine that is elsewhere.
func dialIn(n *netem.Namespace, network, addr string) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = net.DialTimeout(network, addr, waitLimit)
		return err
	})
	return c, err
}

// listenIn listens in a namespace.
func listenIn(n *netem.Namespace, addr string) (ln net.Listener, err error) {
	err = n.Do(func() (err error) {
		ln, err = net.Listen("tcp4", addr)
		return err
	})
	return ln, err
}

// run executes a program to its end and returns what it printed on both outputs.
func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	return runIn(t, nil, cmd)
}

func runIn(t testing.TB, n *netem.Namespace, cmd *exec.Cmd) string {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}
