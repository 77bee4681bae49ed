package private

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
)

// lanCache is how many bytes of files are shared and kept for the site's own network, so that a rack that boots reads an image once.
const lanCache = 64 << 20

// lan serves the files of the tftp services on the site's own network: from the stores, without a public relay.
type lan struct {
	// Immutable.
	relay  *Relay
	loop   *evloop.Loop // of the port and of all transfers
	server tftpd.Server
	cache  *tftpd.Cache
	ended  chan struct{} // closed when no transfer is left in a drain

	// Owned by loop.
	shares    map[*service]*tftpd.Share
	libraries map[tftpd.Store]*tftpd.Library // of services that may have files kept
	running   int
	draining  bool
	deadline  evloop.Timer
}

var errLANFile = &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."}

// listenLAN opens the port.
func (r *Relay) listenLAN() error {
	n := &lan{
		relay: r, loop: r.Core.Loop(r.Core.NumLoops() - 1), cache: tftpd.NewCache(lanCache), ended: make(chan struct{}),
		shares: make(map[*service]*tftpd.Share), libraries: make(map[tftpd.Store]*tftpd.Library),
	}
	n.server.Find, n.server.Ports, n.server.Log = n.find, r.TFTPPorts, r.log
	var files []*os.File
	if r.Inherited != nil {
		files = r.Inherited("tftp", "udp", r.TFTP)
	}
	var err error
	if len(files) > 0 {
		err = n.server.ListenFile(n.loop, files[0])
	} else {
		err = n.server.Listen(n.loop, "udp", r.TFTP)
	}
	if err != nil {
		return fmt.Errorf("listen.tftp %q: %w", r.TFTP, relay.PortError(err))
	}
	r.mu.Lock()
	r.lan = n
	r.mu.Unlock()
	r.log.Info("listening", "for", "tftp", "address", n.server.Addr())
	return nil
}

// find is Find of the server. It runs on the loop.
func (n *lan) find(name string, _ netip.AddrPort) (*tftpd.Share, string, *tftp.Error) {
	if n.draining { // the next relay hears the client when it asks again
		return nil, "", nil
	}
	path := "/" + name
	for _, svc := range n.relay.services.Load().files { // the longest prefix first
		prefix := strings.TrimSuffix(svc.Publish.Path, "/")
		if relay.MatchPath(prefix, path) {
			if len(path) <= len(prefix)+1 {
				break // it is the folder
			}
			return n.share(svc), path[len(prefix)+1:], nil
		}
	}
	return nil, "", errLANFile
}

// share returns what the server is told of a service.
func (n *lan) share(svc *service) *tftpd.Share {
	if s := n.shares[svc]; s != nil {
		return s
	}
	s := &tftpd.Share{Loop: n.loop, Store: svc.store}
	if f := svc.Files; f != nil {
		s.Write, s.MaxSize = f.Write != "", f.MaxSize
		if f.Cache {
			if n.libraries[svc.store] == nil {
				n.libraries[svc.store] = tftpd.NewLibrary(n.loop, svc.store, n.cache)
			}
			s.Library = n.libraries[svc.store]
		}
	}
	s.Admit = func(visitor netip.AddrPort) *tftp.Error {
		if !svc.Policy.Lets(visitor.Addr()) {
			return errFileAccess
		}
		return nil
	}
	s.Begin = func(*tftpd.Transfer) {
		n.running++
		svc.total.Add(1)
		svc.open.Add(1)
	}
	s.End = func(t *tftpd.Transfer, err error) {
		n.running--
		svc.open.Add(-1)
		n.log(svc, t, err)
		n.rest()
	}
	n.shares[svc] = s
	return s
}

// log tells of a transfer. What failed is for who looks closer: anybody can ask for anything, as anybody.
func (n *lan) log(svc *service, t *tftpd.Transfer, err error) {
	level, what := slog.LevelInfo, "file read"
	if t.Request.Op == tftp.OpWrite {
		what = "file written"
	}
	attrs := []slog.Attr{
		slog.String("service", svc.Name), slog.String("file", t.Name), slog.String("client", t.Visitor.String()),
		slog.Int64("bytes", t.Stats().Bytes), slog.Int64("retransmitted", t.Stats().Retransmitted), slog.Duration("took", n.loop.Now().Sub(t.Began)),
	}
	if err != nil {
		level, what = slog.LevelDebug, strings.Replace(what, "file ", "file not ", 1)
		attrs = append(attrs, slog.Any("err", err))
	}
	n.relay.log.LogAttrs(context.Background(), level, what, attrs...)
}

// reloaded forgets services that are not there any more. Transfers that run go on.
func (n *lan) reloaded() {
	list := n.relay.services.Load()
	for svc := range n.shares {
		if list.byName[svc.Name] != svc {
			delete(n.shares, svc)
		}
	}
	for store, library := range n.libraries {
		if !slices.ContainsFunc(list.files, func(svc *service) bool { return svc.store == store }) {
			delete(n.libraries, store)
			library.Close()
		}
	}
}

// drain answers no requests any more, and ends with the last transfer, or with the timeout.
func (n *lan) drain() {
	n.draining = true
	n.loop.Arm(&n.deadline, n.relay.DrainTimeout, func() {
		n.relay.log.Warn("drain timeout: transfers of TFTP are cut", "transfers", n.running)
		n.over()
	})
	n.rest()
}

// rest ends a drain when nothing is left.
func (n *lan) rest() {
	if n.draining && n.running == 0 {
		n.over()
	}
}

// over lets Run go on to close.
func (n *lan) over() {
	n.deadline.Stop()
	select {
	case <-n.ended:
	default:
		close(n.ended)
	}
}

// close frees the port, and waits for that.
func (n *lan) close() {
	n.server.Close()
	done := make(chan struct{})
	if n.loop.Post(func() { n.over(); close(done) }) {
		<-done
	}
}
