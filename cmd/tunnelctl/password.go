package main

import (
	"github.com/spf13/cobra"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
)

func passwordCommand(at *where) *cobra.Command {
	var digest bool
	var realm string
	cmd := &cobra.Command{
		Use:   "password [USER]",
		Short: "Hash a visitor's password",
		Long: "Read a password, from the terminal or a line of stdin, and print its argon2id hash: the line NAME:HASH for\n" +
			"a users_file if USER is given, else the hash for users in private.toml.\n\n" +
			"With --digest, print what players of cameras need that use Digest authentication, and do not send the password itself:\n" +
			"rtsp:// is in the clear as a rule. Such a hash lets its owner in, and is guessed fast: choose a long password, and keep\n" +
			"the file to yourself. It is right for this USER and realm only; all users of a service have the same realm.",
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			user := ""
			if len(args) == 1 {
				user = args[0]
				if err := relay.CheckUser(user); err != nil {
					return daemon.UsageError(err.Error())
				}
			}
			if digest && user == "" {
				return daemon.UsageError("--digest: name the user, who is part of the hash")
			}
			if !digest && cmd.Flags().Changed("realm") {
				return daemon.UsageError("--realm is for --digest: other hashes have none")
			}
			password, err := daemon.ReadPassword(cmd.InOrStdin(), cmd.ErrOrStderr(), true)
			if err != nil {
				return err
			}
			hash, err := "", error(nil)
			if digest {
				hash, err = auth.HashDigest(user, realm, password)
			} else {
				hash, err = auth.HashPassword(password)
			}
			if err != nil {
				return daemon.UsageError(err.Error())
			}
			v := at.view(cmd)
			return v.print(map[string]string{"user": user, "hash": hash}, func() {
				if user == "" {
					v.printf("%s\n", hash)
					v.note("for private.toml, in a [[service]]:  users = { NAME = \"the line above\" }")
					return
				}
				v.printf("%s:%s\n", user, hash)
				v.note("a line for the users_file of a [[service]] in private.toml; then: systemctl reload culvert-private")
			})
		},
	}
	cmd.Flags().BoolVar(&digest, "digest", false, "for cameras: a hash for Digest authentication")
	cmd.Flags().StringVar(&realm, "realm", auth.DigestRealm, "with --digest: the realm")
	return cmd
}
