package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

// completion is what a shell calls for the arguments of a command.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeTime is how long somebody who presses Tab waits for a relay at most.
const completeTime = 2 * time.Second

// complete makes a completion of names that the relay knows, for the first n arguments. A relay that does not answer
// completes nothing, and says nothing: the prompt is no place for errors.
func complete(at *where, n int, names func(s *admin.Status, args []string) []string) completion {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := at.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		s, err := c.Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []cobra.Completion
		for _, name := range names(s, args) {
			text, _, _ := strings.Cut(name, "\t") // a description behind it
			if strings.HasPrefix(text, typed) && !slices.Contains(args, text) && printable(name) == strings.ReplaceAll(name, "\t", "?") && !strings.ContainsAny(text, " '\"`$\\") {
				found = append(found, name)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSites completes SITE.
func completeSites(at *where, n int) completion {
	return complete(at, n, func(s *admin.Status, _ []string) (names []string) {
		for _, site := range s.Sites {
			names = append(names, site.Name+"\t"+site.State)
		}
		return names
	})
}

// completeServices completes SITE/SERVICE.
func completeServices(at *where, n int) completion {
	return complete(at, n, func(s *admin.Status, _ []string) (names []string) {
		for _, v := range s.Services {
			names = append(names, v.Site+"/"+v.Name+"\t"+v.Target)
		}
		return names
	})
}

// completeSessions completes SITE ID.
func completeSessions(at *where) completion {
	return complete(at, 2, func(s *admin.Status, args []string) (names []string) {
		for _, site := range s.Sites {
			if len(args) == 0 {
				names = append(names, site.Name+"\t"+site.State)
				continue
			}
			if site.Name != args[0] {
				continue
			}
			for _, one := range site.Sessions {
				names = append(names, one.ID+"\t"+one.State)
			}
		}
		return names
	})
}

// completeCertificates completes names of certificates.
func completeCertificates(at *where) completion {
	return complete(at, 1, func(s *admin.Status, _ []string) (names []string) {
		for _, c := range s.Certificates {
			names = append(names, c.Name)
		}
		return names
	})
}
