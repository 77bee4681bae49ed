package evloop

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tool returns the path of an external client that the release gate needs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: install the package %s", err, name)
	}
	return path
}

// serveTLS listens with TLS and sessions tickets.
func serveTLS(t *testing.T, core *Core, handler func(*Conn) Handler) string {
	server := serverConfig(t)
	return listen(t, core, func(c *Conn) {
		c.StartTLS(server, false, 10*time.Second, func(err error) {
			if err == nil {
				c.SetHandler(handler(c))
			}
		})
	})
}

// client is an openssl s_client at work.
type client struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	seen strings.Builder
}

func startClient(t *testing.T, args ...string) *client {
	t.Helper()
	c := &client{t: t, cmd: exec.Command(tool(t, "openssl"), append([]string{"s_client"}, args...)...)}
	c.in, _ = c.cmd.StdinPipe()
	out, _ := c.cmd.StdoutPipe()
	c.cmd.Stderr = c.cmd.Stdout
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { c.cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return c
}

// until reads lines up to one that contains s.
func (c *client) until(s string) {
	c.t.Helper()
	for {
		line, err := c.out.ReadString('\n')
		c.seen.WriteString(line)
		if strings.Contains(line, s) {
			return
		}
		if err != nil {
			c.t.Fatalf("openssl ended (%v) before %q:\n%s", err, s, c.seen.String())
		}
	}
}

func (c *client) send(line string) { io.WriteString(c.in, line+"\n") }

func (c *client) quit() {
	c.send("Q")
	c.in.Close()
	io.Copy(&c.seen, c.out)
	c.cmd.Wait()
}

// TestOpenSSL has s_client as the client: versions, ciphers, key updates, resumption.
func TestOpenSSL(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		addr := serveTLS(t, core, func(c *Conn) Handler { return &echo{c: c} })
		for _, args := range [][]string{
			{"-tls1_2"},
			{"-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"},
			{"-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"},
			{"-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"},
		} {
			session := filepath.Join(t.TempDir(), "session")
			c := startClient(t, append(args, "-connect", addr, "-sess_out", session)...)
			c.send("hello")
			c.until("hello")
			if args[0] == "-tls1_3" {
				for i, key := range []string{"K", "k", "K", "K", "k"} {
					c.send(key)
					c.until("KEYUPDATE")
					c.send("line " + string(rune('0'+i)))
					c.until("line " + string(rune('0'+i)))
				}
			}
			c.quit()
			c = startClient(t, append(args, "-connect", addr, "-sess_in", session)...)
			c.send("again")
			c.until("again")
			c.quit()
			if !strings.Contains(c.seen.String(), "Reused, TLSv1.") {
				t.Errorf("%v: session was not resumed:\n%s", args, c.seen.String())
			}
		}
	})
}

// TestCurl makes 200 requests on one TLS connection.
func TestCurl(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		addr := serveTLS(t, core, func(c *Conn) Handler {
			return &events{
				data: func(b []byte) int {
					used := 0
					for {
						i := bytes.Index(b[used:], []byte("\r\n\r\n"))
						if i < 0 {
							return used
						}
						used += i + 4
						c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"))
					}
				},
				eof: func() { c.CloseWrite() },
			}
		})
		out, err := exec.Command(tool(t, "curl"), "-sk", "--http1.1", "--max-time", "20", "-w", "%{num_connects}\n", "https://"+addr+"/[1-200]").Output()
		if err != nil {
			t.Fatal(err)
		}
		if want := "ok\n1\n" + strings.Repeat("ok\n0\n", 199); string(out) != want {
			t.Errorf("curl said %.100q…", out)
		}
	})
}
