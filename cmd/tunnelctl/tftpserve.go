package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
)

func tftpServeCommand() *cobra.Command {
	var s tftpService
	var ports string
	cmd := &cobra.Command{
		Use:   "serve FOLDER",
		Short: "Serve a folder by TFTP",
		Long: "Serve a folder by TFTP, to everybody who reaches the address, until Ctrl-C. A line is printed for each transfer.\n\n" +
			"Nothing outside of the folder can be reached, and nothing can be written without --write.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch s.write {
			case "", "new", "replace":
			default:
				return daemon.UsageError(fmt.Sprintf("--write %q: want new, for files that are not there yet, or replace", s.write))
			}
			if s.block != 0 && (s.block < tftp.MinBlock || s.block > tftp.MaxBlock) {
				return daemon.UsageError(fmt.Sprintf("--blksize %d: want %d to %d", s.block, tftp.MinBlock, tftp.MaxBlock))
			}
			if err := s.ports.UnmarshalText([]byte(ports)); err != nil {
				return daemon.UsageError("--ports: " + err.Error())
			}
			if _, _, err := net.SplitHostPort(s.listen); err != nil {
				return daemon.UsageError(fmt.Sprintf("--listen %q: want ADDRESS:PORT, or :PORT for all addresses", s.listen))
			}
			s.out, s.errs = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return s.serve(cmd.Context(), args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.listen, "listen", "127.0.0.1:6969", "`address` to listen on; clients expect port 69, which takes root")
	flags.StringVar(&s.write, "write", "", "what may be written: `new` files, or also those that replace one")
	flags.BoolVar(&s.ignoreCase, "ignore-case", false, "find names in any case")
	flags.StringVar(&ports, "ports", "", "answer each transfer from a port of its own of this `range`, such as 40000-40999")
	flags.IntVar(&s.block, "blksize", 0, "most `bytes` of a block (default: what the route to the client carries in one piece)")
	flags.BoolVar(&s.verbose, "verbose", false, "print when a transfer begins, too, and what is refused")
	return cmd
}

// tftpService is tunnelctl tftp serve.
type tftpService struct {
	listen     string
	write      string
	ignoreCase bool
	ports      daemon.PortRange
	block      int
	verbose    bool
	out, errs  io.Writer
}

func (s *tftpService) serve(ctx context.Context, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		return err
	}
	defer core.Close()
	level := slog.LevelWarn
	if s.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(s.errs, &slog.HandlerOptions{Level: level}))
	share := &tftpd.Share{
		Loop:  core.Loop(0),
		Store: &tftpd.Folder{Root: root, Write: s.write, IgnoreCase: s.ignoreCase, Log: log},
		Write: s.write != "",
		End:   s.ended,
	}
	if s.verbose {
		share.Begin = s.began
	}
	srv := &tftpd.Server{
		Find:     func(name string, _ netip.AddrPort) (*tftpd.Share, string, *tftp.Error) { return share, name, nil },
		MaxBlock: s.block,
		Ports:    s.ports,
		Log:      log,
	}
	if err := srv.Listen(core.Loop(0), "udp", s.listen); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("%w: ports below 1024 take root (or CAP_NET_BIND_SERVICE); --listen names another one", err)
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%w: another program has the port; --listen names another one", err)
		}
		return err
	}
	fmt.Fprintf(s.out, "serving %s on tftp://%s/\n", folder, srv.Addr())
	<-ctx.Done()
	srv.Close()
	return nil
}

// The lines about transfers are printed on the loop: a terminal that is stopped stops the server.

func (s *tftpService) began(t *tftpd.Transfer) {
	fmt.Fprintf(s.out, "%s begins\n", transferTitle(t))
}

func (s *tftpService) ended(t *tftpd.Transfer, err error) {
	stats := t.Stats()
	if err != nil {
		fmt.Fprintf(s.out, "%s failed after %s: %s\n", transferTitle(t), size(uint64(stats.Bytes)), printable(err.Error()))
		return
	}
	fmt.Fprintf(s.out, "%s %s; %d retransmitted\n", transferTitle(t), moved(stats.Bytes, t.Began, t.Options()), stats.Retransmitted)
}

func transferTitle(t *tftpd.Transfer) string {
	verb := "get"
	if t.Request.Op == tftp.OpWrite {
		verb = "put"
	}
	return fmt.Sprintf("%s %s %s %s:", time.Now().Format(time.TimeOnly), t.Visitor, verb, printable(t.Name))
}
