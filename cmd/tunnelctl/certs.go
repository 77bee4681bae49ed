package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
)

func certsCommand(at *where) *cobra.Command {
	list := &cobra.Command{
		Use:     "certs",
		Aliases: []string{"certificates"},
		Short:   "List the certificates that the relay obtains by itself",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return daemon.UsageError(fmt.Sprintf("certs %s? `tunnelctl certs dev DIR NAME...` makes a development CA, `tunnelctl certs renew NAME` orders a certificate, `tunnelctl certs` lists those of the relay", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				s, err := c.Status(ctx)
				if err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(s.Certificates, func() { v.certificates(s, time.Now()) })
			})
		},
	}
	list.AddCommand(renewCommand(at), devCertsCommand(at))
	return list
}

func renewCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "renew NAME",
		Short: "Have another certificate ordered, with a new key",
		Long: "Have another certificate ordered for a name, with a new key, or tried again what has failed. Until it is\n" +
			"there the old one is used. Authorities count orders: a few in a week are well.",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeCertificates(at),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				if err := c.RenewCertificate(ctx, args[0]); err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(struct{}{}, func() {
					v.printf("%s: being ordered; tunnelctl certs shows what comes of it\n", oneLine(args[0]))
				})
			})
		},
	}
}

func (v *view) certificates(s *admin.Status, now time.Time) {
	if len(s.Certificates) == 0 {
		v.printf("the relay obtains no certificates: [acme] in its public.toml has it do so\n")
		return
	}
	ahead := func(t *time.Time) string {
		switch {
		case t == nil:
			return "-"
		case t.Before(now):
			return age(now.Sub(*t)) + " ago"
		}
		return "in " + age(t.Sub(now))
	}
	t := newTable("NAME", "ISSUER~12", "EXPIRES", "RENEWS", "STATE")
	for _, c := range s.Certificates {
		state := green.of("good")
		switch {
		case c.Error != "" && c.Ordering:
			state = red.of("failed, being tried again")
		case c.Error != "":
			state = red.of("failed, next try " + ahead(c.NextTry))
		case c.Ordering && c.Expires == nil:
			state = yellow.of("being ordered")
		case c.Expires == nil:
			state = yellow.of("waiting")
		case c.Expires.Before(now):
			state = red.of("expired")
		case c.OnDemand:
			state = green.of("good, on demand")
		}
		t.add(c.Name, cmp.Or(c.Issuer, "-"), ahead(c.Expires), ahead(c.Renews), state)
	}
	v.table(t)
	for _, c := range s.Certificates {
		if c.Error != "" {
			v.printf("\n")
			v.wrap(c.Name+": "+c.Error, "  ")
		}
	}
}

func devCertsCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "dev DIR NAME...",
		Short: "Make a development CA and a certificate on this machine",
		Long: "Make a development certificate authority in a folder, and a certificate for the names: host names,\n" +
			"wildcards like *.example.com, and IP addresses. What is there and still good stays.",
		Args: usage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := auth.DevCA(args[0], args[1:]...)
			if err != nil {
				return err
			}
			v := at.view(cmd)
			return v.print(map[string]string{"ca": c.CA, "certificate": c.Certificate, "key": c.Key}, func() {
				v.printf("authority    %s   for clients: curl --cacert, private.toml ca\ncertificate  %s\nkey          %s\n", c.CA, c.Certificate, c.Key)
			})
		},
	}
}

// makeCertificates makes the demo's authority and certificate, or takes those of an earlier run.
func (d *demo) makeCertificates() (auth.Certificates, error) {
	c, err := auth.DevCA(d.certs, demoDomain, webHost, filesHost, chatHost, secretHost, "127.0.0.1")
	if err != nil {
		return c, err
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return c, err
	}
	d.roots = x509.NewCertPool()
	d.roots.AppendCertsFromPEM(pem)
	fmt.Fprintf(d.out, "development CA      %s\n", c.CA)
	return c, nil
}
