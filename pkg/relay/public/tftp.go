package public

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

// TFTP of visitors ends here: a tftpd.Server answers on one UDP port, and the files come from sites as streams, see
// tftpstore.go. The port is read on one loop, where find chooses the service by the name of the file; a transfer belongs to
// the loop of that service.

// What visitors are told. Each text is constant: there is nothing of the site in it.
var (
	fileNone     = &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."}
	fileRefused  = &tftp.Error{Code: tftp.CodeAccess, Text: "Access denied."}
	fileFull     = &tftp.Error{Code: tftp.CodeDiskFull, Text: "The disk is full, or the file is too large."}
	fileExists   = &tftp.Error{Code: tftp.CodeExists, Text: "The file exists already."}
	fileFailed   = &tftp.Error{Text: "The file cannot be had now."}
	fileNoServer = &tftp.Error{Text: "The file server cannot be reached."}
	fileSilent   = &tftp.Error{Text: "The site has not answered in time. Try again later."}
	fileBusy     = &tftp.Error{Text: "The relay is busy. Try again later."}
	fileKicked   = &tftp.Error{Text: "An operator has ended this transfer."}
	fileAway     = &tftp.Error{Text: "The site is not connected. Try again later."}
)

// fileWord is the word for the end of a transfer.
func fileWord(err error) word {
	switch err {
	case nil:
		return fine
	case fileNoServer:
		return wordUnreachable
	case fileSilent:
		return wordTimeout
	case fileBusy, fileFull:
		return wordLimit
	case fileAway:
		return wordAway
	case fileFailed:
		return wordReset
	case fileKicked:
		return wordKicked
	}
	e, ok := errors.AsType[*tftp.Error](err)
	switch {
	case errors.Is(err, tftp.ErrTimeout):
		return wordTimeout
	case errors.Is(err, tftpd.ErrReplaced):
		return wordCancelled
	case errors.Is(err, tftpd.ErrDisplaced):
		return wordLimit
	case !ok:
		return wordReset
	case e.Remote:
		return wordCancelled
	}
	switch e.Code {
	case tftp.CodeNotFound:
		return wordNotFound
	case tftp.CodeAccess, tftp.CodeExists:
		return wordPolicy
	case tftp.CodeDiskFull:
		return wordLimit
	case tftp.CodeIllegal, tftp.CodeOptions:
		return wordMalformed
	}
	return wordReset
}

// listenTFTP opens the port.
func (r *Relay) listenTFTP() error {
	srv := &tftpd.Server{
		Find:         r.findFile,
		MaxTransfers: r.TFTPTransfers, MaxPerAddress: r.TFTPPerAddress,
		MaxBlock: r.TFTPBlock, Ports: r.TFTPPorts, Log: r.log,
	}
	l := r.loops[portLoop].Loop
	var err error
	if files := r.inherited("tftp", "udp", r.TFTP); len(files) > 0 {
		err = srv.ListenFile(l, files[0])
	} else {
		err = srv.Listen(l, "udp", r.TFTP)
	}
	if err != nil {
		return err
	}
	r.tftp, r.cache = srv, tftpd.NewCache(r.TFTPCache)
	r.mu.Lock()
	r.listeners = append(r.listeners, &Listener{Name: "tftp", Addr: net.UDPAddrFromAddrPort(srv.Addr()), ln: nopCloser{}})
	r.mu.Unlock()
	return nil
}

// portLoop is the loop that reads the port.
const portLoop = 0

// mayHaveFiles reports whether a site is better off on the loop of the port: each block that is acknowledged by itself would
// wake a second processor otherwise, which costs as much as the block. r.mu is held.
func (r *Relay) mayHaveFiles(site string) bool {
	return r.tftp != nil && slices.ContainsFunc(r.sites[site].Publish, func(p relay.Pattern) bool { return p.Scheme == "tftp" })
}

// findFile is Find of the server. It runs on the loop of the port.
func (r *Relay) findFile(name string, visitor netip.AddrPort) (*tftpd.Share, string, *tftp.Error) {
	if r.draining.Load() { // the next relay hears the client when it asks again
		return nil, "", nil
	}
	routes, path := r.routes.Load(), "/"+name
	s := longest(routes.files, []byte(path))
	if s != nil && len(path) > len(s.prefix)+1 {
		return &s.folder, path[len(s.prefix)+1:], nil
	}
	err := fileNone
	if s == nil && routes.allowedFiles(path) {
		if r.hasJustBegun() {
			return nil, "", nil
		}
		err = fileAway
	}
	l := r.loops[portLoop]
	l.refused[fileWord(err)]++
	if r.unserved.allow(relay.Source(visitor.Addr()), l.Now()) {
		l.log(&record{visitor: visitor, proto: "tftp", request: appendText(nil, "path", path, logPath), err: fileWord(err), began: l.since()})
	}
	return nil, "", err
}

// tftpAddresses are where visitors find a service of files, if there is a listener. r.mu is held.
func (r *Relay) tftpAddresses(p relay.Publish) []string {
	for _, l := range r.listeners {
		if l.Name != "tftp" {
			continue
		}
		host, port, err := net.SplitHostPort(l.Addr.String())
		if err != nil {
			return nil
		}
		if a, err := netip.ParseAddr(host); r.Domain != "" && err == nil && a.IsUnspecified() {
			host = r.Domain
		}
		if host = net.JoinHostPort(host, port); port == "69" {
			host = host[:len(host)-len(":69")]
		}
		return []string{"tftp://" + host + p.Path}
	}
	return nil
}

var errNoTFTP = errors.New("the public relay does not listen for TFTP: its public.toml has no tftp in [listen]")

// newShare makes of s, which publishes files, what the server is to know.
func (s *service) newShare() {
	s.visits = make(map[*tftpd.Transfer]*fileVisit)
	s.latest = make(map[netip.AddrPort]*fileVisit)
	s.folder = tftpd.Share{
		Loop: s.session.loop.Loop, Store: siteFiles{s},
		Write: s.files.Write != "", MaxSize: s.files.MaxSize,
		Admit: s.admitFile, Begin: s.beginFile, End: s.endFile,
	}
	if s.files.Cache && s.session.relay.TFTPCache > 0 {
		s.folder.Library = tftpd.NewLibrary(s.folder.Loop, s.folder.Store, s.session.relay.cache)
	}
}

// admitFile decides about a request. What it lets in is counted by admission: beginFile and endFile follow.
func (s *service) admitFile(visitor netip.AddrPort) *tftp.Error {
	addr := visitor.Addr()
	if !s.admits(addr) {
		s.turnAwayFile(visitor, wordPolicy)
		if p := s.policy.Load(); p != nil && !p.lets(addr) {
			return fileRefused
		}
		return fileBusy
	}
	admission := &s.session.relay.admission
	v := admission.enter(addr)
	if v != admitted {
		if v == sayFull { // there is no need: an answer costs no connection
			admission.leave(addr, v)
		}
		s.session.loop.counters.TurnedAway++
		s.turnAwayFile(visitor, wordLimit)
		return fileBusy
	}
	return nil
}

// turnAwayFile counts a request that is refused.
func (s *service) turnAwayFile(visitor netip.AddrPort, w word) {
	l := s.session.loop
	s.tftp.refused++
	s.errors[w]++
	if s.session.relay.unserved.allow(relay.Source(visitor.Addr()), l.Now()) {
		l.log(&record{service: s, visitor: visitor, proto: "tftp", err: w, began: l.since()})
	}
}

// beginFile is told of a transfer that was admitted.
func (s *service) beginFile(t *tftpd.Transfer) {
	s.enter(t.Visitor.Addr())
	s.total++
	v := &fileVisit{service: s, transfer: t, began: s.session.loop.since(), id: s.session.loop.number()}
	s.visits[t], s.latest[t.Visitor] = v, v
	s.tftp.begin(s.tally, v, s.session.loop)
}

// endFile is told of its end.
func (s *service) endFile(t *tftpd.Transfer, err error) {
	v := s.visits[t]
	delete(s.visits, t)
	if s.latest[t.Visitor] == v {
		delete(s.latest, t.Visitor)
	}
	s.tftp.end(s.tally, v, s.session.loop)
	s.leave(t.Visitor.Addr())
	s.session.relay.admission.leave(t.Visitor.Addr(), admitted)
	w := fileWord(err)
	s.errors[w]++
	if err == nil && t.Request.Op == tftp.OpRead && (v.stream == nil || v.same) {
		s.tftp.hits++
	}
	l := s.session.loop
	if l.relay.AccessLog == nil || err != nil && t.Stats().Bytes == 0 && !l.relay.unserved.allow(relay.Source(t.Visitor.Addr()), l.Now()) {
		return
	}
	r := record{service: s, visitor: t.Visitor, proto: "tftp", request: v.append(nil, s), err: w, began: v.began, stream: v.stream}
	if n := uint64(t.Stats().Bytes); t.Request.Op == tftp.OpWrite {
		r.received = n
	} else {
		r.sent = n
	}
	l.log(&r)
}

// fileVisit is a transfer of a visitor. It is owned by the loop of the service.
type fileVisit struct {
	place[*fileVisit] // in the tally
	service           *service
	transfer          *tftpd.Transfer
	id                uint64 // see loop.number
	began             int64
	moved             int64          // when it was seen to have gone on; 0: never
	stream            *tunnel.Stream // that was opened for it; nil: the file was here
	same              bool           // the site has said that what was here is what it has
	bytes             int64          // that are counted
}

// append appends what the access log tells of a transfer besides.
func (v *fileVisit) append(b []byte, s *service) []byte {
	t := v.transfer
	o := t.Options()
	b = appendText(b, "method", t.Request.Op.String(), logMethod)
	b = appendText(b, "path", s.prefix+"/"+t.Name, logPath)
	if t.Request.Mode == tftp.NetASCII {
		b = appendText(b, "mode", t.Request.Mode.String(), logMethod)
	}
	for _, one := range []struct {
		name  string
		value int64
	}{{"blksize", int64(o.Block)}, {"windowsize", int64(o.Window)}, {"retransmitted", t.Stats().Retransmitted}} {
		if one.value != 0 {
			b = strconv.AppendInt(append(append(append(b, `,"`...), one.name...), `":`...), one.value, 10)
		}
	}
	return b
}

// closeLibrary frees the files that are kept of a service which is gone, when nobody can ask for them any more.
func (s *service) closeLibrary() {
	if b := s.folder.Library; b != nil {
		s.session.loop.Arm(&s.closing, 2*askTime, b.Close)
	}
}
