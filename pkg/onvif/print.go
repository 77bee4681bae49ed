package onvif

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// writeTable writes what was found for people to read.
func writeTable(w io.Writer, devices []Device) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESS\tMODEL\tSTREAMS")
	for _, d := range devices {
		name := clean(d.Name)
		if d.Location != "" {
			name += " (" + clean(d.Location) + ")"
		}
		var streams []string
		for _, s := range d.Streams {
			streams = append(streams, s.describe())
		}
		shown := strings.Join(streams, ", ")
		if d.Problem != "" {
			shown = clean(d.Problem)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", cmp.Or(name, "-"), clean(d.Address), cmp.Or(clean(d.Hardware), "-"), shown)
	}
	t.Flush()
}

// describe says what a stream is: "H264 1920x1080".
func (s *Stream) describe() string {
	what := cmp.Or(clean(s.Codec), clean(s.Profile), "video")
	if s.Width > 0 && s.Height > 0 {
		what += fmt.Sprintf(" %dx%d", s.Width, s.Height)
	}
	return what
}

// writeServices writes a [[service]] for private.toml per device, published below a URL, with its first stream for a
// target and the others in comments. PASSWORD stands for what only who runs the site should know.
func writeServices(w io.Writer, devices []Device, publish, user string) {
	taken := make(map[string]bool)
	for _, d := range devices {
		if len(d.Streams) == 0 {
			continue
		}
		base := slug(cmp.Or(d.Name, d.Hardware))
		if base == "" {
			base = "camera"
		}
		name := base
		for n := 2; taken[name]; n++ {
			name = base + "-" + strconv.Itoa(n)
		}
		taken[name] = true
		fmt.Fprintf(w, "\n[[service]] # %s, %s\n", cmp.Or(clean(d.Name), clean(d.Hardware), "camera"), clean(d.Address))
		fmt.Fprintf(w, "name = %q\n", name)
		fmt.Fprintf(w, "publish = %q\n", publish+"/"+name)
		for i, s := range d.Streams {
			comment, end := "", ""
			if i > 0 {
				comment, end = "# ", " # instead: "+s.describe()
			}
			fmt.Fprintf(w, "%starget = %q%s\n", comment, withUser(s.URL, user), end)
		}
	}
}

// withUser returns a URL with a user, and what is to be replaced by the password.
func withUser(s, user string) string {
	u, err := url.Parse(s)
	if err != nil {
		return printable(s)
	}
	if user != "" {
		u.User = url.UserPassword(user, "PASSWORD")
	}
	return printable(u.String())
}

// slug makes a name for a service and its path.
func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)):
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 40 {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}

// Shown is how Write shows what was found.
type Shown struct {
	JSON    bool
	Publish string // URL that services are published below, without a slash at the end; if empty, one that is to be replaced
	User    string // that the devices were asked as
}

// Write writes devices for people, and hints for them to notes, or as JSON.
func Write(w, notes io.Writer, devices []Device, how Shown) error {
	if how.JSON {
		if devices == nil {
			devices = []Device{}
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(devices)
	}
	if len(devices) == 0 {
		fmt.Fprintln(notes, "no camera answers: is it in the same network, and is ONVIF switched on in its settings?")
		return nil
	}
	writeTable(w, devices)
	publish := cmp.Or(how.Publish, "rtsp://cams.example.com")
	writeServices(w, devices, publish, how.User)
	if how.Publish == "" {
		fmt.Fprintln(notes, "put what the site may publish in place of "+publish)
	}
	if how.User != "" {
		fmt.Fprintln(notes, "put the password in place of PASSWORD, and keep the file to the relay's user (chmod 600)")
	}
	return nil
}
