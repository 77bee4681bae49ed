package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/atomicfile"
	"culvert.dev/pkg/daemon"
)

// saved is what login has kept: the file relays.json in the folder of the person who uses tunnelctl.
type saved struct {
	Current string       `json:"current,omitempty"` // the name of the relay that is meant if none is said
	Relays  []savedRelay `json:"relays"`
}

// savedRelay is a relay with a token for it.
type savedRelay struct {
	Name     string `json:"name"`
	URL      string `json:"url"`          // https://relay.example.com or http://127.0.0.1:7070
	CA       string `json:"ca,omitempty"` // PEM of the authority of its certificate; "": those of the system
	Token    string `json:"token"`
	Operator string `json:"operator"` // whose it is
}

// Bounds of the file.
const (
	maxSaved     = 1 << 20
	maxRelayName = 64
)

// configFolder is where tunnelctl keeps what belongs to the person who uses it. It may not be there yet.
func (w *where) configFolder() (string, error) {
	dir := w.env("XDG_CONFIG_HOME")
	if dir == "" || !filepath.IsAbs(dir) { // a relative one is to be ignored, says the specification
		home := first(w.env("HOME"), w.env("USERPROFILE"))
		if home == "" {
			return "", errors.New("where is your home folder? Neither HOME nor XDG_CONFIG_HOME says")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "culvert"), nil
}

// readSaved reads what login has kept; nothing, if there is no such file.
func (w *where) readSaved() (*saved, error) {
	s := new(saved)
	dir, err := w.configFolder()
	if err != nil {
		return s, nil // and so nobody has logged in
	}
	name := filepath.Join(dir, "relays.json")
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, failf(exitDenied, "%s has tokens in it, and others may read it: chmod 600 %s, and `tunnelctl token revoke` those that somebody may have seen", name, name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSaved+1))
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil || len(b) > maxSaved {
		return nil, fmt.Errorf("%s is damaged: remove it, and `tunnelctl login` makes it anew", name)
	}
	return s, nil
}

// writeSaved replaces the file.
func (w *where) writeSaved(s *saved) error {
	dir, err := w.configFolder()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, "relays.json"), append(b, '\n'), 0o600)
}

// find returns the relay of that name, or nil.
func (s *saved) find(name string) *savedRelay {
	if i := slices.IndexFunc(s.Relays, func(r savedRelay) bool { return r.Name == name }); i >= 0 {
		return &s.Relays[i]
	}
	return nil
}

// at returns a relay at a URL, the current one if there are several, or nil.
func (s *saved) at(base *url.URL) (found *savedRelay) {
	for i := range s.Relays {
		if r := &s.Relays[i]; strings.EqualFold(r.URL, base.String()) && (found == nil || r.Name == s.Current) {
			found = r
		}
	}
	return found
}

// names are those of all relays.
func (s *saved) names() (list []string) {
	for _, r := range s.Relays {
		list = append(list, r.Name)
	}
	return list
}

// named is find for a name that somebody has typed.
func (s *saved) named(name string) (*savedRelay, error) {
	if r := s.find(name); r != nil {
		return r, nil
	}
	if len(s.Relays) == 0 {
		return nil, failf(exitNotFound, "you are not logged in to %q, nor anywhere: `tunnelctl login %s --relay https://DOMAIN`", name, name)
	}
	return nil, unknown("relay", name, s.names(), "tunnelctl context")
}

// use fills in a client for a relay that somebody has logged in to.
func (r *savedRelay) use(c *admin.Client) error {
	base, err := url.Parse(r.URL)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return fmt.Errorf("relay %q has a URL that is none: `tunnelctl login %s` again", r.Name, r.Name)
	}
	c.Base, c.Token = base, r.Token
	if c.TLS == nil && r.CA != "" {
		c.TLS, err = trustPEM([]byte(r.CA), "relay "+r.Name)
	}
	return err
}

func loginCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "login [NAME]",
		Short: "Log in to a relay: keep a token for it",
		Long: "Ask for an operator's token, on the terminal or as a line of stdin, and keep it, for you alone, in\n" +
			"~/.config/culvert/relays.json, with the relay's address and authority. From then on commands ask this relay,\n" +
			"unless --context, --relay or --admin says another one. NAME is what you will call it; the default is its host.\n\n" +
			"A token is made by an admin, with `tunnelctl operator add` or `tunnelctl token create`; the relay's own is\n" +
			"in admin.token in its state folder.",
		Example: "  tunnelctl login prod --relay https://relay.example.com\n  sudo cat /var/lib/culvert/admin.token | tunnelctl login",
		Args:    usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := at.readSaved()
			if err != nil {
				return err
			}
			c, err := at.place(s, first(args...))
			if err != nil {
				return err
			}
			name := first(append(args, c.Base.Host)...)
			if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || len(name) > maxRelayName || strings.HasPrefix(name, "-") {
				return daemon.UsageError(fmt.Sprintf("%q is no name for a relay: want letters, digits and punctuation, %d at most", name, maxRelayName))
			}
			token, err := daemon.ReadSecret(cmd.InOrStdin(), cmd.ErrOrStderr(), "token for "+c.Base.Host)
			if err != nil {
				return err
			}
			if c.Token, err = checkToken(string(token)); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			me, err := c.Me(ctx)
			if err != nil {
				return explain(c, err)
			}
			one := savedRelay{Name: name, URL: c.Base.String(), Token: c.Token, Operator: me.Name}
			if file := first(at.ca, at.env("CULVERT_CA")); c.Base.Scheme == "https" && file != "" {
				pem, err := os.ReadFile(file)
				if err != nil {
					return fmt.Errorf("CA: %w", err)
				}
				one.CA = string(pem)
			} else if old := s.find(name); old != nil && old.URL == one.URL {
				one.CA = old.CA
			}
			s.Relays = slices.DeleteFunc(s.Relays, func(r savedRelay) bool { return r.Name == name })
			s.Relays = append(s.Relays, one)
			s.Current = name
			if err := at.writeSaved(s); err != nil {
				return fmt.Errorf("the token cannot be kept: %w", err)
			}
			v := at.view(cmd)
			return v.print(me, func() {
				until := "which never expires"
				if me.Expires != nil {
					until = "until " + me.Expires.Local().Format("2006-01-02 15:04 MST")
				}
				v.printf("logged in to %s as %s, %s, %s\n", printable(name), printable(me.Name), printable(me.Role), until)
			})
		},
	}
}

// place returns a client without a token, for whom to log in to: who is said by a flag or the environment, or the relay of
// that name, or the one on this machine.
func (w *where) place(s *saved, name string) (*admin.Client, error) {
	c, err := w.said()
	if err != nil || c.Base != nil {
		return c, err
	}
	if r := s.find(first(name, w.context, w.env("CULVERT_CONTEXT"))); r != nil {
		return c, r.use(c)
	}
	c.Base, err = adminURL(defaultAdmin)
	return c, err
}

// checkToken says what is wrong with a token as far as that can be seen.
func checkToken(t string) (string, error) {
	t = strings.TrimSpace(t)
	switch {
	case strings.HasPrefix(t, "cvt_"):
		return "", failf(exitDenied, "this is a site's join token: it is for `relay-private join`; an operator's begins with cvo_")
	case len(t) > 1024 || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", failf(exitDenied, "this is no token: copy all of it, and nothing else")
	}
	return t, nil
}

func logoutCommand(at *where) *cobra.Command {
	var revoke bool
	cmd := &cobra.Command{
		Use:   "logout [NAME]",
		Short: "Forget the token for a relay",
		Long:  "Forget the token for a relay. It stays good for whoever else has it, unless --revoke has the relay end it first.",
		Args:  usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := at.readSaved()
			if err != nil {
				return err
			}
			name := first(append(args, at.context, at.env("CULVERT_CONTEXT"), s.Current)...)
			if name == "" {
				return failf(exitNotFound, "you are not logged in: `tunnelctl context` lists where you are")
			}
			r, err := s.named(name)
			if err != nil {
				return err
			}
			if revoke {
				c := new(admin.Client)
				if err := r.use(c); err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
				defer cancel()
				if err := revokeOwn(ctx, c); err != nil {
					return explain(c, err)
				}
			}
			s.Relays = slices.DeleteFunc(s.Relays, func(r savedRelay) bool { return r.Name == name })
			if s.Current == name {
				s.Current = ""
			}
			if err := at.writeSaved(s); err != nil {
				return err
			}
			v := at.view(cmd)
			v.note("logged out of %s", printable(name))
			if s.Current == "" && len(s.Relays) > 0 {
				v.note("`tunnelctl context use NAME` goes on with another one: %s", printable(strings.Join(s.names(), ", ")))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&revoke, "revoke", false, "have the relay end the token, too")
	cmd.ValidArgsFunction = completeSaved(at)
	return cmd
}

// revokeOwn ends the token that c asks by.
func revokeOwn(ctx context.Context, c *admin.Client) error {
	all, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Current {
			return c.RevokeToken(ctx, t.ID)
		}
	}
	return errors.New("this is the relay's own token: remove admin.token in its state folder and reload it, and it makes another one")
}

func contextCommand(at *where) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "context",
		Aliases: []string{"relays"},
		Short:   "List the relays you are logged in to, or choose one",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := at.readSaved()
			if err != nil {
				return err
			}
			type shown struct {
				Name     string `json:"name"`
				URL      string `json:"url"`
				Operator string `json:"operator"`
				Current  bool   `json:"current,omitempty"`
			}
			list := []shown{}
			t := newTable("NAME", "RELAY~20", "OPERATOR~8", "")
			for _, r := range s.Relays {
				mark := ""
				if r.Name == s.Current {
					mark = "current"
				}
				list = append(list, shown{r.Name, r.URL, r.Operator, r.Name == s.Current})
				t.add(r.Name, r.URL, r.Operator, mark)
			}
			v := at.view(cmd)
			return v.print(list, func() {
				v.tableOr(t, "you are not logged in anywhere: tunnelctl login --relay https://DOMAIN")
			})
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "use NAME",
		Short:             "Have commands ask this relay from now on",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSaved(at),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := at.readSaved()
			if err != nil {
				return err
			}
			if _, err := s.named(args[0]); err != nil {
				return err
			}
			s.Current = args[0]
			return at.writeSaved(s)
		},
	})
	return cmd
}

// completeSaved completes names of relays.
func completeSaved(at *where) completion {
	return func(_ *cobra.Command, args []string, typed string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		s, err := at.readSaved()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, r := range s.Relays {
			if strings.HasPrefix(r.Name, typed) {
				found = append(found, r.Name+"\t"+oneLine(r.URL))
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// untilText says when something expires.
func untilText(t *time.Time) string {
	switch {
	case t == nil:
		return "never"
	case t.Before(time.Now()):
		return "expired " + age(time.Since(*t)) + " ago"
	}
	return "in " + age(time.Until(*t))
}
