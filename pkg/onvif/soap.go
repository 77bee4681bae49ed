package onvif

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1" // what WS-UsernameToken prescribes
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/rtsp"
)

const (
	// maxSOAP bounds an answer, in bytes.
	maxSOAP = 512 << 10
	// maxProfiles bounds the streams that are asked for.
	maxProfiles = 8
	// askTimeout bounds one question, deviceTimeout all of one device.
	askTimeout    = 5 * time.Second
	deviceTimeout = 12 * time.Second
)

// errDenied says that a device wants to know who asks, or knows somebody else.
var errDenied = errors.New("denied")

// device asks one device.
type device struct {
	http           *http.Client
	user, password string
	address        netip.Addr
	clock          time.Duration // how far the device's is ahead of ours
	digest         rtsp.Client   // for devices that want Digest of HTTP
}

func newDevice(f *Finder, address netip.Addr) *device {
	return &device{
		user: f.User, password: f.Password, address: address, digest: rtsp.Client{User: f.User, Password: f.Password},
		http: &http.Client{
			Transport: &http.Transport{
				// Devices have certificates that nobody has signed. What is sent is a digest, on http:// too.
				TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
				MaxResponseHeaderBytes: 32 << 10,
				MaxConnsPerHost:        1,
			},
			// An answer must come from the address that is asked.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// header is the WS-Security header of a request, or nothing without a user.
func (d *device) header() string {
	if d.user == "" {
		return ""
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	created := time.Now().Add(d.clock).UTC().Format("2006-01-02T15:04:05.000Z")
	h := sha1.New()
	h.Write(nonce[:])
	io.WriteString(h, created+d.password)
	return `<s:Header><Security s:mustUnderstand="1" xmlns="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd">` +
		`<UsernameToken><Username>` + escape(d.user) + `</Username>` +
		`<Password Type="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest">` + base64.StdEncoding.EncodeToString(h.Sum(nil)) + `</Password>` +
		`<Nonce EncodingType="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary">` + base64.StdEncoding.EncodeToString(nonce[:]) + `</Nonce>` +
		`<Created xmlns="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd">` + created + `</Created>` +
		`</UsernameToken></Security></s:Header>`
}

// ask sends a request and returns the answer. With authenticated it says who asks, if that is known.
func (d *device) ask(ctx context.Context, service, body string, authenticated bool) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for try := 0; ; try++ {
		var b bytes.Buffer
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope">`)
		if authenticated {
			b.WriteString(d.header())
		}
		b.WriteString(`<s:Body>` + body + `</s:Body></s:Envelope>`)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, service, &b)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/soap+xml; charset=utf-8")
		if f, ok := d.digest.Authorization([]byte(http.MethodPost), []byte(req.URL.RequestURI()), nil); ok && authenticated {
			req.Header.Set("Authorization", string(f.Value))
		}
		resp, err := d.http.Do(req)
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL
		}
		if err != nil {
			return nil, err
		}
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxSOAP+1))
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized {
			if try == 0 && authenticated && d.challenged(resp) {
				continue
			}
			return nil, errDenied
		}
		d.digest.Accepted()
		if len(answer) > maxSOAP {
			return nil, fmt.Errorf("answers with more than %d bytes", maxSOAP)
		}
		doc, err := parse(answer)
		if err != nil {
			if resp.StatusCode != http.StatusOK {
				return nil, fmt.Errorf("answers with HTTP status %d", resp.StatusCode)
			}
			return nil, err
		}
		if faults := doc.all("Fault"); len(faults) > 0 {
			for _, v := range faults[0].all("Value") {
				switch _, code, _ := strings.Cut(strings.TrimSpace(v.text.String()), ":"); code {
				case "NotAuthorized", "FailedAuthentication", "InvalidSecurity":
					return nil, errDenied
				}
			}
			return nil, fmt.Errorf("says: %s", clean(faults[0].value("Reason", "Text")))
		}
		if resp.StatusCode/100 != 2 {
			return nil, fmt.Errorf("answers with HTTP status %d", resp.StatusCode)
		}
		return doc, nil
	}
}

// challenged takes the challenges of HTTP and reports whether one of Digest is worth another try. A password is sent
// to nobody who has just answered a probe.
func (d *device) challenged(resp *http.Response) bool {
	m := rtsp.Message{Status: resp.StatusCode}
	for _, v := range resp.Header.Values("WWW-Authenticate") {
		if strings.Contains(strings.ToLower(v), "digest") {
			m.Fields = append(m.Fields, rtsp.Field{Name: []byte("WWW-Authenticate"), Value: []byte(v)})
		}
	}
	if !d.digest.Challenge(&m) {
		return false
	}
	f, ok := d.digest.Authorization([]byte(http.MethodPost), []byte("/"), nil)
	if !ok || strings.HasPrefix(string(f.Value), "Basic") {
		d.digest = rtsp.Client{}
		return false
	}
	return true
}

// streams asks a device, at the URL of its service, for what it has to show.
func (d *device) streams(ctx context.Context, service string) ([]Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	defer d.http.CloseIdleConnections()
	if d.user != "" {
		d.setClock(ctx, service)
	}
	media, err := d.media(ctx, service)
	if err != nil {
		return nil, err
	}
	doc, err := d.ask(ctx, media, `<GetProfiles xmlns="http://www.onvif.org/ver10/media/wsdl"/>`, true)
	if err != nil {
		return nil, err
	}
	var all []Stream
	for _, p := range doc.all("GetProfilesResponse", "Profiles") {
		token := p.attr("token")
		if token == "" || len(token) > 128 || len(all) == maxProfiles {
			continue
		}
		s := Stream{Profile: clean(p.value("Name"))}
		for _, v := range p.all("VideoEncoderConfiguration") {
			s.Codec = clean(v.value("Encoding"))
			s.Width, _ = strconv.Atoi(v.value("Resolution", "Width"))
			s.Height, _ = strconv.Atoi(v.value("Resolution", "Height"))
		}
		doc, err := d.ask(ctx, media, `<GetStreamUri xmlns="http://www.onvif.org/ver10/media/wsdl"><StreamSetup>`+
			`<Stream xmlns="http://www.onvif.org/ver10/schema">RTP-Unicast</Stream><Transport xmlns="http://www.onvif.org/ver10/schema"><Protocol>RTSP</Protocol></Transport>`+
			`</StreamSetup><ProfileToken>`+escape(token)+`</ProfileToken></GetStreamUri>`, true)
		if err != nil {
			if len(all) > 0 {
				break // what there is is worth showing
			}
			return nil, err
		}
		if s.URL, err = d.here(doc.value("GetStreamUriResponse", "MediaUri", "Uri"), "rtsp", "rtsps"); err == nil {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("shows no stream")
	}
	return all, nil
}

// setClock notes what the device takes for now: it refuses digests that are older than some seconds, and many
// cameras have never been told the time. If it does not say, ours is taken.
func (d *device) setClock(ctx context.Context, service string) {
	doc, err := d.ask(ctx, service, `<GetSystemDateAndTime xmlns="http://www.onvif.org/ver10/device/wsdl"/>`, false)
	if err != nil {
		return
	}
	var n [6]int
	for i, path := range [...][2]string{{"Date", "Year"}, {"Date", "Month"}, {"Date", "Day"}, {"Time", "Hour"}, {"Time", "Minute"}, {"Time", "Second"}} {
		v, err := strconv.Atoi(doc.value("UTCDateTime", path[0], path[1]))
		if err != nil || v < 0 || v > 9999 {
			return
		}
		n[i] = v
	}
	d.clock = time.Until(time.Date(n[0], time.Month(n[1]), n[2], n[3], n[4], n[5], 0, time.UTC))
}

// media returns the URL of the media service.
func (d *device) media(ctx context.Context, service string) (string, error) {
	const wanted = "http://www.onvif.org/ver10/media/wsdl"
	doc, err := d.ask(ctx, service, `<GetServices xmlns="http://www.onvif.org/ver10/device/wsdl"><IncludeCapability>false</IncludeCapability></GetServices>`, true)
	if err == nil {
		for _, s := range doc.all("GetServicesResponse", "Service") {
			if s.value("Namespace") == wanted {
				return d.here(s.value("XAddr"), "http", "https")
			}
		}
	}
	if ctx.Err() != nil {
		return "", err
	}
	// Old devices know the other question alone.
	doc, err2 := d.ask(ctx, service, `<GetCapabilities xmlns="http://www.onvif.org/ver10/device/wsdl"><Category>All</Category></GetCapabilities>`, true)
	if err2 != nil {
		if errors.Is(err, errDenied) {
			return "", err
		}
		return "", err2
	}
	if x := doc.value("Capabilities", "Media", "XAddr"); x != "" {
		return d.here(x, "http", "https")
	}
	return "", errors.New("has no media service")
}

// here returns a URL with the address of the device itself in place of what it takes for that: a device behind a
// translation of addresses does not know better, and one that means harm does not have us ask others.
func (d *device) here(s string, schemes ...string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || len(s) > 1024 || u.Host == "" || u.Fragment != "" || u.Scheme != schemes[0] && u.Scheme != schemes[1] || printable(s) != s || strings.ContainsAny(s, " \"\\'<>") {
		return "", fmt.Errorf("gives a URL that makes no sense: %.80q", s)
	}
	port := u.Port()
	u.User = nil
	u.Host = d.address.WithZone("").String()
	if d.address.Is6() {
		zone := ""
		if z := d.address.Zone(); z != "" && schemes[0] == "http" {
			zone = "%" + z // url.URL escapes it
		}
		u.Host = "[" + u.Host + zone + "]"
	}
	if port != "" {
		u.Host += ":" + port
	}
	return u.String(), nil
}
