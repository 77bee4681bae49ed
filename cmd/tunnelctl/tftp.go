package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
)

func tftpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tftp",
		Short: "Get and put files by TFTP, and serve a folder",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return daemon.UsageError("tftp get, tftp put or tftp serve? tunnelctl tftp --help")
		},
	}
	cmd.AddCommand(tftpGetCommand(), tftpPutCommand(), tftpServeCommand())
	return cmd
}

// tftpFlags are what a transfer is asked for with.
type tftpFlags struct {
	client   tftpd.Client
	netascii bool
	rollover int
}

func (f *tftpFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.client.Options.Block, "blksize", 0, "`bytes` of a block, 8 to 65464 (default: what the route carries in one piece)")
	flags.IntVar(&f.client.Options.Window, "window", 0, "`blocks` that are sent before an acknowledgement, 1 to 65535 (default 16, fewer if they are large)")
	flags.IntVar(&f.client.Options.Timeout, "timeout", 0, "`seconds` before something is sent again, 1 to 255 (default: as measured)")
	flags.IntVar(&f.rollover, "rollover", 0, "ask for this `number`, 0 or 1, of the block after 65535 (default: do not ask; it is 0)")
	flags.BoolVar(&f.client.Plain, "no-options", false, "ask for no options: blocks of 512 bytes, one at a time")
	flags.BoolVar(&f.netascii, "netascii", false, "transfer text: lines end in LF here, and in CR LF on the way")
	flags.DurationVar(&f.client.Patience, "give-up", 10*time.Second, "how long to wait for the first answer")
}

// check completes the flags.
func (f *tftpFlags) check(cmd *cobra.Command) error {
	o := &f.client.Options
	for _, n := range []struct {
		flag           string
		value, low, hi int
	}{
		{"blksize", o.Block, tftp.MinBlock, tftp.MaxBlock}, {"window", o.Window, 1, tftp.MaxWindow}, {"timeout", o.Timeout, 1, 255}, {"rollover", f.rollover, 0, 1},
	} {
		if !cmd.Flags().Changed(n.flag) {
			continue
		}
		if n.value < n.low || n.value > n.hi {
			return daemon.UsageError(fmt.Sprintf("--%s %d: want %d to %d", n.flag, n.value, n.low, n.hi))
		}
		if f.client.Plain {
			return daemon.UsageError(fmt.Sprintf("--%s and --no-options exclude each other", n.flag))
		}
	}
	if cmd.Flags().Changed("rollover") {
		o.Rollover, o.HasRollover = uint16(f.rollover), true
	}
	if f.client.Patience <= 0 {
		return daemon.UsageError("--give-up: want a time, such as 10s")
	}
	if f.netascii {
		f.client.Mode = tftp.NetASCII
	}
	return nil
}

func tftpGetCommand() *cobra.Command {
	var f tftpFlags
	cmd := &cobra.Command{
		Use:   "get HOST[:PORT] NAME [FILE|-]",
		Short: "Get a file",
		Long: "Get the file NAME of a TFTP server. It is written to FILE, or under its own name, when all of it has come, and not before;\n" +
			"with -, to stdout as it comes.",
		Args: usage(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			server, err := tftpServer(args[0])
			if err != nil {
				return err
			}
			name, local := args[1], ""
			if len(args) == 3 {
				local = args[2]
			}
			if err := checkTFTPName(name); err != nil {
				return err
			}
			to, err := newTarget(local, name, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			t := &tftpTransfer{client: &f.client, server: server, name: name, verb: "got", status: cmd.ErrOrStderr()}
			return to.finish(t.get(cmd.Context(), to))
		},
	}
	f.add(cmd)
	return cmd
}

func tftpPutCommand() *cobra.Command {
	var f tftpFlags
	cmd := &cobra.Command{
		Use:   "put HOST[:PORT] FILE|- [NAME]",
		Short: "Put a file",
		Long:  "Send FILE, or what comes on stdin, to a TFTP server, as NAME or under its own name.",
		Args:  usage(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			server, err := tftpServer(args[0])
			if err != nil {
				return err
			}
			from, size, name := cmd.InOrStdin(), int64(-1), filepath.Base(args[1])
			switch {
			case len(args) == 3:
				name = args[2]
			case args[1] == "-":
				return daemon.UsageError("what is NAME to be of what comes on stdin?\nusage: " + cmd.UseLine())
			}
			if err := checkTFTPName(name); err != nil {
				return err
			}
			if args[1] != "-" {
				file, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer file.Close()
				info, err := file.Stat()
				switch {
				case err != nil:
					return err
				case info.IsDir():
					return fmt.Errorf("%s is a folder: name a file", args[1])
				case info.Mode().IsRegular():
					size = info.Size()
				}
				from = file
			}
			t := &tftpTransfer{client: &f.client, server: server, name: name, verb: "put", status: cmd.ErrOrStderr()}
			return t.put(cmd.Context(), from, size)
		},
	}
	f.add(cmd)
	return cmd
}

// tftpServer makes host:port of what a user has typed: a name or an address, with or without a port.
func tftpServer(s string) (string, error) {
	const port = "69"
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if a, err := netip.ParseAddr(bare); err == nil {
		return net.JoinHostPort(a.String(), port), nil
	}
	if !strings.Contains(s, ":") {
		s = net.JoinHostPort(s, port)
	}
	host, service, err := net.SplitHostPort(s)
	if err == nil && host != "" && !strings.ContainsAny(host, "/ ") {
		if _, err := net.LookupPort("udp", service); err == nil {
			return s, nil
		}
	}
	return "", daemon.UsageError(fmt.Sprintf("%q: want HOST or HOST:PORT, an IPv6 address with a port as [ADDRESS]:PORT", s))
}

func checkTFTPName(name string) error {
	switch {
	case name == "" || strings.ContainsRune(name, 0):
		return daemon.UsageError("NAME is empty, or no name")
	case len(name) > 400: // the options have to fit into the same packet
		return daemon.UsageError("NAME is too long: a request has 512 bytes")
	}
	return nil
}

// target is where a file that is got goes: a temporary file beside its place, which is renamed when all has come, or something that can
// only be written to.
type target struct {
	io.Writer
	temp *os.File // nil: there is no place
	path string
}

func newTarget(local, name string, stdout io.Writer) (*target, error) {
	base := name[strings.LastIndexAny(name, `/\:`)+1:]
	switch local {
	case "-":
		return &target{Writer: stdout}, nil
	case "":
		local = base
	}
	info, err := os.Stat(local)
	if err == nil && info.IsDir() {
		local = filepath.Join(local, base)
		info, err = os.Stat(local)
	}
	if b := filepath.Base(local); base == "" && b == "." || b == ".." || err == nil && info.IsDir() {
		return nil, daemon.UsageError(fmt.Sprintf("%q is no name for a file here: add FILE, or - for stdout", local))
	}
	mode := os.FileMode(0o666)
	if err == nil {
		if !info.Mode().IsRegular() { // a device, a pipe
			f, err := os.OpenFile(local, os.O_WRONLY, 0)
			if err != nil {
				return nil, err
			}
			return &target{Writer: f}, nil
		}
		if local, err = filepath.EvalSymlinks(local); err != nil { // the file is replaced, not the link to it
			return nil, err
		}
		mode = info.Mode().Perm()
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(local), "."+filepath.Base(local)+"."+rand.Text()[:8]), os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return nil, err
	}
	return &target{Writer: f, temp: f, path: local}, nil
}

// finish puts the file in its place, or removes what there is of it if err is not nil.
func (t *target) finish(err error) error {
	if t.temp == nil {
		return err
	}
	if e := t.temp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(t.temp.Name(), t.path)
	}
	if err != nil {
		os.Remove(t.temp.Name())
	}
	return err
}
