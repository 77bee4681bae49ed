package onvif

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a camera on this machine.
type fake struct {
	t        *testing.T
	probed   netip.AddrPort
	service  string // URL of its device service
	password string // of admin; empty: whoever asks is answered
	digest   bool   // wants Digest of HTTP in place of WS-UsernameToken
	skew     time.Duration
	old      bool // knows GetCapabilities alone
	answer   func(id string) []string
	page     func(w http.ResponseWriter, body string) bool // replaces what is asked by SOAP; nil: nothing
}

// matches is an answer to a probe, as cameras send it.
func matches(id, endpoint, xaddrs, name string) string {
	return `<?xml version="1.0" encoding="utf-8"?><env:Envelope xmlns:env="http://www.w3.org/2003/05/soap-envelope" xmlns:wsadis="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl">` +
		`<env:Header><wsadis:MessageID>urn:uuid:1</wsadis:MessageID><wsadis:RelatesTo>` + id + `</wsadis:RelatesTo></env:Header>` +
		`<env:Body><d:ProbeMatches><d:ProbeMatch><wsadis:EndpointReference><wsadis:Address>` + endpoint + `</wsadis:Address></wsadis:EndpointReference>` +
		`<d:Types>dn:NetworkVideoTransmitter tds:Device</d:Types><d:Scopes>onvif://www.onvif.org/type/video_encoder onvif://www.onvif.org/name/` + name +
		` onvif://www.onvif.org/hardware/DS-2CD2143G0-I onvif://www.onvif.org/location/city/Gera onvif://www.onvif.org/Profile/Streaming</d:Scopes>` +
		`<d:XAddrs>` + xaddrs + `</d:XAddrs><d:MetadataVersion>10</d:MetadataVersion></d:ProbeMatch></d:ProbeMatches></env:Body></env:Envelope>`
}

func newFake(t *testing.T, f *fake) *fake {
	f.t = t
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f.probed = c.LocalAddr().(*net.UDPAddr).AddrPort()
	srv := httptest.NewServer(f)
	f.service = srv.URL + "/onvif/device_service"
	done := make(chan struct{})
	go f.serve(c, done)
	t.Cleanup(func() {
		c.Close()
		<-done
		srv.Close()
	})
	return f
}

func (f *fake) serve(c *net.UDPConn, done chan<- struct{}) {
	defer close(done)
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		doc, err := parse(b[:n])
		if err != nil || len(doc.all("Body", "Probe")) != 1 {
			f.t.Errorf("not a probe: %q %v", b[:n], err)
			continue
		}
		id := doc.value("Header", "MessageID")
		answers := []string{matches(id, "urn:uuid:cam-1", "http://[fe80::1]/onvif/device_service "+f.service, "HIKVISION%20DS-2CD2143")}
		if f.answer != nil {
			answers = f.answer(id)
		}
		for _, a := range answers {
			c.WriteToUDPAddrPort([]byte(a), from)
		}
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if f.page != nil && f.page(w, string(b)) {
		return
	}
	doc, err := parse(b)
	if err != nil {
		f.t.Errorf("%s: %v", b, err)
		return
	}
	say := func(body string) {
		w.Header().Set("Content-Type", "application/soap+xml")
		io.WriteString(w, `<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope" xmlns:tt="x" xmlns:trt="y"><SOAP-ENV:Body>`+body+`</SOAP-ENV:Body></SOAP-ENV:Envelope>`)
	}
	what := doc.all("Body")[0].kids[0].name
	now := time.Now().Add(f.skew).UTC()
	if what == "GetSystemDateAndTime" {
		say(fmt.Sprintf(`<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:UTCDateTime><tt:Time><tt:Hour>%d</tt:Hour><tt:Minute>%d</tt:Minute><tt:Second>%d</tt:Second></tt:Time>`+
			`<tt:Date><tt:Year>%d</tt:Year><tt:Month>%d</tt:Month><tt:Day>%d</tt:Day></tt:Date></tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>`,
			now.Hour(), now.Minute(), now.Second(), now.Year(), now.Month(), now.Day()))
		return
	}
	if f.password != "" && f.digest {
		if !strings.Contains(r.Header.Get("Authorization"), `username="admin"`) {
			w.Header().Add("WWW-Authenticate", `Basic realm="cam"`)
			w.Header().Add("WWW-Authenticate", `Digest realm="cam", nonce="n", qop="auth"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	} else if f.password != "" {
		token := func(name string) string { return doc.value("UsernameToken", name) }
		nonce, _ := base64.StdEncoding.DecodeString(token("Nonce"))
		sum := sha1.Sum([]byte(string(nonce) + token("Created") + f.password))
		created, _ := time.Parse(time.RFC3339, token("Created"))
		if token("Username") != "admin" || token("Password") != base64.StdEncoding.EncodeToString(sum[:]) || created.Sub(now).Abs() > 10*time.Second {
			w.WriteHeader(http.StatusBadRequest)
			say(`<SOAP-ENV:Fault><SOAP-ENV:Code><SOAP-ENV:Value>SOAP-ENV:Sender</SOAP-ENV:Value><SOAP-ENV:Subcode><SOAP-ENV:Value>ter:NotAuthorized</SOAP-ENV:Value></SOAP-ENV:Subcode></SOAP-ENV:Code></SOAP-ENV:Fault>`)
			return
		}
	}
	// It is behind a translation of addresses and does not know its own.
	_, port, _ := net.SplitHostPort(r.Host)
	media := "http://192.168.1.64:" + port + "/onvif/Media"
	switch {
	case what == "GetServices" && !f.old:
		say(`<tds:GetServicesResponse><tds:Service><tds:Namespace>http://www.onvif.org/ver10/device/wsdl</tds:Namespace><tds:XAddr>` + f.service + `</tds:XAddr></tds:Service>` +
			`<tds:Service><tds:Namespace>http://www.onvif.org/ver10/media/wsdl</tds:Namespace><tds:XAddr>` + media + `</tds:XAddr></tds:Service></tds:GetServicesResponse>`)
	case what == "GetCapabilities":
		say(`<tds:GetCapabilitiesResponse><tds:Capabilities><tt:Media><tt:XAddr>` + media + `</tt:XAddr></tt:Media></tds:Capabilities></tds:GetCapabilitiesResponse>`)
	case what == "GetProfiles":
		say(`<trt:GetProfilesResponse><trt:Profiles token="Profile_1" fixed="true"><tt:Name>mainStream</tt:Name><tt:VideoEncoderConfiguration token="v"><tt:Encoding>H264</tt:Encoding>` +
			`<tt:Resolution><tt:Width>1920</tt:Width><tt:Height>1080</tt:Height></tt:Resolution></tt:VideoEncoderConfiguration></trt:Profiles>` +
			`<trt:Profiles token="Profile_2"><tt:Name>subStream</tt:Name></trt:Profiles></trt:GetProfilesResponse>`)
	case what == "GetStreamUri":
		channel := map[string]string{"Profile_1": "101", "Profile_2": "102"}[doc.value("GetStreamUri", "ProfileToken")]
		say(`<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>rtsp://192.168.1.64:554/Streaming/Channels/` + channel + `?transportmode=unicast&amp;profile=Profile_1</tt:Uri></trt:MediaUri></trt:GetStreamUriResponse>`)
	default:
		w.WriteHeader(http.StatusInternalServerError)
		say(`<SOAP-ENV:Fault><SOAP-ENV:Reason><SOAP-ENV:Text>Action Not Implemented</SOAP-ENV:Text></SOAP-ENV:Reason></SOAP-ENV:Fault>`)
	}
}

// patience is how long tests wait for answers, which come at once, on a machine that has much else to do.
const patience = 1500 * time.Millisecond

// find looks for the fake as a user.
func (f *fake) find(user, password string) []Device {
	f.t.Helper()
	finder := Finder{User: user, Password: password, Addresses: []netip.AddrPort{f.probed}, NoMulticast: true, Wait: patience}
	devices, err := finder.Find(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return devices
}

func TestFind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what           string
		fake           fake
		user, password string
		problem        string
	}{
		{what: "open"},
		{what: "open and old", fake: fake{old: true}},
		{what: "with a password", fake: fake{password: "secret"}, user: "admin", password: "secret"},
		{what: "with a clock of its own", fake: fake{password: "secret", skew: -20 * 365 * 24 * time.Hour, old: true}, user: "admin", password: "secret"},
		{what: "with Digest of HTTP", fake: fake{password: "secret", digest: true}, user: "admin", password: "secret"},
		{what: "without the password", fake: fake{password: "secret"}, problem: "needs a user name and password"},
		{what: "without the password of HTTP", fake: fake{password: "secret", digest: true}, problem: "needs a user name and password"},
		{what: "with a wrong password", fake: fake{password: "secret"}, user: "admin", password: "Secret", problem: "refuses this user name and password"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			devices := newFake(t, &test.fake).find(test.user, test.password)
			if len(devices) != 1 {
				t.Fatalf("%d devices: %+v", len(devices), devices)
			}
			d := devices[0]
			if d.ID != "urn:uuid:cam-1" || d.Address != "127.0.0.1" || d.Name != "HIKVISION DS-2CD2143" || d.Hardware != "DS-2CD2143G0-I" || d.Location != "Gera" || d.Problem != test.problem {
				t.Errorf("%+v", d)
			}
			if test.problem != "" {
				if len(d.Streams) > 0 {
					t.Errorf("%+v", d.Streams)
				}
				return
			}
			want := []Stream{
				{Profile: "mainStream", Codec: "H264", Width: 1920, Height: 1080, URL: "rtsp://127.0.0.1:554/Streaming/Channels/101?transportmode=unicast&profile=Profile_1"},
				{Profile: "subStream", URL: "rtsp://127.0.0.1:554/Streaming/Channels/102?transportmode=unicast&profile=Profile_1"},
			}
			if len(d.Streams) != 2 || d.Streams[0] != want[0] || d.Streams[1] != want[1] {
				t.Errorf("%+v", d.Streams)
			}
		})
	}
}

// What a device claims does not have anybody else asked, and what it sends has an end.
func TestHostileDevices(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("<a>", 1000)
	many := "<a>" + strings.Repeat("<b/>", maxNodes) + "</a>"
	var stranger atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stranger.Add(1) }))
	t.Cleanup(func() { // after the cases
		other.Close()
		if n := stranger.Load(); n > 0 {
			t.Errorf("somebody who did not answer was asked %d times", n)
		}
	})
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1) + "/onvif"
	for _, test := range []struct {
		what    string
		answer  func(f *fake, id string) []string
		page    func(w http.ResponseWriter, body string) bool
		devices int
		problem string
	}{
		{what: "rubbish", answer: func(_ *fake, id string) []string {
			return []string{"", "rubbish", deep, many, "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "<a></b>", strings.Repeat("x", 60000)}
		}},
		{what: "an answer to somebody else", answer: func(f *fake, _ string) []string { return []string{matches("urn:uuid:other", "x", f.service, "n")} }},
		{what: "a printer", answer: func(f *fake, id string) []string {
			return []string{strings.NewReplacer("NetworkVideoTransmitter", "Printer", "onvif://", "print://").Replace(matches(id, "x", f.service, "n"))}
		}},
		{what: "another host", answer: func(_ *fake, id string) []string {
			return []string{matches(id, "x", elsewhere+" http://user@127.0.0.1/ ftp://127.0.0.1/ http://127.0.0.2/", "n")}
		}, devices: 1, problem: "says that it is somewhere else than where it answers from"},
		{what: "the same device again and again", answer: func(f *fake, id string) []string {
			return []string{matches(id, "x", f.service, "a"), matches(id, "x", f.service, "b")}
		}, devices: 1},
		{what: "texts that steer a terminal", answer: func(f *fake, id string) []string {
			return []string{matches(id, "x", f.service, "%1b]0;a%07"+strings.Repeat("b", 200))}
		}, devices: 1},
		{what: "a redirect", page: func(w http.ResponseWriter, _ string) bool {
			w.Header().Set("Location", elsewhere)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, devices: 1, problem: "answers with HTTP status 307"},
		{what: "a deep answer", page: func(w http.ResponseWriter, _ string) bool { io.WriteString(w, deep); return true }, devices: 1, problem: errBounds.Error()},
		{what: "a huge answer", page: func(w http.ResponseWriter, _ string) bool {
			w.Write(bytes.Repeat([]byte(" "), maxSOAP+1))
			return true
		}, devices: 1, problem: "answers with more than 524288 bytes"},
		{what: "a stream that is no URL", page: func(w http.ResponseWriter, body string) bool {
			if !strings.Contains(body, "GetStreamUri") {
				return false
			}
			io.WriteString(w, "<a><GetStreamUriResponse><MediaUri><Uri>rtsp://127.0.0.1/\x20\"\n[x]</Uri></MediaUri></GetStreamUriResponse></a>")
			return true
		}, devices: 1, problem: "shows no stream"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			f := &fake{page: test.page}
			if test.answer != nil {
				f.answer = func(id string) []string { return test.answer(f, id) }
			}
			devices := newFake(t, f).find("admin", "secret")
			if len(devices) != test.devices {
				t.Fatalf("%+v", devices)
			}
			for _, d := range devices {
				if d.Problem != test.problem || strings.ContainsAny(d.Name, "\x1b\a") || len(d.Name) > 100 {
					t.Errorf("%+v", d)
				}
			}
		})
	}
}

// A device that does not end its answer is left when the time is over, and so is a flood of answers.
func TestEndlessDevice(t *testing.T) {
	t.Parallel()
	f := newFake(t, &fake{answer: func(id string) []string {
		var all []string
		for i := range maxDevices + 100 {
			all = append(all, matches(id, fmt.Sprint("cam-", i), "", "n"))
		}
		return all
	}})
	if n := len(f.find("", "")); n > maxDevices {
		t.Errorf("%d devices", n)
	}
	hold := make(chan struct{})
	f = newFake(t, &fake{page: func(w http.ResponseWriter, _ string) bool {
		io.WriteString(w, "<a>")
		w.(http.Flusher).Flush()
		<-hold
		return true
	}})
	finder := Finder{Addresses: []netip.AddrPort{f.probed}, NoMulticast: true, Wait: patience}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	devices, err := finder.Find(ctx)
	close(hold)
	if err != nil || len(devices) != 1 || devices[0].Problem != "takes too long to answer" {
		t.Errorf("%+v %v", devices, err)
	}
}

// Multicast goes out on whatever networks there are; nothing can be said about who answers.
func TestMulticast(t *testing.T) {
	t.Parallel()
	f := newFake(t, &fake{})
	finder := Finder{Addresses: []netip.AddrPort{f.probed}, Wait: patience}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	devices, err := finder.Find(ctx)
	if err != nil || len(devices) == 0 {
		t.Fatalf("%+v %v", devices, err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := finder.Find(ended); err == nil {
		t.Error("a search that was called off finds something")
	}
	if _, err := (&Finder{NoMulticast: true}).Find(t.Context()); err == nil {
		t.Error("nobody is asked, and that is no error")
	}
}

func TestPrint(t *testing.T) {
	devices := []Device{
		{Address: "10.0.0.20", Name: "Gate 1", Hardware: "DS-2CD", Location: "Gera", Streams: []Stream{
			{Codec: "H264", Width: 1920, Height: 1080, URL: "rtsp://10.0.0.20:554/Streaming/Channels/101?a=b&c=d"}, {Profile: "sub", URL: "rtsp://10.0.0.20/102"}}},
		{Address: "10.0.0.21", Name: "Gate 1", Streams: []Stream{{URL: "rtsp://10.0.0.21/"}}},
		{Address: "10.0.0.22", Problem: "needs a user name and password"},
		{Address: "10.0.0.23", Name: "\x1b[2J門", Streams: []Stream{{URL: "rtsp://10.0.0.23/x"}}},
	}
	var b strings.Builder
	writeTable(&b, devices)
	writeServices(&b, devices, "rtsp://cams.example.com", "ad:min")
	want, err := os.ReadFile("testdata/print.txt")
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	var back []Device
	j, _ := json.Marshal(devices)
	if err := json.Unmarshal(j, &back); err != nil || len(back) != len(devices) {
		t.Error(err)
	}
}

func FuzzMatches(f *testing.F) {
	f.Add([]byte(matches("id", "urn:uuid:cam-1", "http://10.0.0.20/onvif/device_service http://[fe80::1]/", "A%20b")))
	f.Add([]byte(`<a><ProbeMatches><ProbeMatch><EndpointReference><Address>x</Address></EndpointReference><Scopes>onvif://www.onvif.org/name/%zz</Scopes></ProbeMatch></ProbeMatches></a>`))
	from := netip.MustParseAddr("10.0.0.20")
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseMatches(b, "id", from)
		if err != nil {
			return
		}
		for _, one := range all {
			for _, s := range []string{one.id, one.name, one.hardware, one.location} {
				if strings.ContainsAny(s, "\x00\x1b\r\n\t") || len(s) > 1000 {
					t.Fatalf("%q", s)
				}
			}
			if s, err := one.service(); err == nil && !strings.HasPrefix(s, "http://10.0.0.20") && !strings.HasPrefix(s, "https://10.0.0.20") && !strings.Contains(s, "ffff:") {
				t.Fatalf("%q has %q asked", b, s)
			}
		}
	})
}

func FuzzSOAP(f *testing.F) {
	f.Add([]byte(`<a><GetServicesResponse><Service><Namespace>http://www.onvif.org/ver10/media/wsdl</Namespace><XAddr>http://10.0.0.9/media</XAddr></Service></GetServicesResponse></a>`))
	f.Add([]byte(`<a><GetProfilesResponse><Profiles token="x"/></GetProfilesResponse><GetStreamUriResponse><MediaUri><Uri>rtsp://h:554/a?b=c</Uri></MediaUri></GetStreamUriResponse></a>`))
	f.Add([]byte(`<a><Fault><Code><Subcode><Value>ter:NotAuthorized</Value></Subcode></Code></Fault></a>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Each answer is this one, whatever is asked.
		d := newDevice(&Finder{User: "u", Password: "p"}, netip.MustParseAddr("10.0.0.20"))
		d.http.Transport = says(b)
		all, err := d.streams(t.Context(), "http://10.0.0.20/")
		if err == nil && len(all) == 0 || len(all) > maxProfiles {
			t.Fatalf("%d streams, %v", len(all), err)
		}
		for _, s := range all {
			if !strings.HasPrefix(s.URL, "rtsp://10.0.0.20") && !strings.HasPrefix(s.URL, "rtsps://10.0.0.20") || strings.ContainsAny(s.URL, " \"\\\r\n\x1b") {
				t.Fatalf("%q", s.URL)
			}
		}
	})
}

type says []byte

func (s says) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() != "10.0.0.20" {
		panic("asks " + r.URL.Host)
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(s)), Request: r}, nil
}

// A URL is whole or it is worth nothing, however long.
func TestLongURL(t *testing.T) {
	url := "rtsp://192.168.100.108:554/cam/realmonitor?channel=1&subtype=0&unicast=true&proto=Onvif&session=" + strings.Repeat("7", 60)
	d := newDevice(&Finder{}, netip.MustParseAddr("192.168.100.108"))
	if got, err := d.here(url, "rtsp", "rtsps"); err != nil || got != url {
		t.Fatalf("%q, %v", got, err)
	}
	var b bytes.Buffer
	if err := Write(&b, io.Discard, []Device{{Name: "a", Streams: []Stream{{URL: url}}}}, Shown{User: "admin"}); err != nil {
		t.Fatal(err)
	}
	if want := `target = "` + strings.Replace(url, "://", "://admin:PASSWORD@", 1) + `"`; !strings.Contains(b.String(), want) {
		t.Errorf("no %s in\n%s", want, b.String())
	}
}
