package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/relay"
)

// discovery looks for cameras for operators, if the configuration of the moment allows it.
type discovery struct{ settings atomic.Pointer[settings] }

var errDiscoveryOff = errors.New("this site does not let operators look for cameras: put the line `discovery = true` above the first [[service]] of its private.toml, and reload it")

func (d *discovery) run(ctx context.Context, req relay.DiscoverRequest) ([]byte, error) {
	s := d.settings.Load()
	if !s.discovery {
		return nil, errDiscoveryOff
	}
	f := onvif.Finder{User: req.User, Password: req.Password, Addresses: s.probed}
	devices, err := f.Find(ctx)
	if err != nil {
		return nil, err
	}
	if devices == nil {
		devices = []onvif.Device{}
	}
	return json.Marshal(devices)
}

func camerasCommand(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	var user, publish string
	var addresses []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cameras",
		Short: "Look for ONVIF cameras on the networks of this machine",
		Long: "Look for ONVIF cameras on the networks of this machine, and print what they show, ready to be pasted into private.toml.\n\n" +
			"No relay is needed. With --user the cameras are asked as that user; the password is typed, or comes as a line on stdin.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := onvif.Finder{User: user}
			for _, a := range addresses {
				at, err := onvif.ParseAddress(a)
				if err != nil {
					return daemon.UsageError("--address: " + err.Error())
				}
				f.Addresses = append(f.Addresses, at)
			}
			if user != "" {
				password, err := daemon.ReadPassword(stdin, stderr, false)
				if err != nil {
					return err
				}
				f.Password = string(password)
			}
			devices, err := f.Find(cmd.Context())
			if err != nil {
				return err
			}
			return onvif.Write(stdout, stderr, devices, onvif.Shown{JSON: asJSON, Publish: publish, User: user})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "ask the cameras as this user")
	cmd.Flags().StringVar(&publish, "publish", "", "the `URL` that the services are to be below, such as rtsp://cams.example.com")
	cmd.Flags().StringArrayVar(&addresses, "address", nil, "ask this `address`, too, in a network behind a router; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
