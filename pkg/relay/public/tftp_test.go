package public

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
)

// newFileRelay is newTestRelay with a port for TFTP.
func newFileRelay(t testing.TB, portable bool, change func(*Relay)) *testRelay {
	t.Helper()
	return newTestRelay(t, portable, func(r *Relay) {
		r.TFTP = "127.0.0.1:0"
		if change != nil {
			change(r)
		}
	})
}

// whose returns the service of a file and its name there, or the answer.
func (r *testRelay) whose(name string) (service, rest string, err *tftp.Error) {
	onLoop(r.loops[0].Loop, func() {
		share, left, e := r.findFile(name, netip.MustParseAddrPort("192.0.2.1:4000"))
		if rest, err = left, e; share != nil {
			service = share.Store.(siteFiles).service.name
		}
	})
	return service, rest, err
}

// announceTo announces services and returns their addresses and errors.
func (ts *testSite) announceTo(list []relay.Announcement) []relay.AnnounceReply {
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(ts.session.loop.Loop, func() { ts.announce(list, replies) })
	return <-replies
}

// The longest prefix decides whose a file is, whatever site it is of.
func TestFileRoutes(t *testing.T) {
	r := newFileRelay(t, false, nil)
	office := r.connect("office", nil, "all", "tftp:///", "arm", "tftp:///boot/arm/")
	home := r.connect("home", nil, "boot", "tftp:///boot")
	for _, one := range []struct{ name, service, rest string }{
		{"x", "all", "x"}, {"bootx", "all", "bootx"}, {"boot/x", "boot", "x"}, {"boot/arm/x/y", "arm", "x/y"}, {"boot/armx", "boot", "armx"},
	} {
		if service, rest, err := r.whose(one.name); service != one.service || rest != one.rest || err != nil {
			t.Errorf("%s: %s of %s, %v, want %+v", one.name, rest, service, err, one)
		}
	}
	if service, _, err := r.whose("boot"); service != "" || err != fileNone {
		t.Errorf("a prefix as a name: %q, %v", service, err)
	}

	// No two have the same one.
	replies := home.announceTo(announcements("boot", "tftp:///boot", "more", "tftp:///boot/", "steal", "tftp:///boot/arm", "mine", "tftp:///"))
	for i, want := range []string{"", `service "boot" has this address`, "another site has this address", "may not publish"} {
		if got := replies[i].Error; want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("service %d: %q, want %q", i, got, want)
		}
	}
	addr := ""
	for _, l := range r.Listeners() {
		if l.Name == "tftp" {
			addr = l.Addr.String()
		}
	}
	if got := replies[0].Addresses; len(got) != 1 || got[0] != "tftp://"+addr+"/boot" {
		t.Errorf("addresses %q", got)
	}

	// What is announced no more is somebody else's.
	office.announceTo(announcements("all", "tftp:///"))
	if service, rest, err := r.whose("boot/arm/x"); service != "boot" || rest != "arm/x" || err != nil {
		t.Errorf("%s of %s, %v", rest, service, err)
	}
}

// A site that is not there is waited for as long as it may not have found the relay.
func TestFilesAway(t *testing.T) {
	r := newFileRelay(t, false, nil)
	if _, _, err := r.whose("boot/x"); err != fileAway {
		t.Errorf("%v", err)
	}
	r.connect("office", nil, "all", "tftp:///all")
	if _, _, err := r.whose("x"); err != fileNone {
		t.Errorf("of a site that is there: %v", err)
	}
	if _, _, err := r.whose("boot/x"); err != fileAway {
		t.Errorf("of one that is not: %v", err)
	}
	if st := r.Status(t.Context()); st.Refused[wordAway] != 2 || st.Refused[wordNotFound] != 1 {
		t.Errorf("%v", st.Refused)
	}
	early := newFileRelay(t, false, func(r *Relay) { r.Grace = time.Hour })
	if service, _, err := early.whose("boot/x"); service != "" || err != nil {
		t.Errorf("just after the start: %q, %v", service, err)
	}
	if _, _, err := early.whose("none/x"); err != nil {
		t.Errorf("office may publish it: %v", err)
	}
}

// Without a port there is nothing to publish on.
func TestFilesWithoutListener(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil)
	if got := s.announceTo(announcements("boot", "tftp:///boot")); !strings.Contains(got[0].Error, "[listen]") {
		t.Errorf("%+v", got)
	}
}

// Visitors find a port that listens everywhere by the relay's own name.
func TestFileAddresses(t *testing.T) {
	r := newFileRelay(t, false, func(r *Relay) { r.TFTP = ":0" })
	s := r.connect("office", nil)
	got := s.announceTo(announcements("boot", "tftp:///boot", "all", "tftp:///"))
	if a := got[0].Addresses; len(a) != 1 || !strings.HasPrefix(a[0], "tftp://relay.test:") || !strings.HasSuffix(a[0], "/boot") {
		t.Errorf("%q", a)
	}
	if a := got[1].Addresses; len(a) != 1 || !strings.HasSuffix(a[0], "/") {
		t.Errorf("%q", a)
	}
}

// A site that may have files is of the loop that reads their port, unless others have fewer sites.
func TestFileLoop(t *testing.T) {
	r := newFileRelay(t, false, nil)
	pattern := func(s string) []relay.Pattern {
		p, err := relay.ParsePattern(s)
		if err != nil {
			t.Fatal(err)
		}
		return []relay.Pattern{p}
	}
	r.Reload([]Site{
		{Name: "rack", Keys: []string{"k"}, Publish: pattern("tftp:///rack/*")},
		{Name: "yard", Keys: []string{"k"}, Publish: pattern("tftp:///yard/*")},
		{Name: "shop", Keys: []string{"k"}, Publish: pattern("https://shop.test")},
	})
	last := r.loops[len(r.loops)-1]
	for _, one := range []struct {
		site string
		want *loop
	}{{"rack", r.loops[portLoop]}, {"shop", last}, {"yard", r.loops[portLoop]}} {
		a, refusal := r.admit(relay.Hello{Site: one.site, Key: "k"}, last)
		if refusal != nil {
			t.Fatal(refusal)
		}
		if a.session.loop != one.want {
			t.Errorf("site %q has another loop", one.site)
		}
		a.session.loop.Post(func() { a.session.close(nil) })
	}
}
