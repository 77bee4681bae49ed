package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

func alertsCommand(at *where) *cobra.Command {
	list := &cobra.Command{
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
	list.AddCommand(testAlertsCommand(at))
	return list
}

func testAlertsCommand(at *where) *cobra.Command {
	return &cobra.Command{
		Use:   "test",
		Short: "Tell all who are told of alerts that this is a test",
		Long: "Have the relay tell all whom [alerts] of its public.toml names that this is a test, and say what came of it:\n" +
			"the exit code is 1 if one of them was not reached.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askFor(cmd.Context(), at, time.Minute, func(ctx context.Context, c *admin.Client) error {
				came, err := c.TestAlerts(ctx)
				if err != nil {
					return err
				}
				failed := 0
				for _, t := range came {
					if t.Error != "" {
						failed++
					}
				}
				v := at.view(cmd)
				if err := v.print(came, func() {
					for _, t := range came {
						if t.Error == "" {
							v.printf("%s: sent\n", oneLine(t.To))
						} else {
							v.printf("%s: %s\n", oneLine(t.To), oneLine(t.Error))
						}
					}
				}); err != nil {
					return err
				}
				if failed > 0 {
					return fmt.Errorf("%d of %d were not reached: [alerts] of the relay's public.toml says where they are", failed, len(came))
				}
				return nil
			})
		},
	}
}
