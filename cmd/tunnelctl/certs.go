package main

import (
	"github.com/spf13/cobra"
)

func certsCommand() *cobra.Command { return &cobra.Command{Use: "certs"} }

func (d *demo) makeCertificates() (cert, key string, err error) { return }
