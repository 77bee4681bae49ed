package public

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

// testFiles is the private relay's end of services of files: a folder in memory. All of it belongs to the loop.
type testFiles struct {
	site    *testSite
	files   map[string]string
	version string                 // of all of them
	errors  map[string]uint16      // by name: the code of a reply
	resets  map[string]tunnel.Code // by name: instead of a reply
	raw     map[string]string      // by name: all that comes back
	most    map[string]int         // by name: bytes that come until release
	headers []relay.Header
	asked   []relay.FileRequest
	open    []*testFile
	silent  bool // nobody gets an answer
	unsafe  bool // nor hears that what he has written is safe
}

// testFile is a file that is open.
type testFile struct {
	*tunnel.Stream
	of      *testFiles
	in      []byte
	request *relay.FileRequest
	rest    string // what is not sent
	closed  error
	over    bool
}

// filesOf has a site serve files.
func filesOf(s *testSite, files map[string]string) *testFiles {
	fs := &testFiles{
		site: s, files: files, version: "v1",
		errors: make(map[string]uint16), resets: make(map[string]tunnel.Code), raw: make(map[string]string), most: make(map[string]int),
	}
	s.handle(func(st *tunnel.Stream, h relay.Header) bool {
		f := &testFile{Stream: st, of: fs}
		fs.headers = append(fs.headers, h)
		fs.open = append(fs.open, f)
		st.SetHandler(f)
		return true
	})
	return fs
}

// do runs f on the loop.
func (fs *testFiles) do(f func()) { onLoop(fs.site.session.loop.Loop, f) }

func (f *testFile) OnData(b []byte) int {
	f.in = append(f.in, b...)
	if f.request == nil {
		message, rest, err := relay.CutFile(f.in)
		if err != nil {
			panic(err)
		}
		if message == nil {
			return len(b)
		}
		r, err := relay.DecodeFileRequest(message)
		if err != nil {
			panic(err)
		}
		f.request, f.in = &r, bytes.Clone(rest)
		f.of.asked = append(f.of.asked, r)
		f.answer()
	}
	return len(b)
}

func (f *testFile) reply(r relay.FileReply) { f.Write(relay.AppendFile(nil, r)) }

func (f *testFile) answer() {
	fs, r := f.of, f.request
	if fs.silent {
		return
	}
	if code, ok := fs.resets[r.Name]; ok {
		f.Reset(code)
		return
	}
	if raw, ok := fs.raw[r.Name]; ok {
		f.Write([]byte(raw))
		f.CloseWrite()
		return
	}
	text, known := fs.files[r.Name]
	switch code, refused := fs.errors[r.Name]; {
	case refused:
		f.reply(relay.FileReply{Error: &relay.FileError{Code: code, Text: "/srv/tftp/secret"}, Size: -1})
		f.CloseWrite()
	case r.Write:
		f.reply(relay.FileReply{Size: -1})
	case !known:
		f.reply(relay.FileReply{Error: &relay.FileError{Code: 1, Text: "/srv/tftp/" + r.Name}, Size: -1})
		f.CloseWrite()
	case r.Have != "" && r.Have == fs.version:
		f.reply(relay.FileReply{Size: int64(len(text)), Version: fs.version, Same: true})
		f.CloseWrite()
	default:
		f.reply(relay.FileReply{Size: int64(len(text)), Version: fs.version})
		if most, ok := fs.most[r.Name]; ok {
			most = min(most, len(text)) // it may have been written to
			f.rest, text = text[most:], text[:most]
			f.Write([]byte(text))
			return
		}
		f.Write([]byte(text))
		f.CloseWrite()
	}
}

// release sends the rest of all files.
func (fs *testFiles) release() {
	fs.do(func() {
		for _, f := range fs.open {
			if f.rest != "" {
				f.Write([]byte(f.rest))
				f.rest = ""
				f.CloseWrite()
			}
		}
	})
}

func (f *testFile) OnEOF() {
	if f.request != nil && f.request.Write && !f.of.unsafe {
		f.safe()
	}
}

// safe says that what was written is.
func (f *testFile) safe() {
	f.of.files[f.request.Name] = string(f.in)
	f.reply(relay.FileReply{Size: -1})
	f.CloseWrite()
}

func (f *testFile) OnDrain()          {}
func (f *testFile) OnClose(err error) { f.closed, f.over = err, true }

// fileClient is a client of TFTP that asks for nothing special: blocks of 512 bytes, one at a time.
type fileClient struct {
	*net.UDPConn
	t    testing.TB
	at   netip.AddrPort
	last []byte
}

func (r *testRelay) fileClient() *fileClient {
	r.t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &fileClient{UDPConn: c, t: r.t, at: r.tftp.Addr()}
}

func (c *fileClient) send(b []byte) {
	c.t.Helper()
	c.last = b
	if _, err := c.WriteToUDPAddrPort(b, c.at); err != nil {
		c.t.Error(err)
	}
}

// request sends a request.
func (c *fileClient) request(op tftp.Opcode, name string) {
	c.t.Helper()
	r := tftp.Request{Op: op, Name: name}
	c.send(r.Append(nil))
}

// packet reads a packet, or nil if there is none for so long.
func (c *fileClient) packet(wait time.Duration) []byte {
	b := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(wait))
	n, _, err := c.ReadFromUDPAddrPort(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		c.t.Error(err)
	}
	return b[:n]
}

// patience is how long a client waits in all, and asks again every second.
const patience = 30 * time.Second

// next reads the next DATA or ACK of that block. Its error is one from the server.
func (c *fileClient) next(op tftp.Opcode, block uint16) ([]byte, error) {
	for start := time.Now(); time.Since(start) < patience; {
		b := c.packet(time.Second)
		switch {
		case b == nil:
			c.send(c.last)
		case tftp.Opcode(binary.BigEndian.Uint16(b)) == tftp.OpError:
			return nil, &tftp.Error{Code: tftp.Code(binary.BigEndian.Uint16(b[2:])), Text: strings.TrimRight(string(b[4:]), "\x00"), Remote: true}
		case tftp.Opcode(binary.BigEndian.Uint16(b)) == op && binary.BigEndian.Uint16(b[2:]) == block:
			return b[4:], nil
		}
	}
	return nil, os.ErrDeadlineExceeded
}

// get reads a file that was asked for, from a block on.
func (c *fileClient) rest(block uint16) (string, error) {
	var all []byte
	for ; ; block++ {
		b, err := c.next(tftp.OpData, block)
		if err != nil {
			return "", err
		}
		all = append(all, b...)
		c.send([]byte{0, 4, byte(block >> 8), byte(block)})
		if len(b) < tftp.DefaultBlock {
			return string(all), nil
		}
	}
}

func (c *fileClient) get(name string) (string, error) {
	c.t.Helper()
	c.request(tftp.OpRead, name)
	return c.rest(1)
}

// put writes a file, but for its last acknowledgement.
func (c *fileClient) put(name, text string) error {
	c.t.Helper()
	c.request(tftp.OpWrite, name)
	for block := uint16(0); ; block++ {
		if _, err := c.next(tftp.OpAck, block); err != nil {
			return err
		}
		n := min(len(text), tftp.DefaultBlock)
		c.send(append([]byte{0, 3, byte((block + 1) >> 8), byte(block + 1)}, text[:n]...))
		if text = text[n:]; n < tftp.DefaultBlock {
			return nil
		}
	}
}

// acknowledged waits for the last acknowledgement of a file of that size.
func (c *fileClient) acknowledged(size int) error {
	c.t.Helper()
	_, err := c.next(tftp.OpAck, uint16(size/tftp.DefaultBlock+1))
	return err
}

// expect gets a file.
func (c *fileClient) expect(name, want string) {
	c.t.Helper()
	if got, err := c.get(name); err != nil || got != want {
		c.t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
	}
}

// refused expects an error.
func (c *fileClient) refused(name string, want *tftp.Error) {
	c.t.Helper()
	_, err := c.get(name)
	c.isRefused(err, name, want)
}

func (c *fileClient) isRefused(err error, what string, want *tftp.Error) {
	c.t.Helper()
	// An ERROR is no longer than the request, so its text may be cut.
	if got, ok := errors.AsType[*tftp.Error](err); !ok || got.Code != want.Code || want.Text != "" && !strings.HasPrefix(want.Text, got.Text) {
		c.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// settled waits until no transfer is under way.
func (r *testRelay) settled() Status {
	r.t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		st := r.Status(r.t.Context())
		if st.Visitors == 0 {
			return st
		}
		if time.Since(start) > patience {
			r.t.Fatalf("%d visitors", st.Visitors)
		}
	}
}

// office is the active session of that site.
func office(st Status) *SessionStatus {
	i := slices.IndexFunc(st.Sessions, func(s SessionStatus) bool { return s.Site == "office" && s.Active })
	if i < 0 {
		return new(SessionStatus)
	}
	return &st.Sessions[i]
}

// announceFiles makes a list of services that may be written to.
func announceFiles(f relay.Files, publish ...string) []relay.Announcement {
	list := announcements(publish...)
	for i := range list {
		list[i].Files = &f
	}
	return list
}

func textOf(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString("line ")
		b.WriteByte(byte('a' + i%26))
		b.WriteByte(byte('a' + i/26%26))
		b.WriteByte('\n')
	}
	return b.String()[:n]
}

func TestFilesRead(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newFileRelay(t, portable, nil)
		r.connect("home", nil, "rack", "tftp:///boot/rack") // so that office is of another loop than the port
		files := make(map[string]string)
		for _, n := range []int{0, 1, 511, 512, 513, 1024, 100_000} {
			files["f"+string(rune('a'+len(files)))] = textOf(n)
		}
		fs := filesOf(r.connect("office", nil, "boot", "tftp:///boot"), files)
		c := r.fileClient()
		sum := 0
		for name, text := range files {
			c.expect("/boot//"+name, text)
			sum += len(text)
		}
		c.refused("boot/none", fileNone)
		c.refused("other", fileNone)
		c.refused("boot/../etc/passwd", &tftp.Error{Code: tftp.CodeAccess, Text: "The name leaves the folder."})
		fs.do(func() {
			want := relay.Header{Kind: relay.KindFile, Service: "boot", Scheme: "tftp", Visitor: netip.MustParseAddrPort(c.LocalAddr().String())}
			if fs.headers[0] != want {
				t.Errorf("header %+v, want %+v", fs.headers[0], want)
			}
			if r := fs.asked[0]; r.Mode != relay.ModeOctet || r.Size != -1 || r.Write || r.Have != "" || files[r.Name] == "" && len(files[r.Name]) > 0 {
				t.Errorf("request %+v", r)
			}
			if n := len(files) + 1; len(fs.asked) != n {
				t.Errorf("%d requests for %d files", len(fs.asked), n)
			}
		})
		st := r.settled()
		for _, s := range st.Sessions {
			if svc := s.Services[0]; svc.Name == "boot" && (svc.Total != uint64(len(files)+1) || svc.Sent != uint64(sum) || svc.Errors[wordNotFound] != 1) {
				t.Errorf("counters %+v, %+v", svc, svc.TFTP)
			}
		}
		if st.TFTP.Total != uint64(len(files)+1) || st.Refused[wordNotFound] != 1 {
			t.Errorf("in all %+v", st.TFTP)
		}
	})
}

func TestFilesWrite(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newFileRelay(t, portable, nil)
		r.connect("home", nil)
		s := r.connect("office", nil)
		fs := filesOf(s, map[string]string{})
		s.announceTo(append(announceFiles(relay.Files{Write: relay.WriteReplace, MaxSize: 5000}, "up", "tftp:///up"), announcements("boot", "tftp:///boot")...))
		c := r.fileClient()
		for _, n := range []int{0, 511, 512, 5000} {
			if err := c.put("up/f", textOf(n)); err != nil {
				t.Fatal(err)
			}
			if err := c.acknowledged(n); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			fs.do(func() {
				if fs.files["f"] != textOf(n) {
					t.Errorf("%d bytes have come of %d", len(fs.files["f"]), n)
				}
			})
		}
		c.isRefused(c.put("boot/f", "x"), "a service that is read only", &tftp.Error{Code: tftp.CodeAccess})
		fs.do(func() { fs.errors["there"] = uint16(tftp.CodeExists) })
		c.isRefused(c.put("up/there", "x"), "a file that is there", fileExists)
		c.isRefused(c.put("up/big", textOf(6000)), "more than there may be", &tftp.Error{Code: tftp.CodeDiskFull})
		fs.do(func() {
			if fs.files["big"] != "" {
				t.Error("a part of a file was stored")
			}
		})
		if svc := office(r.settled()).Services[0]; svc.Received < 6023 || svc.Total != 6 {
			t.Errorf("counters %+v", svc)
		}
	})
}

// The last acknowledgement says that the file is safe.
func TestFilesSafe(t *testing.T) {
	r := newFileRelay(t, false, nil)
	s := r.connect("office", nil)
	fs := filesOf(s, map[string]string{})
	fs.do(func() { fs.unsafe = true })
	s.announceTo(announceFiles(relay.Files{Write: relay.WriteNew}, "up", "tftp:///up"))
	c := r.fileClient()
	if err := c.put("up/f", textOf(600)); err != nil {
		t.Fatal(err)
	}
	for whole := false; !whole; { // it has all of it
		fs.do(func() { whole = len(fs.open[0].in) == 600 })
	}
	if b := c.packet(100 * time.Millisecond); b != nil && b[3] == 2 {
		t.Errorf("%x before it is safe", b)
	}
	fs.do(func() { fs.open[0].safe() })
	if err := c.acknowledged(600); err != nil {
		t.Error(err)
	}

	// The site cannot store it after all.
	d := r.fileClient()
	if err := d.put("up/g", textOf(600)); err != nil {
		t.Fatal(err)
	}
	fs.do(func() {
		fs.open[1].reply(relay.FileReply{Error: &relay.FileError{Code: 3, Text: "/srv is full"}, Size: -1})
		fs.open[1].CloseWrite()
	})
	d.isRefused(d.acknowledged(600), "a full disk", fileFull)
}

// What a site answers becomes one of a few errors, whose texts are ours.
func TestFilesFail(t *testing.T) {
	r := newFileRelay(t, false, nil)
	fs := filesOf(r.connect("office", nil, "all", "tftp:///"), map[string]string{"cut": textOf(3000)})
	errs := map[string]uint16{"e0": 0, "e2": 2, "e3": 3, "e8": 8}
	resets := map[string]tunnel.Code{"r2": tunnel.CodeRefused, "r4": tunnel.CodeTimeout, "r5": tunnel.CodeNotFound, "r6": tunnel.CodeForbidden, "r7": tunnel.CodeOverload, "r10": tunnel.CodeInternal}
	raw := map[string]string{
		"empty": "", "half": "\x00", "long": "\xff\xff{}", "none": "\x00\x00", "text": "\x00\x02[]", "same": "\x00\x20" + `{"size":1,"same":true,"version":"`,
		"other": string(relay.AppendFile(nil, relay.FileReply{Size: 1, Version: "x", Same: true})),
	}
	want := map[string]*tftp.Error{
		"e0": fileFailed, "e2": fileRefused, "e3": fileFull, "e8": fileFailed,
		"r2": fileNoServer, "r4": fileSilent, "r5": fileNone, "r6": fileRefused, "r7": fileBusy, "r10": fileFailed,
	}
	fs.do(func() { fs.errors, fs.resets, fs.raw = errs, resets, raw })
	for name := range raw {
		want[name] = fileFailed
	}
	for name, err := range want {
		r.fileClient().refused(name, err)
	}

	// A file that is cut does not look whole.
	fs.do(func() { fs.most["cut"] = 2048 })
	c := r.fileClient()
	c.request(tftp.OpRead, "cut")
	if _, err := c.next(tftp.OpData, 1); err != nil {
		t.Fatal(err)
	}
	fs.do(func() { fs.open[len(fs.open)-1].Reset(tunnel.CodeInternal) })
	c.send([]byte{0, 4, 0, 1})
	if text, err := c.rest(2); err == nil {
		t.Errorf("%d bytes of a file that was cut", len(text))
	}
	st := r.settled()
	if got := office(st).Services[0].Errors; got[wordReset] < 3 || got[wordUnreachable] != 1 || got[wordTimeout] != 1 || got[wordPolicy] != 2 || got[wordLimit] != 2 || got[wordNotFound] != 1 {
		t.Errorf("errors %v", got)
	}
	for open := 1; open > 0; {
		open = 0
		fs.do(func() {
			for _, f := range fs.open {
				if !f.over {
					open++
				}
			}
		})
	}
}

// A site that says nothing is not waited for without end, whatever it is to say.
func TestFilesSilent(t *testing.T) {
	r := newFileRelay(t, false, nil)
	s := r.connect("office", nil)
	fs := filesOf(s, map[string]string{"f": textOf(3000)})
	s.announceTo(announceFiles(relay.Files{Write: relay.WriteNew}, "all", "tftp:///"))
	fs.do(func() {
		fs.silent, fs.unsafe = true, true
		fs.most["f"] = 1024
	})
	// asks has a client ask for something, and returns what is opened for it.
	asks := func(op tftp.Opcode, name string) (c *fileClient, f *fileStream) {
		c = r.fileClient()
		c.request(op, name)
		for f == nil {
			fs.do(func() { f = s.session.services[0].asking })
		}
		return c, f
	}
	// late is the end of the time that f has.
	late := func(f *fileStream) {
		fs.do(func() {
			f.due.at = 0
			f.onTimer()
		})
	}
	c, f := asks(tftp.OpRead, "f")
	late(f)
	_, err := c.next(tftp.OpData, 1)
	c.isRefused(err, "no reply", fileSilent)

	// answer has the site answer what was asked last.
	answer := func() {
		fs.do(func() {
			fs.silent = false
			fs.open[len(fs.open)-1].answer()
			fs.silent = true
		})
	}
	c, f = asks(tftp.OpRead, "f")
	answer()
	if _, err := c.next(tftp.OpData, 1); err != nil {
		t.Fatal(err)
	}
	c.send([]byte{0, 4, 0, 1})
	if _, err := c.next(tftp.OpData, 2); err != nil {
		t.Fatal(err)
	}
	late(f) // it has moved
	late(f)
	c.send([]byte{0, 4, 0, 2})
	_, err = c.next(tftp.OpData, 3)
	c.isRefused(err, "half a file", fileSilent)

	c, f = asks(tftp.OpWrite, "g")
	answer()
	if _, err := c.next(tftp.OpAck, 0); err != nil {
		t.Fatal(err)
	}
	late(f)
	late(f) // it waits for the client
	c.send([]byte{0, 3, 0, 1, 'x'})
	for storing := false; !storing; {
		fs.do(func() { storing = f.phase == fileStoring })
	}
	late(f)
	_, err = c.next(tftp.OpAck, 1)
	c.isRefused(err, "a file of which nobody says that it is safe", fileSilent)
	r.settled()
}

// A policy is asked before the site is.
func TestFilesPolicy(t *testing.T) {
	r := newFileRelay(t, false, nil)
	s := r.connect("office", nil)
	fs := filesOf(s, map[string]string{"f": "text"})
	list := announcements("none", "tftp:///none", "one", "tftp:///one", "slow", "tftp:///slow")
	list[0].Policy = &relay.Policy{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	list[1].Policy = &relay.Policy{MaxConnections: 1}
	list[2].Policy = &relay.Policy{ConnectionRate: relay.Rate{N: 1, Per: time.Hour, Burst: 1}}
	for _, reply := range s.announceTo(list) {
		if reply.Error != "" {
			t.Error(reply.Error)
		}
	}
	c := r.fileClient()
	c.refused("none/f", fileRefused)
	c.expect("slow/f", "text")
	c.refused("slow/f", fileBusy)
	fs.do(func() { fs.silent = true })
	waiting := r.fileClient()
	waiting.request(tftp.OpRead, "one/f")
	for n := 0; n < 2; {
		fs.do(func() { n = len(fs.asked) })
	}
	c.refused("one/f", fileBusy)
	st := r.Status(t.Context())
	if svc := office(st).Services; svc[0].TFTP.Refused != 1 || svc[0].Errors[wordPolicy] != 1 || svc[1].Visitors != 1 || st.Counters.Refused != 3 {
		t.Errorf("%+v, %+v", svc, st.Counters)
	}
}

// All visitors of the relay are bounded, and those of an address.
func TestFilesAdmission(t *testing.T) {
	r := newFileRelay(t, false, func(r *Relay) { r.MaxVisitors = 1 })
	fs := filesOf(r.connect("office", nil, "all", "tftp:///"), map[string]string{"f": "text"})
	fs.do(func() { fs.silent = true })
	c := r.fileClient()
	c.request(tftp.OpRead, "f")
	for n := 0; n < 1; {
		fs.do(func() { n = len(fs.asked) })
	}
	r.fileClient().refused("f", fileBusy)
	fs.do(func() {
		fs.silent = false
		fs.open[0].answer()
	})
	if text, err := c.rest(1); err != nil || text != "text" {
		t.Errorf("%q, %v", text, err)
	}
	r.settled()
	r.fileClient().expect("f", "text")
}

// A cut of the link is a pause.
func TestFilesCut(t *testing.T) {
	r := newFileRelay(t, false, nil)
	s := r.connect("office", nil, "all", "tftp:///")
	fs := filesOf(s, map[string]string{"f": textOf(5000), "g": textOf(5000)})
	fs.do(func() { fs.most["f"], fs.most["g"] = 1500, 1500 })
	c := r.fileClient()
	c.request(tftp.OpRead, "f")
	first, err := c.next(tftp.OpData, 1)
	if err != nil {
		t.Fatal(err)
	}
	fs.do(s.cut)
	fs.release()
	c.send([]byte{0, 4, 0, 1})
	second, err := c.next(tftp.OpData, 2)
	if err != nil {
		t.Fatal(err)
	}
	c.send([]byte{0, 4, 0, 2})
	if b := c.packet(100 * time.Millisecond); b != nil && b[3] > 2 { // what has been acknowledged may have been sent again
		t.Errorf("%x while there is no link", b[:4])
	}
	fs.do(s.attach)
	if rest, err := c.rest(3); err != nil || string(first)+string(second)+rest != textOf(5000) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}

	// The site does not come back.
	c = r.fileClient()
	c.request(tftp.OpRead, "g")
	if _, err := c.next(tftp.OpData, 1); err != nil {
		t.Fatal(err)
	}
	fs.do(func() { s.session.close(errRevoked) })
	c.send([]byte{0, 4, 0, 1})
	_, err = c.rest(2)
	c.isRefused(err, "a session that is over", fileAway)
	r.fileClient().refused("f", fileAway)
}

// Who asks before it is decided who serves him, waits for that; what the private relay before has not answered, the next one does; and
// what is under way goes on.
func TestFilesTakeover(t *testing.T) {
	r := newFileRelay(t, false, nil)
	r.connect("home", nil)
	first := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "a"}, nil, "all", "tftp:///")
	one := filesOf(first, map[string]string{"f": textOf(3000), "who": "first", "again": "first"})
	second := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "b"}, nil, "all", "tftp:///")
	two := filesOf(second, map[string]string{"who": "second"})
	one.do(func() { one.most["f"] = 1500 })
	running := r.fileClient()
	running.request(tftp.OpRead, "f")
	begin, err := running.next(tftp.OpData, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Promote(t.Context(), "office", "", -1); err != nil {
		t.Fatal(err)
	}
	r.fileClient().expect("who", "second")
	one.release()
	running.send([]byte{0, 4, 0, 1})
	if rest, err := running.rest(2); err != nil || string(begin)+rest != textOf(3000) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}

	two.do(func() { two.silent = true })
	asked := r.fileClient()
	asked.request(tftp.OpRead, "again")
	for n := 1; n < 2; {
		two.do(func() { n = len(two.asked) })
	}
	two.do(second.cut)
	held := r.fileClient()
	held.request(tftp.OpRead, "again")
	for i, c := range []*fileClient{asked, held} {
		if text, err := c.rest(1); err != nil || text != "first" {
			t.Errorf("client %d: %q, %v", i, text, err)
		}
	}
	if st := r.settled(); len(office(st).Services) != 1 || office(st).Services[0].Total != 4 {
		t.Errorf("%+v", st.Sessions)
	}
}

// A reload that changes nothing for a service leaves it what it has.
func TestFilesReload(t *testing.T) {
	r := newFileRelay(t, false, func(r *Relay) { r.TFTPCache = 1 << 20 })
	s := r.connect("office", nil)
	fs := filesOf(s, map[string]string{"f": "text"})
	library := func() (lib any) {
		fs.do(func() { lib = s.session.services[0].folder.Library })
		return lib
	}
	s.announceTo(announceFiles(relay.Files{Cache: true}, "all", "tftp:///"))
	before := library()
	list := announceFiles(relay.Files{Cache: true}, "all", "tftp:///")
	list[0].Policy = &relay.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	s.announceTo(list)
	if library() != before {
		t.Error("another policy has made another library")
	}
	s.announceTo(announceFiles(relay.Files{Cache: true, Write: relay.WriteNew}, "all", "tftp:///"))
	if library() == before {
		t.Error("it is not known that it may be written to")
	}
	c := r.fileClient()
	if err := errors.Join(c.put("g", "new"), c.acknowledged(3)); err != nil {
		t.Error(err)
	}
	s.announceTo(nil)
	r.fileClient().refused("f", fileNone)
}

// A file that many read crosses the link once, and is asked for again only to see whether it has changed.
func TestFilesCache(t *testing.T) {
	t.Parallel() // it waits for seconds
	r := newFileRelay(t, false, func(r *Relay) { r.TFTPCache = 1 << 20 })
	r.connect("home", nil)
	s := r.connect("office", nil)
	fs := filesOf(s, map[string]string{"f": textOf(20_000)})
	s.announceTo(announceFiles(relay.Files{Cache: true}, "all", "tftp:///"))
	fs.do(func() { fs.most["f"] = 10_000 })
	var wg sync.WaitGroup
	const clients = 20
	for range clients {
		c := r.fileClient()
		wg.Go(func() { c.expect("f", textOf(20_000)) })
	}
	for begun := uint64(0); begun < clients; {
		begun = r.Status(t.Context()).TFTP.Total
	}
	fs.do(func() { delete(fs.most, "f") })
	fs.release()
	wg.Wait()
	asked := 0
	fs.do(func() { asked = len(fs.asked) })
	if asked != 1 {
		t.Errorf("%d requests for %d clients", asked, clients)
	}
	st := r.settled()
	if svc := office(st).Services[0]; svc.TFTP.Hits != clients-1 || svc.Sent != clients*20_000 {
		t.Errorf("%+v, %+v", svc, svc.TFTP)
	}
	if st.TFTP.Cache.Bytes < 20_000 || office(st).Received > 21_000 {
		t.Errorf("%+v, %d bytes from the site", st.TFTP.Cache, office(st).Received)
	}
	time.Sleep(2100 * time.Millisecond) // answers are good for 2 s
	r.fileClient().expect("f", textOf(20_000))
	fs.do(func() {
		if n := len(fs.asked); n != 2 || fs.asked[1].Have != "v1" {
			t.Errorf("%+v", fs.asked)
		}
		fs.files["f"], fs.version = "other", "v2"
	})
	time.Sleep(2100 * time.Millisecond)
	r.fileClient().expect("f", "other")
}

// When the relay drains, transfers finish, and who asks anew hears nothing.
func TestFilesDrain(t *testing.T) {
	r := newFileRelay(t, false, nil)
	r.connect("home", nil)
	fs := filesOf(r.connect("office", nil, "all", "tftp:///"), map[string]string{"f": textOf(5000)})
	fs.do(func() { fs.most["f"] = 1500 })
	c := r.fileClient()
	c.request(tftp.OpRead, "f")
	first, err := c.next(tftp.OpData, 1)
	if err != nil {
		t.Fatal(err)
	}
	c.send([]byte{0, 4, 0, 1})
	drained := make(chan error, 1)
	go func() { drained <- r.Drain(t.Context()) }()
	for !r.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	late := r.fileClient()
	late.request(tftp.OpRead, "f")
	if b := late.packet(100 * time.Millisecond); b != nil {
		t.Errorf("%x", b)
	}
	fs.release()
	if rest, err := c.rest(2); err != nil || string(first)+rest != textOf(5000) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// Who has not finished when the time is over is told so, also if nothing is needed of the site any more.
func TestFilesDrainTimeout(t *testing.T) {
	r := newFileRelay(t, false, nil)
	filesOf(r.connect("office", nil, "all", "tftp:///"), map[string]string{"f": textOf(5000)})
	c := r.fileClient()
	c.request(tftp.OpRead, "f")
	for block := byte(1); block < 4; block++ {
		if _, err := c.next(tftp.OpData, uint16(block)); err != nil {
			t.Fatal(err)
		}
		c.send([]byte{0, 4, 0, block})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	_, err := c.next(tftp.OpData, 6)
	c.isRefused(err, "a relay that has ended", new(tftp.Error))
}

// A socket that was there before the relay is used.
func TestFilesInherited(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Skip(err) // Windows
	}
	defer f.Close()
	r := newFileRelay(t, false, func(r *Relay) {
		r.Inherited = func(name, network, at string) []*os.File {
			if name == "tftp" && network == "udp" && at == r.TFTP {
				return []*os.File{f}
			}
			return nil
		}
	})
	if got := r.tftp.Addr().String(); got != c.LocalAddr().String() {
		t.Fatalf("it listens on %s, not %s", got, c.LocalAddr())
	}
	filesOf(r.connect("office", nil, "all", "tftp:///"), map[string]string{"f": "text"})
	r.fileClient().expect("f", "text")
}

// Each transfer has one line in the access log.
func TestFilesLog(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	r := newFileRelay(t, false, func(r *Relay) {
		r.AccessLog = func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, slices.Collect(strings.Lines(string(b)))...)
		}
	})
	s := r.connect("office", nil)
	filesOf(s, map[string]string{"x\"y": textOf(600)})
	s.announceTo(announceFiles(relay.Files{Write: relay.WriteNew}, "boot", "tftp:///boot"))
	c := r.fileClient()
	c.expect("boot/x\"y", textOf(600))
	c.refused("boot/none", fileNone)
	c.refused("other/none", fileNone)
	if err := errors.Join(c.put("boot/g", textOf(700)), c.acknowledged(700)); err != nil {
		t.Error(err)
	}
	o := tftp.Request{Op: tftp.OpRead, Name: "boot/g", Mode: tftp.NetASCII, Options: tftp.Options{Block: 1024, Window: 4}}
	c.send(o.Append(nil))
	if b := c.packet(patience); !strings.Contains(string(b), "blksize\x001024") {
		t.Errorf("%q", b)
	}
	c.send([]byte{0, 4, 0, 0})
	if b, err := c.next(tftp.OpData, 1); err != nil || len(b) != 700 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	c.send([]byte{0, 4, 0, 1})
	r.settled()
	var got []string
	for len(got) < 5 {
		onLoop(s.session.loop.Loop, func() {})
		mu.Lock()
		got = slices.Clone(lines)
		mu.Unlock()
	}
	session := s.session.shortID()
	for i, want := range []string{
		`"site":"office","service":"boot","visitor":"VISITOR","proto":"tftp","method":"RRQ","path":"/boot/x\"y","received":0,"sent":600,"duration_ms":MS,"stream":2,"session":"SESSION","link":"wss"}`,
		`"site":"office","service":"boot","visitor":"VISITOR","proto":"tftp","method":"RRQ","path":"/boot/none","received":0,"sent":0,"duration_ms":MS,"stream":4,"session":"SESSION","link":"wss","error":"not-found"}`,
		`"visitor":"VISITOR","proto":"tftp","path":"/other/none","received":0,"sent":0,"duration_ms":MS,"error":"not-found"}`,
		`"site":"office","service":"boot","visitor":"VISITOR","proto":"tftp","method":"WRQ","path":"/boot/g","received":700,"sent":0,"duration_ms":MS,"stream":6,"session":"SESSION","link":"wss"}`,
		`"site":"office","service":"boot","visitor":"VISITOR","proto":"tftp","method":"RRQ","path":"/boot/g","mode":"netascii","blksize":1024,"windowsize":4,"received":0,"sent":700,"duration_ms":MS,"stream":8,"session":"SESSION","link":"wss"}`,
	} {
		line := got[i]
		_, line, _ = strings.Cut(line, `Z",`)
		line = strings.TrimSpace(line)
		if a, b, ok := strings.Cut(line, `"duration_ms":`); ok {
			if i := strings.IndexAny(b, ",}"); i >= 0 {
				line = a + `"duration_ms":MS` + b[i:]
			}
		}
		want = strings.NewReplacer("VISITOR", c.LocalAddr().String(), "SESSION", session).Replace(want)
		if line != want {
			t.Errorf("got  %s\nwant %s", line, want)
		}
	}
}

// Each end of a transfer has a word.
func TestFileWords(t *testing.T) {
	for err, want := range map[error]word{
		nil: fine, tftp.ErrTimeout: wordTimeout, &tftp.Error{Code: tftp.CodeNotFound, Remote: true}: wordCancelled,
		fileNone: wordNotFound, fileRefused: wordPolicy, fileExists: wordPolicy, fileFull: wordLimit, fileBusy: wordLimit, fileAway: wordAway,
		tftpd.ErrReplaced: wordCancelled, tftpd.ErrDisplaced: wordLimit,
		fileFailed: wordReset, fileNoServer: wordUnreachable, fileSilent: wordTimeout, &tftp.Error{Code: tftp.CodeIllegal}: wordMalformed,
	} {
		if got := fileWord(err); got != want {
			t.Errorf("%v: %s, want %s", err, Words[got], Words[want])
		}
	}
}

// Whoever has not shown that the address is his own makes the first window of a stream cross and 4 KiB, and no more, however often he asks.
func TestFilesUnproven(t *testing.T) {
	r := newFileRelay(t, false, func(r *Relay) { r.TFTPCache = 8 << 20 })
	s := r.connect("office", nil)
	filesOf(s, map[string]string{"f": textOf(3 << 20), "g": textOf(200_000)})
	s.announceTo(announceFiles(relay.Files{Cache: true}, "all", "tftp:///"))
	for range 20 {
		c := r.fileClient()
		c.request(tftp.OpRead, "f")
		if _, err := c.next(tftp.OpData, 1); err != nil {
			t.Fatal(err)
		}
	}
	r.fileClient().expect("g", textOf(200_000)) // while that crosses, whatever else may does
	st := r.Status(t.Context())
	if n := st.Sessions[0].Received; n > 200_000+70<<10 {
		t.Errorf("%d bytes have crossed", n)
	}
	if c := st.TFTP.Cache; c.Bytes > 201_024 || c.Fetches != 2 {
		t.Errorf("%+v", c)
	}
}
