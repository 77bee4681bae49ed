package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/diag"
	"culvert.dev/pkg/operate"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rest"
)

// diagTimeout bounds a report: the site's own limits are below it, but for many targets.
const diagTimeout = 3 * time.Minute

// exitTrouble is the exit code of `diag` when something is wrong.
const exitTrouble = 6

func diagCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	var o diag.Options
	service := "diagnostics"
	cmd := &cobra.Command{
		Use:   "diag SITE",
		Short: "Have a site look after itself, and print what is wrong and what to do",
		Long: "Have the private relay of a site look at its machine, networks, names, clock, links, and at the targets of its services, and print one report: what is wrong " +
			"and what to do about it first, then what there is.\n\n" +
			"The site allows it with diagnostics = true in its private.toml. It is encrypted from here to the private relay.\n\n" +
			"Exit code 6 says that something is wrong; warnings and notes are 0.",
		Example: "  tunnelctl diag office\n" +
			"  tunnelctl diag office --target db.lan:5432 --target https://app.lan/health --name db.lan\n" +
			"  tunnelctl diag office --json | jq '.findings[]'",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site := args[0]
			if strings.Contains(site, "/") {
				return daemon.UsageError(fmt.Sprintf("%q: want SITE; --service names another service of it", site))
			}
			c, err := r.open(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), diagTimeout)
			defer cancel()
			made, err := gather(ctx, c, site, service, o)
			if err != nil {
				return r.explainDiag(site, service, err)
			}
			if s, err := r.asked.Status(ctx); err == nil { // elsewhere than at the admin listener it may not be told
				made.Findings = append(made.Findings, certificateFindings(s, site)...)
				diag.Sort(made.Findings)
			}
			v := at.view(cmd)
			if err := v.print(made, func() { printReport(v, made) }); err != nil {
				return err
			}
			if n := count(made.Findings, diag.Wrong); n > 0 {
				return failf(exitTrouble, "site %s: %s, see the report", site, plural(n, "problem"))
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&o.Targets, "target", nil, "try this `HOST:PORT` or URL from there, too, if the site allows it; may be repeated")
	cmd.Flags().StringArrayVar(&o.Names, "name", nil, "look this `NAME` up there, too; may be repeated")
	cmd.Flags().BoolVar(&o.Cameras, "cameras", false, "look for cameras, too, if the site has discovery = true")
	cmd.Flags().StringVar(&service, "service", service, "the `name` of the service with target = \"rest://site\"")
	r.flags(cmd)
	return cmd
}

// gather asks the service of a site for everything.
func gather(ctx context.Context, c *operate.Client, site, service string, o diag.Options) (*diag.Report, error) {
	t := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Open(ctx, site, service) },
		MaxConnsPerHost: 8,
	}
	defer t.CloseIdleConnections()
	caller := &rest.Client{Base: &url.URL{Scheme: "http", Host: service}, HTTP: &http.Client{Transport: t}}
	return diag.Gather(ctx, caller, o)
}

// explainDiag says what to do when there is no report.
func (r *reach) explainDiag(site, service string, err error) error {
	var refused *operate.Error
	var e *rest.Error
	switch {
	case errors.As(err, &refused) && refused.Code == relay.OperateNotFound:
		return failf(exitNotFound, "%s has no service %q: put the line `diagnostics = true` above the first [[service]] of its private.toml and reload it, or see `tunnelctl services`", site, service)
	case errors.As(err, &e) && e.Code == http.StatusNotFound:
		return failf(exitNotFound, "%s/%s does not tell of the site: is it the service with target = \"rest://site\"?", site, service)
	}
	var call *url.Error
	if errors.As(err, &call) { // the URL of the call says nothing to who has not made it
		err = call.Err
	}
	return r.explain(site, err)
}

// certificateFindings are those about the certificates that the public relay has for the services of a site.
func certificateFindings(s *admin.Status, site string) (list []diag.Finding) {
	hosts := make(map[string]bool)
	for _, v := range s.Services {
		if p, err := relay.ParsePublish(v.Publish); err == nil && v.Site == site {
			hosts[p.Host] = true
		}
	}
	for _, c := range s.Certificates {
		_, parent, _ := strings.Cut(c.Name, "*.")
		used := hosts[c.Name]
		for h := range hosts {
			_, rest, _ := strings.Cut(h, ".")
			used = used || parent != "" && rest == parent
		}
		if !used {
			continue
		}
		f := diag.Finding{Subject: "certificate " + c.Name, Do: "see `tunnelctl certs` and the public relay's log"}
		switch {
		case c.Expires == nil:
			f.Level, f.Text = diag.Wrong, "there is none yet"
		case time.Until(*c.Expires) < 0:
			f.Level, f.Text = diag.Wrong, "has expired "+age(time.Since(*c.Expires))+" ago"
		case time.Until(*c.Expires) < 3*24*time.Hour && c.Failures > 0:
			f.Level, f.Text = diag.Wrong, "expires in "+age(time.Until(*c.Expires))
		case c.Failures > 0:
			f.Level, f.Text = diag.Warning, "expires in "+age(time.Until(*c.Expires))
		default:
			continue
		}
		if c.Error != "" {
			f.Text += ": " + c.Error
		}
		list = append(list, f)
	}
	return list
}

func count(list []diag.Finding, level string) (n int) {
	for _, f := range list {
		if f.Level == level {
			n++
		}
	}
	return n
}

// printReport prints a report for people: what is wrong first.
func printReport(v *view, r *diag.Report) {
	h := r.Host
	v.printf("site %s: %s, %s, %s\n", oneLine(r.Site), oneLine(h.Name), oneLine(h.Software), oneLine(strings.TrimSpace(h.System+" "+h.Kernel)))
	v.printf("time %s (%s), up %s, the relay %s\n\n", h.Time.Format(time.DateTime), oneLine(strings.TrimSpace(h.Zone+" "+h.ZoneName)), age(time.Duration(h.Uptime)*time.Second), age(time.Duration(h.Running)*time.Second))
	if len(r.Findings) == 0 {
		v.printf("nothing is wrong\n")
	}
	color := map[string]style{diag.Wrong: red, diag.Warning: yellow, diag.Note: dim}
	for _, f := range r.Findings {
		level := strings.ToUpper(f.Level)
		if v.color {
			level = color[f.Level].paint(level)
		}
		v.printf("%s %s: %s\n", level, oneLine(f.Subject), oneLine(f.Text))
		if f.Do != "" {
			v.printf("    %s\n", oneLine(f.Do))
		}
	}
	section := func(title string, n int, t *table) {
		if n > 0 {
			v.printf("\n%s\n", title)
			v.table(t)
		}
	}
	t := newTable("RELAY", "TRANSPORT", "ROLE", "STATE", ">RTT", "PROBLEM~20")
	n := 0
	for _, relay := range r.Relays {
		for _, l := range relay.Links {
			rtt := ""
			if l.RTT > 0 {
				rtt = millis(l.RTT)
			}
			t.add(relay.Address, l.Transport, l.Role, l.State, rtt, l.Problem)
			n++
		}
	}
	section("Links", n, t)
	for _, relay := range r.Relays {
		if relay.Choice != "" {
			v.printf("%s: %s\n", oneLine(relay.Address), oneLine(relay.Choice))
		}
	}
	t = newTable("SERVICE", "TARGET~20", "STATE", ">TOOK", "CERTIFICATE")
	for _, s := range r.Services {
		state, took, cert := "not checked", "", ""
		switch {
		case s.Checked && s.OK:
			state, took = "ok", millis(s.Took)
		case s.Checked:
			state = s.Class
		}
		if s.TLS != nil && len(s.TLS.Chain) > 0 {
			cert = fmt.Sprintf("%.0f days", s.TLS.Left)
		} else if s.Shown != nil && s.Shown.Problem == "" {
			cert = fmt.Sprintf("%.0f days", s.Shown.Left)
		}
		t.add(s.Service, s.Target, state, took, cert)
	}
	section("Services", len(r.Services), t)
	t = newTable("TARGET~20", "STATE", ">CONNECT", "ANSWER~20")
	for _, x := range r.Targets {
		state, took, answer := "ok", "", ""
		switch {
		case x.Problem != "":
			state, answer = "not tried", x.Problem
		case x.HTTP != nil && x.HTTP.OK:
			took = millis(x.HTTP.Connect)
			answer = fmt.Sprintf("%s %d, %d bytes, first after %s, all after %s", x.HTTP.Proto, x.HTTP.Status, x.HTTP.Size, millis(x.HTTP.FirstByte), millis(x.HTTP.Total))
		case x.HTTP != nil:
			state, answer = x.HTTP.Class, x.HTTP.Problem
		case x.Connect != nil && x.Connect.OK:
			took = millis(x.Connect.Connect)
			if x.TLS != nil {
				answer = fmt.Sprintf("%s, %.0f days left, %s", x.TLS.Version, x.TLS.Left, x.TLS.Chain[0].Subject)
			}
		case x.Connect != nil:
			state, answer = x.Connect.Class, x.Connect.Problem
		}
		t.add(x.Target, state, took, answer)
	}
	section("Targets", len(r.Targets), t)
	t = newTable("CLOCK", ">OFFSET", ">ERROR", ">DELAY", "PROBLEM~20")
	for _, c := range r.Clocks {
		if c.Problem != "" {
			t.add(c.Server, "", "", "", c.Problem)
		} else {
			t.add(c.Server, millis(c.Offset), millis(c.Error), millis(c.Delay), "")
		}
	}
	if r.Drift != nil {
		t.add("this machine's", millis(r.Drift.Offset), millis(r.Drift.Error), "", "")
	}
	section("Clock: what has to be added to the site's", 1, t)
	t = newTable("NAME~20", "TYPE", "SERVER", ">TOOK", "ANSWER~20")
	for _, a := range r.Names {
		var values []string
		for _, record := range a.Records {
			values = append(values, record.Value)
		}
		t.add(a.Name, a.Type, first(a.Server, "the system's"), millis(a.Took), first(a.Problem, strings.Join(values, " ")))
	}
	section("Names", len(r.Names), t)
	t = newTable("INTERFACE", "STATE", "MAC", ">MTU", "ADDRESSES~20")
	n = 0
	for _, i := range r.Interfaces {
		if i.Loopback {
			continue
		}
		state := "down"
		if i.Running {
			state = "up"
		} else if i.Up {
			state = "no carrier"
		}
		t.add(i.Name, state, i.MAC, i.MTU, strings.Join(i.Addresses, " "))
		n++
	}
	section("Interfaces", n, t)
	t = newTable("ROUTE", "GATEWAY", "INTERFACE", ">METRIC")
	for _, x := range r.Routes {
		t.add(x.Destination, x.Gateway, x.Interface, x.Metric)
	}
	section("Routes", len(r.Routes), t)
	t = newTable("NEIGHBOUR", "MAC", "INTERFACE", "STATE")
	near := slices.Clone(r.Neighbours)
	for _, x := range near[:min(len(near), 100)] {
		t.add(x.Address, x.MAC, x.Interface, x.State)
	}
	section(fmt.Sprintf("Neighbours: %d", len(near)), len(near), t)
	t = newTable("CAMERA", "NAME~20", "STREAMS", "PROBLEM~20")
	for _, d := range r.Cameras {
		t.add(d.Address, strings.TrimSpace(d.Name+" "+d.Hardware), len(d.Streams), d.Problem)
	}
	section("Cameras: `tunnelctl cameras` has more of them", len(r.Cameras), t)
	v.printf("\nload %s, %d processors, memory %s of %s free, %d of %d files open\n", load(h.Load), h.Processors, size(h.Available), size(h.Memory), h.OpenFiles, h.MaxFiles)
	for _, d := range h.Disks {
		v.printf("disk %s: %s of %s free\n", oneLine(d.Path), size(d.Available), size(d.Size))
	}
}

func load(list []float64) string {
	var texts []string
	for _, l := range list {
		texts = append(texts, fmt.Sprintf("%.2f", l))
	}
	return first(strings.Join(texts, " "), "not known")
}
