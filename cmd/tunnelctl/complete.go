package main

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/admin"
)

// completion is what a shell calls for the arguments of a command.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeTime is how long somebody who presses Tab waits for a relay at most.
var completeTime = 2 * time.Second // tests have more

// complete makes a completion of names in the status, for the first n arguments.
func complete(at *where, n int, names func(s *admin.Status, args []string) []string) completion {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return completeWith(at, func(ctx context.Context, c *admin.Client) ([]string, error) {
			s, err := c.Status(ctx)
			if err != nil {
				return nil, err
			}
			return names(s, args), nil
		})(cmd, args, typed)
	}
}

// completeWith makes a completion of names that the relay is asked for, with a tab and a description behind them. A relay that
// does not answer completes nothing, and says nothing: the prompt is no place for errors.
func completeWith(at *where, names func(context.Context, *admin.Client) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, typed string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		c, err := at.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		all, err := names(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, name := range all {
			text, about, _ := strings.Cut(name, "\t")
			if !strings.HasPrefix(text, typed) || slices.Contains(args, text) || strings.ContainsFunc(text, isSpecial) {
				continue
			}
			found = append(found, text+"\t"+oneLine(about))
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// isSpecial says whether a shell could take r for something else than a letter of a name.
func isSpecial(r rune) bool {
	return !strings.ContainsRune("/.-_:*@+,=%", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
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
