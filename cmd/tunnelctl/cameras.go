package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/onvif"
)

func camerasCommand(at *where) *cobra.Command {
	var show onvif.Shown
	cmd := &cobra.Command{
		Use:   "cameras SITE",
		Short: "Have a site look for ONVIF cameras on its network",
		Long: "Have the private relay of a site look for ONVIF cameras on its network, and print what they show, ready to be pasted\n" +
			"into its private.toml. The site allows it with discovery = true there.\n\n" +
			"With --user the cameras are asked as that user; the password is typed, or comes as a line on stdin.",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			show.JSON = at.look.json
			in := admin.Search{User: show.User}
			if show.User != "" {
				password, err := daemon.ReadPassword(cmd.InOrStdin(), cmd.ErrOrStderr(), false)
				if err != nil {
					return err
				}
				in.Password = string(password)
			}
			var devices []onvif.Device
			err := askFor(cmd.Context(), at, admin.SearchTime+answerTimeout, func(ctx context.Context, c *admin.Client) error {
				found, err := c.Cameras(ctx, args[0], in)
				if err != nil {
					return aboutSite(ctx, c, args[0], err)
				}
				if err := json.Unmarshal(found.Devices, &devices); err != nil {
					return fmt.Errorf("site %q answers with what makes no sense: %w", args[0], err)
				}
				if show.Publish == "" && !show.JSON {
					if s, err := c.Status(ctx); err == nil {
						show.Publish = cameraURL(s, args[0])
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			return onvif.Write(cmd.OutOrStdout(), cmd.ErrOrStderr(), devices, show)
		},
	}
	cmd.Flags().StringVar(&show.User, "user", "", "ask the cameras as this user")
	cmd.Flags().StringVar(&show.Publish, "publish", "", "the `URL` that the services are to be below (default: of what the site may publish)")
	return cmd
}

// cameraURL returns a URL below which a site may publish cameras, or "".
func cameraURL(s *admin.Status, name string) string {
	i := slices.IndexFunc(s.Sites, func(site admin.Site) bool { return site.Name == name })
	if i < 0 {
		return ""
	}
	for _, pattern := range s.Sites[i].Publish {
		scheme, rest, _ := strings.Cut(strings.TrimRight(pattern, "/*"), "://")
		if scheme != "rtsp" && scheme != "rtsps" {
			continue
		}
		if parent, ok := strings.CutPrefix(rest, "*."); ok {
			rest = "cams." + parent
		}
		return scheme + "://" + rest
	}
	return ""
}
