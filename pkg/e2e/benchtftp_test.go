//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"culvert.dev/pkg/netem"
)

// BenchmarkTFTP measures how long atftp takes to get a file: on loopback from two servers that are not ours, from ours, and through both
// relays; and with 50 ms between the relays, beside the same client whose packets are forwarded over those 50 ms. A part can be selected:
// BenchmarkTFTP/loopback. Options are -rounds and -profile.
func BenchmarkTFTP(b *testing.B) {
	var out bytes.Buffer
	b.Run("loopback", func(b *testing.B) { benchTFTPLoopback(b, &out) })
	b.Run("far", func(b *testing.B) { benchTFTPFar(b, &out) })
	fmt.Printf("\natftp gets a file, MiB/s; medians of %d rounds; %s.\n\n%s\n", *benchRounds, machine(), out.String())
}

// transferOptions are what the client asks for.
type transferOptions struct{ block, window int }

func (o transferOptions) String() string { return fmt.Sprintf("%d x %d", o.block, o.window) }

// atftpGet is the rate at which atftp gets a file, in MiB/s.
func atftpGet(b *testing.B, n *netem.Namespace, addr, name string, size int64, o transferOptions) float64 {
	b.Helper()
	c := atftp("", o.block, fmt.Sprintf("blksize %d", o.block))
	if o.window > 1 {
		c = atftp("", o.block, fmt.Sprintf("blksize %d", o.block), fmt.Sprintf("windowsize %d", o.window))
	}
	host, port, _ := net.SplitHostPort(addr)
	began := time.Now()
	if err := c.run(b.Context(), b, n, root, c.get(host, port, name, "/dev/null")); err != nil {
		b.Error(err)
	}
	return float64(size) / (1 << 20) / time.Since(began).Seconds()
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func benchTFTPLoopback(b *testing.B, out *bytes.Buffer) {
	b.ReportMetric(0, "ns/op")
	const size = 64 << 20
	folder := publicFolder(b)
	makeFile(b, filepath.Join(folder, "data"), size)
	serve := freeAddr(b)
	own := start(b, "tunnelctl", exec.Command(command(b, "tunnelctl"), "tftp", "serve", "--listen", serve, folder))
	awaitTFTP(b, nil, own, serve)
	kept := configureTFTP(b, nil, service{"files", "tftp:///", "file://" + folder}, service{"streamed", "tftp:///streamed", "file://" + folder})
	kept.more["streamed"] = "cache = false\n"
	kept.startPublic()
	kept.startPrivate()
	servers := []struct {
		name, addr, file string
		pids             []int
	}{
		{"tftpd-hpa", startTFTPD(b, nil, "tftpd-hpa", folder), "data", nil},
		{"atftpd", startTFTPD(b, nil, "atftpd", folder), "data", nil},
		{"serve", serve, "data", own.pids()},
		{"relays", kept.tftp, "data", kept.public.pids()},
		{"relays, no cache", kept.tftp, "streamed/data", append(kept.public.pids(), kept.private.pids()...)},
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "64 MiB on loopback\t")
	for _, s := range servers {
		fmt.Fprintf(w, "%s\t", s.name)
	}
	fmt.Fprint(w, "relays/best other\tserve/best other\tCPU of serve\trelays\trelays, no cache\n")
	for _, o := range []transferOptions{{512, 1}, {512, 16}, {1468, 1}, {1468, 16}, {65464, 1}} {
		rates, cpu := make([][]float64, len(servers)), make([]float64, len(servers))
		stop := profileRelay(b, kept, o.String())
		for range *benchRounds {
			for i, s := range servers {
				at := cpuSeconds(s.pids)
				rates[i] = append(rates[i], atftpGet(b, nil, s.addr, s.file, size, o))
				cpu[i] += (cpuSeconds(s.pids) - at) / (float64(size) * float64(*benchRounds) / (1 << 30))
			}
		}
		stop()
		fmt.Fprintf(w, "%v\t", o)
		m := make([]float64, len(servers))
		for i := range servers {
			m[i] = median(rates[i])
			fmt.Fprintf(w, "%.1f\t", m[i])
		}
		best := max(m[0], m[1])
		fmt.Fprintf(w, "%.2f\t%.2f\t%.1f s/GiB\t%.1f s/GiB\t%.1f s/GiB\n", m[3]/best, m[2]/best, cpu[2], cpu[3], cpu[4])
	}
	fmt.Fprintln(w)
	w.Flush()
}

// profileRelay takes a CPU profile of the public relay until it is stopped, if one is asked for.
func profileRelay(b *testing.B, s *system, name string) (stop func()) {
	if *profileDir == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		text := s.adminGet("/debug/pprof/profile?seconds=10")
		if err := os.MkdirAll(*profileDir, 0o755); err != nil {
			b.Error(err)
		}
		if err := os.WriteFile(filepath.Join(*profileDir, "tftp "+name+".pprof"), []byte(text), 0o644); err != nil {
			b.Error(err)
		}
	}()
	return func() { <-done }
}

func benchTFTPFar(b *testing.B, out *bytes.Buffer) {
	b.ReportMetric(0, "ns/op")
	folder := publicFolder(b)
	const size = 64 << 20
	makeFile(b, filepath.Join(folder, "data"), size)
	near := startForwarder(b, startTFTPD(b, nil, "atftpd", folder), 25*time.Millisecond)
	l := newLink(b, netem.Config{Rate: 1e9})
	s := configureTFTP(b, l, service{"files", "tftp:///", "file://" + folder})
	s.more["files"] = "cache = false\n"
	s.startPublic()
	s.startPrivate()
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "50 ms to the file\tforwarded\trelays\trelays/forwarded\n")
	for _, o := range []transferOptions{{512, 1}, {1468, 1}, {1468, 16}, {65464, 1}} {
		var forwarded, relayed []float64
		for range *benchRounds {
			part := int64(o.block * o.window * 100) // 5 s of it
			name := fmt.Sprintf("part-%v", part)
			makeFile(b, filepath.Join(folder, name), part)
			forwarded = append(forwarded, atftpGet(b, nil, near, name, part, o))
			relayed = append(relayed, atftpGet(b, l.Outside, s.tftp, "data", size, o))
		}
		f, r := median(forwarded), median(relayed)
		fmt.Fprintf(w, "%v\t%.3f\t%.1f\t%.0f\n", o, f, r, r/f)
	}
	w.Flush()
}

// startForwarder forwards the packets of clients to a server of files and back, each of them a while later, and learns from
// which port the server answers each client.
func startForwarder(t testing.TB, server string, delay time.Duration) (addr string) {
	t.Helper()
	c := listenUDP(t, nil)
	first := netip.MustParseAddrPort(server)
	type peer struct {
		c  *net.UDPConn
		to netip.AddrPort
	}
	var mu sync.Mutex
	peers := map[netip.AddrPort]*peer{}
	type packet struct {
		from *net.UDPConn
		b    []byte
		to   netip.AddrPort
		due  time.Time
	}
	waiting := make(chan packet, 1<<12) // in order, as the delay is the same for all
	over := t.Context().Done()
	go func() {
		for {
			select {
			case p := <-waiting:
				time.Sleep(time.Until(p.due))
				p.from.WriteToUDPAddrPort(p.b, p.to)
			case <-over:
				return
			}
		}
	}()
	later := func(from *net.UDPConn, b []byte, to netip.AddrPort) {
		select {
		case waiting <- packet{from, bytes.Clone(b), to, time.Now().Add(delay)}:
		case <-over:
		}
	}
	back := func(p *peer, client netip.AddrPort) {
		b := make([]byte, 1<<16)
		for {
			n, from, err := p.c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			mu.Lock()
			p.to = from
			mu.Unlock()
			later(c, b[:n], client)
		}
	}
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, client, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			mu.Lock()
			p := peers[client]
			if p == nil {
				u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					mu.Unlock()
					continue
				}
				t.Cleanup(func() { u.Close() })
				p = &peer{c: u, to: first}
				peers[client] = p
				go back(p, client)
			}
			later(p.c, b[:n], p.to)
			mu.Unlock()
		}
	}()
	return c.LocalAddr().String()
}
