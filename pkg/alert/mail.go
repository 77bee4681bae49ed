package alert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// mailTime bounds each step of a delivery.
const mailTime = 20 * time.Second

// Mail sends messages by SMTP. TLS is mandatory, from the first byte on port 465 and by STARTTLS otherwise, except to this machine.
type Mail struct {
	Server         string // host:port
	User, Password string // "": no authentication
	From           string // an address, with or without a name
	To             []string
	Roots          *x509.CertPool // nil: those of the system
}

// Check returns what is wrong with m.
func (m *Mail) Check() error {
	host, port, err := net.SplitHostPort(m.Server)
	if _, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || host == "" {
		return fmt.Errorf("server %q is no HOST:PORT, such as smtp.example.com:587", m.Server)
	}
	if _, err := mail.ParseAddress(m.From); err != nil {
		return fmt.Errorf("from %q: %w", m.From, err)
	}
	if len(m.To) == 0 {
		return errors.New("to is empty: nobody would get mail")
	}
	for _, to := range m.To {
		if _, err := mail.ParseAddress(to); err != nil {
			return fmt.Errorf("to %q: %w", to, err)
		}
	}
	if (m.User == "") != (m.Password == "") {
		return errors.New("user and password belong together")
	}
	return nil
}

// String implements Sender.
func (m *Mail) String() string { return "mail to " + strings.Join(m.To, ", ") + " by " + m.Server }

// Send implements Sender.
func (m *Mail) Send(ctx context.Context, message *Message) error {
	host, p, err := net.SplitHostPort(m.Server)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return err
	}
	out := gomail.NewMsg()
	if err := errors.Join(out.From(m.From), out.To(m.To...)); err != nil {
		return err
	}
	out.Subject(subject(message))
	out.SetDateWithValue(message.Time)
	out.SetMessageID()
	out.SetGenHeader("Auto-Submitted", "auto-generated") // rfc3834#section-5: no answers by machines
	out.SetBodyString(gomail.TypeTextPlain, text(message))

	config := &tls.Config{ServerName: host, RootCAs: m.Roots, MinVersion: tls.VersionTLS12}
	options := []gomail.Option{gomail.WithPort(port), gomail.WithTimeout(mailTime), gomail.WithTLSConfig(config)}
	implicit := port == 465
	switch {
	case implicit:
		options = append(options, gomail.WithSSL())
	case mustTLS(host):
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
	}
	if m.User != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(m.User), gomail.WithPassword(m.Password))
	}
	// The library looks at ctx while it dials only.
	stop := func() bool { return true }
	defer func() { stop() }()
	options = append(options, gomail.WithDialContextFunc(func(ctx2 context.Context, network, address string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx2, network, address)
		if err != nil {
			return nil, err
		}
		stop = context.AfterFunc(ctx, func() { nc.Close() })
		if implicit {
			return tls.Client(nc, config), nil
		}
		return nc, nil
	}))
	client, err := gomail.NewClient(host, options...)
	if err != nil {
		return err
	}
	if err := client.DialAndSendWithContext(ctx, out); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// mustTLS reports whether mail to a server must not go in the clear.
func mustTLS(host string) bool { return !local(host) }

// subject is one line about m.
func subject(m *Message) string {
	firing := 0
	for _, a := range m.Alerts {
		if a.Status == "firing" {
			firing++
		}
	}
	what := ""
	switch n := len(m.Alerts) + m.More; {
	case n == 1:
		a := m.Alerts[0]
		what = a.Subject + ": " + a.Text
		if a.Status != "firing" && a.Kind != "test" {
			what = "resolved: " + title(a.Alert)
		}
		if len(what) > 120 {
			what = what[:120] + "…"
		}
	case firing == 0:
		what = fmt.Sprintf("%d alerts are resolved", n)
	default:
		what = fmt.Sprintf("%d alerts, %d of them new", n, firing+m.More)
	}
	return clean("[culvert " + m.Relay + "] " + what)
}

// title names an alert.
func title(a Alert) string { return a.Kind + " " + a.Subject }

// clean takes what would end a line out of s.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// text is the body of a mail about m.
func text(m *Message) string {
	var b strings.Builder
	for _, a := range m.Alerts {
		const layout = "2006-01-02 15:04:05 MST"
		fmt.Fprintf(&b, "%s\n  %s\n  since %s\n", clean(title(a.Alert)), clean(a.Text), a.Since.UTC().Format(layout))
		if a.Resolved != nil {
			fmt.Fprintf(&b, "  resolved %s, after %s\n", a.Resolved.UTC().Format(layout), a.Resolved.Sub(a.Since).Round(time.Second))
		}
		if a.Times > 1 {
			fmt.Fprintf(&b, "  it has begun %d times since the last message about it\n", a.Times)
		}
		b.WriteString("\n")
	}
	if m.More > 0 {
		fmt.Fprintf(&b, "%d more alerts are not listed here: `tunnelctl alerts` has them.\n\n", m.More)
	}
	fmt.Fprintf(&b, "-- \nrelay %s\n", clean(m.Relay))
	return b.String()
}
