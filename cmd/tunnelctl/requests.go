package main

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

func requestsCommand(at *where) *cobra.Command {
	var in admin.Filter
	var follow bool
	var f follower
	list := &cobra.Command{
		Use:   "requests",
		Short: "List the last requests of HTTP services, and look into them",
		Long: "List the last requests of HTTP services with their timing, the newest at the end. WAIT is until the head of the answer came, TOOK until its end.\n\n" +
			"With -f it goes on with those that come, until Ctrl-C, and waits for a relay that is restarted. tunnelctl requests show ID shows the headers and bodies of one, if its service\n" +
			"allows that (INSPECT), and tunnelctl requests replay ID sends it once more.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFilter(&in); err != nil {
				return err
			}
			v := at.view(cmd)
			if follow {
				return f.requests(cmd.Context(), at, v, in)
			}
			return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
				requests, err := c.Requests(ctx, in)
				if err != nil {
					return err
				}
				if len(requests) == 0 {
					if err := knownFilter(ctx, c, in); err != nil {
						return err
					}
				}
				return v.print(requests, func() { v.requests(requests) })
			})
		},
	}
	filterFlags(list, at, &in, "requests")
	list.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come, until Ctrl-C")
	f.flag(list)
	ids := completeWith(at, func(ctx context.Context, c *admin.Client) (names []string, err error) {
		requests, err := c.Requests(ctx, admin.Filter{Limit: 50})
		for _, r := range requests {
			if r.Inspectable {
				names = append(names, r.ID+"\t"+r.Method+" "+r.Path)
			}
		}
		return names, err
	})
	list.AddCommand(
		&cobra.Command{
			Use:               "show ID",
			Aliases:           []string{"get", "inspect"},
			Short:             "Show the headers and bodies of a request and its answer",
			Long:              "Show the headers and bodies of a request and its answer, as far as they were kept. Passwords and the like are not.",
			Args:              usage(cobra.ExactArgs(1)),
			ValidArgsFunction: ids,
			RunE: func(cmd *cobra.Command, args []string) error {
				return ask(cmd.Context(), at, func(ctx context.Context, c *admin.Client) error {
					e, err := c.Request(ctx, args[0])
					if err != nil {
						return withHint(err, 404, "tunnelctl requests")
					}
					v := at.view(cmd)
					return v.print(e, func() { v.exchange(e) })
				})
			},
		},
		&cobra.Command{
			Use:               "replay ID",
			Short:             "Send a request once more, and show its answer",
			Long:              "Send a request that was kept to its service once more, as it came, and show what is answered. What was redacted is not sent.",
			Args:              usage(cobra.ExactArgs(1)),
			ValidArgsFunction: ids,
			RunE: func(cmd *cobra.Command, args []string) error {
				return askFor(cmd.Context(), at, replayTime, func(ctx context.Context, c *admin.Client) error {
					e, err := c.Replay(ctx, args[0])
					if err != nil {
						return withHint(err, 404, "tunnelctl requests")
					}
					v := at.view(cmd)
					return v.print(e, func() { v.exchange(e) })
				})
			},
		},
	)
	return list
}

// replayTime is how long a request that is sent once more may take: as long as the relay waits for a target, and more.
const replayTime = 90 * time.Second

// withHint adds to a refusal of that status which command lists what there is.
func withHint(err error, status int, command string) error {
	if !isRefusal(err, status) || strings.Contains(err.Error(), command) || strings.HasPrefix(err.Error(), "this relay has no") {
		return err
	}
	return failf(refusalCode(status), "%w: `%s` lists those that there are", err, command)
}

func (v *view) requests(requests []admin.Request) {
	if len(requests) == 0 {
		v.printf("no requests yet\n")
		return
	}
	t := newTable("REQUEST", "TIME", "SERVICE~8", "FROM~9", "METHOD", "HOST~8", "PATH~12", "STATUS", ">WAIT", ">TOOK", ">SENT", "INSPECT")
	for _, r := range slices.Backward(requests) {
		inspect := ""
		if r.Inspectable {
			inspect = "yes"
		}
		t.add(r.ID, moment(r.Time), serviceOf(r), r.Remote, r.Method, r.Host, r.Path, statusCell(r), millis(r.Wait), millis(r.Took), size(r.Sent), inspect)
	}
	v.table(t)
}

// serviceOf is the service that was asked, SITE/SERVICE, or - if there is none at that address.
func serviceOf(r admin.Request) string {
	if r.Site == "" && r.Service == "" {
		return "-"
	}
	return r.Site + "/" + r.Service
}

// statusCell is the status of a request, and what went wrong.
func statusCell(r admin.Request) cell {
	text := fmt.Sprint(r.Status)
	if r.Status == 0 {
		text = "-"
	}
	style := style(0)
	switch {
	case r.Status >= 500 || r.Status == 0:
		style = red
	case r.Status >= 400:
		style = yellow
	}
	if r.Word != "" {
		text += " " + r.Word
		style = red
	}
	return style.of(text)
}

// requests prints requests as they come, until ctx ends.
func (f *follower) requests(ctx context.Context, at *where, v *view, in admin.Filter) (err error) {
	if f.c, err = at.client(); err != nil {
		return err
	}
	f.v = v
	if err := explain(f.c, knownFilter(ctx, f.c, in)); err != nil {
		return err
	}
	feed := func(bool) iter.Seq2[admin.Request, error] { return f.c.FollowRequests(ctx, in) }
	return follow(ctx, f, feed, func(r admin.Request) error { return v.line(r, func() { v.request(r) }) })
}

// request prints a request as a line of many.
func (v *view) request(r admin.Request) {
	s := statusCell(r)
	text := oneLine(s.text)
	if v.color {
		text = s.style.paint(text)
	}
	fields := []string{moment(r.Time), serviceOf(r), r.Remote, r.Method, r.Host + r.Path}
	v.printf("%s %s %s %s, %s\n", oneLine(strings.Join(fields, " ")), text, size(r.Sent), millis(r.Took), oneLine(r.ID))
}

// exchange prints a request and its answer as they went over the wire, more or less.
func (v *view) exchange(e *admin.Exchange) {
	v.printf("%s  %s/%s  from %s at %s, answered after %s, done after %s\n\n", oneLine(e.ID), oneLine(e.Site), oneLine(e.Service), oneLine(e.Remote),
		e.Time.Local().Format("2006-01-02 15:04:05.000"), millis(e.Wait), millis(e.Took))
	v.printf("%s %s %s\n", oneLine(e.Method), oneLine(e.Path), oneLine(e.Proto))
	v.header(e.RequestHeader)
	v.body(e.RequestBody)
	v.printf("\n%s %s\n", oneLine(e.Proto), oneLine(cmp.Or(strings.TrimSpace(fmt.Sprint(e.Status, " ", e.Word)), "no answer")))
	v.header(e.ResponseHeader)
	v.body(e.ResponseBody)
}

func (v *view) header(fields []admin.HeaderField) {
	for _, f := range fields {
		v.printf("%s: %s\n", oneLine(f.Name), oneLine(f.Value))
	}
	v.printf("\n")
}

// body prints what was kept of a body: text with its lines, of others how much there was.
func (v *view) body(b admin.Body) {
	var notes []string
	switch {
	case b.Text != "":
		text := strings.ReplaceAll(strings.ReplaceAll(b.Text, "\r\n", "\n"), "\t", "    ")
		v.printf("%s\n", strings.TrimRight(printable(text), "\n"))
	case len(b.Base64) > 0:
		notes = append(notes, "no text: --json has it in Base64")
	}
	if b.Truncated {
		kept := len(b.Text)
		if b.Text == "" {
			kept = len(b.Base64)
		}
		notes = append(notes, fmt.Sprintf("the first %s were kept", size(uint64(kept))))
	}
	if b.Redacted {
		notes = append(notes, "secrets in it are redacted")
	}
	if len(notes) > 0 {
		v.printf("[%s; %s]\n", size(uint64(max(b.Size, 0))), strings.Join(notes, "; "))
	}
}
