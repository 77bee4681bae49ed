//go:build linux

package e2e

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/pkg/netem"
)

// newLink is a link of 50 ms and 200 Mbit/s for one test.
func newLink(t testing.TB, c netem.Config) *netem.Link {
	t.Helper()
	l, err := netem.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// transports are the options of private.toml by which the tests of this file are repeated.
var transports = []string{"wss", "quic", "auto"}

// over are the options for a transport.
func over(transport string) string { return fmt.Sprintf("transport = %q\n", transport) }

// randomFile writes a file that curl can upload and relay-private serve as https://files.example.com/data.
func randomFile(t testing.TB, size int) (folder, sum string) {
	t.Helper()
	folder = tempDir(t)
	data := make([]byte, size)
	rand.Read(data)
	writeFile(t, filepath.Join(folder, "data"), string(data))
	h := sha256.Sum256(data)
	return folder, hex.EncodeToString(h[:])
}

// download fetches the file of randomFile and returns its hash.
func (s *system) download(options ...string) (sum string, err error) {
	h := sha256.New()
	cmd := s.curlCmd(append(options, s.url("files", "/data"))...)
	cmd.Stdout = h
	err = s.outside.Do(cmd.Run)
	return hex.EncodeToString(h.Sum(nil)), err
}

// TestTransfers sends and fetches files with 50 curls at a time while the links are cut
// each second.
func TestTransfers(t *testing.T) {
	t.Parallel()
	const period = 10 * time.Second // all visitors work all the time: it takes as much from the tests beside it
	l := newLink(t, netem.Config{})
	folder, sum := randomFile(t, 4<<20)
	s := configure(t, l,
		service{"files", "https://files.example.com", "file://" + folder},
		service{"up", "https://up.example.com", "http://" + startSinkIn(t, l.Inside)})
	s.startPublic()
	s.link = startFaultProxyIn(t, l.Inside, s.relay())
	s.startPrivate()

	stop := time.Now().Add(period)
	var done atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for time.Now().Before(stop) && !t.Failed() {
				if i%2 == 0 {
					if got, err := s.download(); err != nil || got != sum {
						t.Errorf("download by visitor %d: %v, %s, want %s", i, err, got, sum)
					}
				} else {
					var out strings.Builder
					cmd := s.curlCmd("-T", filepath.Join(folder, "data"), s.url("up", "/"))
					cmd.Stdout = &out
					if err := l.Outside.Do(cmd.Run); err != nil || !strings.HasSuffix(out.String(), sum) {
						t.Errorf("upload by visitor %d: %v, %s, want %s", i, err, out.String(), sum)
					}
				}
				done.Add(1)
			}
		})
	}
	cuts := 0
	for time.Now().Before(stop) {
		time.Sleep(time.Second)
		cuts += s.link.cut()
	}
	wg.Wait()
	t.Logf("%d transfers of 4 MiB, %d connections of links cut in %v", done.Load(), cuts, period)
	if cuts == 0 {
		t.Error("nothing was cut")
	}
}

// conversation is a program at which somebody types numbers, one each 100 ms, and which
// shows each of them when it has been to the other end and back.
type conversation struct {
	name  string
	p     *process
	typed chan struct{} // closed to end the typing
	ended chan error    // what was wrong, or nil when all has come back

	mu    sync.Mutex
	sent  []time.Time // of the numbers that are under way
	next  int         // that comes back next
	pause time.Duration
}

// converse starts a conversation and waits for the first answer. line is what is typed for
// a number.
func converse(t testing.TB, n *netem.Namespace, name string, cmd *exec.Cmd, line string) *conversation {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	c := &conversation{name: name, typed: make(chan struct{}), ended: make(chan error, 1)}
	c.p = startIn(t, n, name, cmd)
	w.Close()
	go c.read(r)
	go c.type_(in, line)
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(10 * time.Millisecond) {
		if _, come, _ := c.state(); come > 0 {
			return c
		}
		select {
		case err := <-c.ended:
			c.p.dump(t)
			t.Fatalf("%s: %v", name, err)
		default:
		}
		if time.Now().After(deadline) {
			c.p.dump(t)
			t.Fatalf("%s: nothing comes back", name)
		}
	}
}

func (c *conversation) type_(in io.WriteCloser, line string) {
	defer in.Close()
	for n := 0; ; {
		if c.send() {
			if _, err := fmt.Fprintf(in, line+"\n", n); err != nil {
				return // read knows more
			}
			n++
		}
		select {
		case <-c.typed:
			for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if _, _, away := c.state(); away == 0 {
					return
				}
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// maxAway is how many numbers are on their way at most: psql has one after the other answered, which takes longer than
// typing them when the machine is busy.
const maxAway = 20

// send counts a number that is to be typed, unless it has to wait for others.
func (c *conversation) send() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sent) == maxAway {
		return false
	}
	c.sent = append(c.sent, time.Now())
	return true
}

func (c *conversation) read(r io.ReadCloser) {
	defer r.Close()
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		c.mu.Lock()
		if sc.Text() != fmt.Sprint(c.next) || len(c.sent) == 0 {
			err := fmt.Errorf("%q came instead of %d", sc.Text(), c.next)
			c.mu.Unlock()
			c.ended <- err
			return
		}
		c.next++
		c.pause = max(c.pause, time.Since(c.sent[0]))
		c.sent = c.sent[1:]
		c.mu.Unlock()
	}
	var err error
	if _, _, away := c.state(); away > 0 {
		err = fmt.Errorf("it ended with %d numbers on their way", away)
	}
	c.ended <- err
}

// state is how long a number took at most since mark, how many have come back, and how
// many are on their way.
func (c *conversation) state() (pause time.Duration, come, away int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pause, c.next, len(c.sent)
}

func (c *conversation) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pause = 0
}

// end stops the typing, waits for what is on its way, and for the program.
func (c *conversation) end(t testing.TB) {
	t.Helper()
	close(c.typed)
	select {
	case err := <-c.ended:
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	case <-time.After(2 * waitLimit):
		t.Errorf("%s: it does not end", c.name)
	}
	if code := c.p.wait(t, waitLimit); code != 0 {
		t.Errorf("%s: it ended with %d", c.name, code)
	}
	t.Logf("%s: %d numbers, each came back once and in order", c.name, c.next)
}

// pythonChat sends each line that is typed and prints each message that comes.
const pythonChat = `
import asyncio, ssl, sys, websockets
uri, port, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3]
async def main():
    tls = ssl.create_default_context(cafile=ca)
    async with websockets.connect(uri, ssl=tls, host="127.0.0.1", port=port) as ws:
        async def show():
            async for message in ws:
                print(message, flush=True)
        showing = asyncio.create_task(show())
        while line := await asyncio.to_thread(sys.stdin.readline):
            await ws.send(line.strip())
        await ws.close()
        await showing
asyncio.run(main())
`

// world is a site with an SSH server, a chat, a database and a folder, at the end of a link, and
// visitors who use all of them. The download takes about a minute.
type world struct {
	*system
	link          *netem.Link
	conversations []*conversation
	downloaded    chan error
}

func startWorld(t testing.TB, transport string) *world {
	t.Helper()
	w := &world{link: newLink(t, netem.Config{}), downloaded: make(chan error, 1)}
	chat := startPython(t, w.link.Inside)
	db, _ := startPostgres(t, w.link.Inside)
	sshd, login := startSSHD(t, w.link.Inside)
	folder, sum := randomFile(t, 24<<20)
	w.system = startSystemOver(t, w.link, over(transport),
		service{"files", "https://files.example.com", "file://" + folder},
		service{"chat", "wss://chat.example.com", "http://127.0.0.1:" + chat},
		service{"db", "tcp://:{port}", fmt.Sprintf("tcp://127.0.0.1:%d", db)},
		service{"ssh", "tcp://:{port}", fmt.Sprintf("tcp://127.0.0.1:%d", sshd)})
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	w.conversations = []*conversation{
		converse(t, w.outside, "ssh", exec.Command(tool(t, "ssh", "openssh-client"),
			append(login, "-p", port(w.port("ssh")), "127.0.0.1", "cat")...), "%d"),
		converse(t, w.outside, "chat", exec.Command(python, "-c", pythonChat,
			"wss://chat.example.com/", port(w.https), certFile("ca.pem")), "%d"),
		converse(t, w.outside, "psql", exec.Command(tool(t, "psql", "postgresql-client"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
			"-h", "127.0.0.1", "-p", port(w.port("db")), "-U", "culvert", "-d", "postgres"), "select %d;"),
	}
	go func() {
		got, err := w.download("--limit-rate", "400k")
		if err == nil && got != sum {
			err = fmt.Errorf("%s arrived, want %s", got, sum)
		}
		w.downloaded <- err
	}()
	return w
}

// step does something to the world, waits until all conversations go on, and logs how
// long they paused.
func (w *world) step(what string, do func()) {
	w.t.Helper()
	for _, c := range w.conversations {
		c.mark()
	}
	do()
	line := what + ": the longest pause was"
	for _, c := range w.conversations {
		_, from, _ := c.state()
		for deadline := time.Now().Add(waitLimit); ; time.Sleep(10 * time.Millisecond) {
			// All that was on its way has come, and more.
			if pause, come, away := c.state(); come > from+maxAway {
				line += fmt.Sprintf(" %v (%s)", pause.Round(time.Millisecond), c.name)
				break
			} else if time.Now().After(deadline) {
				w.t.Fatalf("%s: %s does not go on, %d numbers are on their way", what, c.name, away)
			}
		}
	}
	w.t.Log(line)
}

// carriers are the flows of the relays' links: those that have been heard of lately.
func (w *world) carriers() []netem.Flow {
	var flows []netem.Flow
	for _, f := range w.link.Flows(4 * time.Second) {
		if f.Outside != 0 {
			flows = append(flows, f)
		}
	}
	slices.SortFunc(flows, func(a, b netem.Flow) int { return int(a.Inside) - int(b.Inside) })
	return flows
}

// each does something to each of the links alone, and then to all of them.
func (w *world) each(what string, do func(flows ...netem.Flow)) {
	n := len(w.carriers())
	if n == 0 {
		w.t.Fatal("there are no links")
	}
	for i := range n {
		if flows := w.carriers(); i < len(flows) {
			w.step(fmt.Sprintf("link %d of %d %s", i+1, n, what), func() { do(flows[i]) })
		}
	}
	w.step("all links "+what, func() { do(w.carriers()...) })
}

// TestLinksBroken talks over ssh, a WebSocket and psql, and downloads a file, while somebody
// delays, silences and cuts the links, one by one and all of them, and while the machine of
// the private relay gets other addresses.
func TestLinksBroken(t *testing.T) {
	t.Parallel()
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, transport)
			broken := func(f netem.Fault, d time.Duration) func(...netem.Flow) {
				return func(flows ...netem.Flow) {
					w.link.Break(f, flows...)
					time.Sleep(d)
					w.link.Break(netem.Fault{}, flows...)
				}
			}
			w.each("slower by 500 ms for 2 s", broken(netem.Fault{Delay: 250 * time.Millisecond}, 2*time.Second))
			w.each("silent for 3 s", broken(netem.Fault{FromInside: true, FromOutside: true}, 3*time.Second))
			w.each("silent for 3 s from inside", broken(netem.Fault{FromInside: true}, 3*time.Second))
			w.each("cut", w.cut)
			for range 2 {
				w.step("another address", func() {
					if err := w.inside.Move(); err != nil {
						t.Fatal(err)
					}
				})
			}
			for _, c := range w.conversations {
				c.end(t)
			}
			if err := <-w.downloaded; err != nil {
				t.Errorf("download: %v", err)
			}
		})
	}
}

// cut ends the TCP connections of flows, as an administrator does it.
func (w *world) cut(flows ...netem.Flow) {
	for _, f := range flows {
		if f.Protocol != unix.IPPROTO_TCP {
			continue // there is no connection that the system knows of
		}
		cmd := exec.Command(tool(w.t, "ss", "iproute2"), "-K", "-n", "-t", "sport", "=", fmt.Sprintf(":%d", f.Inside))
		if out := runIn(w.t, w.inside, cmd); !strings.Contains(out, fmt.Sprint(f.Inside)) {
			w.t.Logf("no connection from port %d is left to cut", f.Inside)
		}
	}
}
