package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
)

func passwordCommand() *cobra.Command {
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
			password, err := readPassword(cmd.InOrStdin(), cmd.ErrOrStderr())
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
			if user == "" {
				fmt.Fprintln(cmd.OutOrStdout(), hash)
				fmt.Fprintln(cmd.ErrOrStderr(), "for private.toml, in a [[service]]:  users = { NAME = \"the line above\" }")
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s:%s\n", user, hash)
			fmt.Fprintln(cmd.ErrOrStderr(), "a line for the users_file of a [[service]] in private.toml; then: systemctl reload culvert-private")
			return nil
		},
	}
	cmd.Flags().BoolVar(&digest, "digest", false, "for cameras: a hash for Digest authentication")
	cmd.Flags().StringVar(&realm, "realm", auth.DigestRealm, "with --digest: the realm")
	return cmd
}

// readPassword reads a line, twice and without an echo if it is typed.
func readPassword(in io.Reader, prompt io.Writer) ([]byte, error) {
	f, ok := in.(*os.File)
	if !ok || !isTerminal(f) {
		return readLine(bufio.NewReader(in))
	}
	restore, err := hideInput(f)
	if err != nil {
		return nil, fmt.Errorf("the terminal goes on showing what is typed: %w; give the password on stdin", err)
	}
	defer restore()
	r := bufio.NewReader(f)
	ask := func(what string) ([]byte, error) {
		fmt.Fprint(prompt, what)
		defer fmt.Fprintln(prompt)
		return readLine(r)
	}
	first, err := ask("password: ")
	if err != nil {
		return nil, err
	}
	second, err := ask("again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, second) {
		return nil, errors.New("these are two different passwords")
	}
	return first, nil
}

// readLine reads a line of at most MaxPassword bytes, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("password: %w", err)
	}
	line = bytes.Clone(bytes.TrimRight(line, "\r\n"))
	if len(line) == 0 {
		return nil, daemon.UsageError("no password: type it, or give it as a line on stdin")
	}
	return line, nil
}
