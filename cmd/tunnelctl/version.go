package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/relay"
)

func versionCommand(at *where) *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the relay",
		Long: "Print the version of this program, and of the relay if one answers. With --client the relay is not asked.\n\n" +
			"A relay that cannot be asked is no error; why is said on stderr.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			both := versions{Client: admin.Version{Version: version, Wire: relay.WireVersion, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}}
			v := at.view(cmd)
			var failed error
			if !client {
				failed = askFor(cmd.Context(), at, versionTime, func(ctx context.Context, c *admin.Client) error {
					there, err := c.Version(ctx)
					if err == nil {
						both.Relay = &there
					}
					return err
				})
			}
			return v.print(both, func() {
				v.printf("culvert %s\n", versionText(&both.Client))
				if both.Relay != nil {
					v.printf("relay   %s\n", versionText(both.Relay))
				} else if failed != nil {
					v.note("relay   %s", printable(failed.Error()))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "this program's alone: no relay is asked")
	return cmd
}

// versionTime is how long the relay has to say which version it is.
const versionTime = 5 * time.Second

// versions is what version prints with --json.
type versions struct {
	Client admin.Version  `json:"client"`
	Relay  *admin.Version `json:"relay,omitempty"` // nil: there is none that answers
}

func versionText(w *admin.Version) string {
	return fmt.Sprintf("%s (wire %d, %s, %s/%s)", oneLine(w.Version), w.Wire, oneLine(w.Go), oneLine(w.OS), oneLine(w.Arch))
}
