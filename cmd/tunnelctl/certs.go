package main

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/auth"
)

func certsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "certs DIR NAME...",
		Short: "Make a development CA and a certificate",
		Long: "Make a development certificate authority in a folder, and a certificate for the names: host names,\n" +
			"wildcards like *.example.com, and IP addresses. What is there and still good stays.",
		Args: usage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := auth.DevCA(args[0], args[1:]...)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "authority    %s   for clients: curl --cacert, private.toml ca\ncertificate  %s\nkey          %s\n", c.CA, c.Certificate, c.Key)
			return nil
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
