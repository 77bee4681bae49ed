package acme

import (
	"testing"
	"time"
)

func TestFirstCertificate(t *testing.T) {
	p := startPebble(t, options{nonces: true})
	for _, kind := range []string{HTTP01, TLSALPN01} {
		t.Run(kind, func(t *testing.T) {
			p := *p
			p.t = t
			s := p.site(func(c *Config) { c.Challenges = []string{kind} })
			p.prove(s)
			s.Manage([]string{"app.example.com", "127.0.0.1"})
			leaf, err := p.visit("app.example.com") // waits for it
			if err != nil {
				t.Fatal(err)
			}
			if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "app.example.com" {
				t.Errorf("names %q", leaf.DNSNames)
			}
			st := s.certified(t, "app.example.com")
			if left := time.Until(st.Renews); left < 50*24*time.Hour || left > 61*24*time.Hour {
				t.Errorf("renews in %v, want ARI's two thirds of ninety days", left)
			}
			if st.Directory != p.url() || st.Issuer == "" || st.Err != "" {
				t.Errorf("status %+v", st)
			}
			s.certified(t, "127.0.0.1")
			if _, err := p.visit("other.example.com"); err == nil {
				t.Error("a certificate for a name that is not managed")
			}
		})
	}
}
