package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

func servicesCommand(at *where) *cobra.Command {
	return showCommand(at, "services [SITE]", "List the services that connected sites offer",
		"List the services that connected sites offer: where visitors come in, who is there, and what went wrong so far.",
		func(s *admin.Status) any { return s.Services }, (*view).services)
}

func (v *view) services(s shown) {
	if len(s.Services) == 0 {
		if len(s.Sites) == 1 {
			v.printf("no services: %s is not connected, or its private.toml has no [[service]]\n", oneLine(s.Sites[0].Name))
		} else {
			v.printf("no services: no site is connected, or their private.toml has no [[service]]\n")
		}
		return
	}
	t := newTable("SERVICE", "PUBLISHED AT~16", "TARGET", ">VISITORS", ">TOTAL", ">"+s.title("RECEIVED"), ">"+s.title("SENT"))
	for _, one := range s.Services {
		in, out := s.ofService(one)
		t.add(one.Site+"/"+one.Name, cmp.Or(one.Publish, "operators only"), one.Target, one.Visitors, one.Total, in, out)
	}
	v.table(t)
	for _, one := range s.Services {
		if len(one.Errors) == 0 {
			continue
		}
		var parts []string
		for _, word := range slices.Sorted(maps.Keys(one.Errors)) {
			parts = append(parts, fmt.Sprintf("%d %s", one.Errors[word], word))
		}
		v.wrap(fmt.Sprintf("  %s/%s: what went wrong so far: %s", one.Site, one.Name, strings.Join(parts, ", ")), "    ")
	}
	v.cameras(s.Services, time.Now())
	v.files(s.Services)
}

// cameras tells of those services that are cameras.
func (v *view) cameras(services []admin.Service, now time.Time) {
	t := newTable("CAMERA", ">VIEWERS", ">RATE", "SHOWS~12", "KEY FRAME", ">RECONNECTS", ">FRAMES LEFT OUT")
	for _, one := range services {
		c := one.Camera
		if c == nil {
			continue
		}
		var shows []string
		for _, t := range c.Tracks {
			text := cmp.Or(t.Codec, t.Media, "?")
			if t.Width > 0 && t.Height > 0 {
				text += fmt.Sprintf(" %dx%d", t.Width, t.Height)
			}
			shows = append(shows, text)
		}
		key := "-"
		if c.KeyFrame != nil {
			key = age(now.Sub(*c.KeyFrame)) + " ago"
		}
		t.add(one.Site+"/"+one.Name, c.Viewers, bitRate(c.Rate), cmp.Or(strings.Join(shows, ", "), "not watched yet"), key, c.Reconnects, c.Dropped)
	}
	if len(t.rows) > 0 {
		v.printf("\n")
		v.table(t)
	}
}

// files tells of those services that have files by TFTP.
func (v *view) files(services []admin.Service) {
	t := newTable("FILES", ">TRANSFERS", ">RATE", ">PACKETS SENT AGAIN", ">REFUSED", ">KEPT", ">READ FROM THAT")
	for _, one := range services {
		if f := one.Files; f != nil {
			t.add(one.Site+"/"+one.Name, one.Visitors, bitRate(f.Rate), f.Retransmitted, f.Refused, size(uint64(f.Cached)), f.Hits)
		}
	}
	if len(t.rows) > 0 {
		v.printf("\n")
		v.table(t)
	}
}
