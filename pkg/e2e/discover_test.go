//go:build linux

package e2e

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// startONVIF starts a camera that answers probes at the address returned, and tells admin with the password
// where its streams are.
func startONVIF(t *testing.T, password string) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	element := func(body, name string) string {
		m := regexp.MustCompile(`<` + name + `(?: [^>]*)?>([^<]*)<`).FindStringSubmatch(body)
		if m == nil {
			return ""
		}
		return m[1]
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		body := string(b)
		nonce, _ := base64.StdEncoding.DecodeString(element(body, "Nonce"))
		digest := sha1.Sum([]byte(string(nonce) + element(body, "Created") + password))
		answer := `<Fault><Code><Subcode><Value>ter:NotAuthorized</Value></Subcode></Code></Fault>`
		switch {
		case strings.Contains(body, "GetSystemDateAndTime"):
			answer = "" // it does not know the time
		case element(body, "Username") != "admin" || element(body, "Password") != base64.StdEncoding.EncodeToString(digest[:]):
		case strings.Contains(body, "GetServices"):
			answer = `<GetServicesResponse><Service><Namespace>http://www.onvif.org/ver10/media/wsdl</Namespace><XAddr>http://` + r.Host + `/media</XAddr></Service></GetServicesResponse>`
		case strings.Contains(body, "GetProfiles"):
			answer = `<GetProfilesResponse><Profiles token="main"><VideoEncoderConfiguration><Encoding>H264</Encoding><Resolution><Width>1280</Width><Height>720</Height></Resolution></VideoEncoderConfiguration></Profiles></GetProfilesResponse>`
		case strings.Contains(body, "GetStreamUri"):
			answer = `<GetStreamUriResponse><MediaUri><Uri>rtsp://10.9.8.7:554/cam/realmonitor?channel=1&amp;subtype=0</Uri></MediaUri></GetStreamUriResponse>`
		}
		io.WriteString(w, `<Envelope><Body>`+answer+`</Body></Envelope>`)
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			fmt.Fprintf(packetWriter{c, from}, `<Envelope><Header><RelatesTo>%s</RelatesTo></Header><Body><ProbeMatches><ProbeMatch><EndpointReference><Address>urn:uuid:test-camera</Address></EndpointReference>`+
				`<Types>dn:NetworkVideoTransmitter</Types><Scopes>onvif://www.onvif.org/name/Back%%20door onvif://www.onvif.org/hardware/X1</Scopes><XAddrs>%s/onvif</XAddrs></ProbeMatch></ProbeMatches></Body></Envelope>`,
				element(string(b[:n]), "w:MessageID"), srv.URL)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
		srv.Close()
	})
	return c.LocalAddr().String()
}

type packetWriter struct {
	c  net.PacketConn
	to net.Addr
}

func (w packetWriter) Write(b []byte) (int, error) { return w.c.WriteTo(b, w.to) }

// An operator finds the cameras of a site that allows it, and the site's owner without any relay.
func TestDiscover(t *testing.T) {
	t.Parallel()
	address := startONVIF(t, "s3cret word")
	s := newSystem(t, service{"app", "https://app.example.com", "http://127.0.0.1:9"})
	s.startPrivate()
	cmd := s.tunnelctl("cameras", "office")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "discovery = true") {
		t.Errorf("a site that does not allow it: %s, %v", out, err)
	}
	cmd = s.tunnelctl("cameras", "nowhere")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), `no site "nowhere"`) {
		t.Errorf("a site that is not there: %s, %v", out, err)
	}

	s.options = fmt.Sprintf("discovery = true\ndiscovery_addresses = [%q]", address)
	s.writePrivate()
	at := s.private.lines()
	s.private.signal(t, syscall.SIGHUP)
	s.private.await(t, at, `"msg":"reloaded"`)

	type found struct {
		text, notes strings.Builder
	}
	runs := []*exec.Cmd{
		s.tunnelctl("cameras", "office", "--user", "admin"),
		exec.Command(command(t, "relay-private"), "cameras", "--json", "--user", "admin", "--address", address),
	}
	results := make([]found, len(runs))
	for i, cmd := range runs {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("s3cret word\n"), &results[i].text, &results[i].notes
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for i, cmd := range runs {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, &results[i].notes)
		}
	}
	table, services, _ := strings.Cut(results[0].text.String(), "\n[[service]]")
	if !regexp.MustCompile(`(?m)^Back door +127\.0\.0\.1 +X1 +H264 1280x720$`).MatchString(table) {
		t.Errorf("tunnelctl cameras printed\n%s", &results[0].text)
	}
	const url = "rtsp://127.0.0.1:554/cam/realmonitor?channel=1&subtype=0"
	if want := `target = "rtsp://admin:PASSWORD@` + strings.TrimPrefix(url, "rtsp://") + `"`; !strings.Contains(services, want) {
		t.Errorf("no %s in\n%s", want, services)
	}
	var devices []struct{ Streams []struct{ URL string } }
	if err := json.Unmarshal([]byte(results[1].text.String()), &devices); err != nil {
		t.Fatalf("%v\n%s", err, &results[1].text)
	}
	if len(devices) == 0 || len(devices[0].Streams) != 1 || devices[0].Streams[0].URL != url {
		t.Errorf("relay-private cameras printed\n%s", &results[1].text)
	}

	// What is printed can be pasted.
	writeFile(t, s.file("pasted.toml"), s.privateTOML("office", s.relay(), s.file("office.key"))+"\n[[service]]"+services)
	if err := os.Chmod(s.file("pasted.toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command(command(t, "relay-private"), "--check", "--config", s.file("pasted.toml")))
	for _, p := range []*process{s.public, s.private} {
		if line, _, ok := p.find(0, "s3cret"); ok {
			t.Errorf("the password is in a log: %s", line)
		}
	}
}
