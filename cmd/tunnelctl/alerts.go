package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

func alertsCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "alerts",
		Short: "List what an operator should look after",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				alerts, err := c.Alerts(ctx)
				if err != nil {
					return err
				}
				v := at.view(cmd)
				return v.print(alerts, func() {
					t := newTable("SINCE", "STATE", "KIND", "ABOUT~10", "TEXT~20")
					for _, a := range alerts {
						state := red.of("open")
						if a.Resolved != nil {
							state = green.of("resolved " + age(time.Since(*a.Resolved)) + " ago")
						}
						t.add(age(time.Since(a.Since))+" ago", state, a.Kind, a.Subject, a.Text)
					}
					v.tableOr(t, "no alerts")
				})
			})
		},
	}
}
