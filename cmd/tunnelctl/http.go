package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
)

// exitHTTP is the exit code of `http --fail` when the answer is an error.
const exitHTTP = 22

func httpCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	var method, data string
	var headers []string
	var include, fail bool
	cmd := &cobra.Command{
		Use:   "http SITE/SERVICE URL",
		Short: "Send a request to an HTTP service of a site, and print the answer",
		Long: "Send a request to an HTTP service of a site, and print the body of the answer.\n\n" +
			"URL is a path (/api/status?all=1), or a whole URL, whose host is told to the service. The request does not leave the tunnel: it goes to this service, whatever the host is. " +
			"Redirects are printed, not followed.",
		Example: "  tunnelctl http office/api /health\n" +
			"  tunnelctl http office/api -d '{\"name\":\"x\"}' -H 'Content-Type: application/json' http://api.internal/things",
		Args:              usage(cobra.ExactArgs(2)),
		ValidArgsFunction: completeServices(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := makeRequest(cmd, args[1], method, data, headers)
			if err != nil {
				return err
			}
			c, conn, err := r.connect(cmd, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			protocols := new(http.Protocols)
			switch conn.Scheme() {
			case "http", "https", "file", "rest", relay.SchemeListen:
				protocols.SetHTTP1(true)
			case "h2c", "h2":
				protocols.SetUnencryptedHTTP2(true) // with prior knowledge: it is the private relay that speaks TLS with the target
			default:
				conn.Abort()
				return failf(daemon.ExitUsage, "%s: its target is %s://, which is not HTTP: use tunnelctl forward or connect", args[0], conn.Scheme())
			}
			defer conn.Close()
			t := &http.Transport{
				Protocols: protocols, DisableKeepAlives: true, DisableCompression: true,
				DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
			}
			defer t.CloseIdleConnections()
			resp, err := t.RoundTrip(req.WithContext(cmd.Context()))
			switch {
			case err == nil:
			case strings.Contains(err.Error(), "malformed HTTP"): // net/http has no type for it
				return failf(daemon.ExitFailed, "%s: what it answers is not HTTP: use tunnelctl forward or connect", args[0])
			default:
				return r.explain(args[0], err)
			}
			defer resp.Body.Close()
			out := cmd.OutOrStdout()
			if include {
				printHead(out, resp)
			}
			if _, err := io.Copy(out, resp.Body); err != nil {
				return r.explain(args[0], err)
			}
			if fail && resp.StatusCode >= 400 {
				return failf(exitHTTP, "%s: the service has answered %s", args[0], resp.Status)
			}
			return nil
		},
	}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&method, "request", "X", "", "`METHOD` (default GET, or POST with --data)")
	f.StringArrayVarP(&headers, "header", "H", nil, "a `FIELD: value` of the request; several times for several")
	f.StringVarP(&data, "data", "d", "", "the body: `TEXT`, @FILE, or @- for stdin")
	f.BoolVarP(&include, "include", "i", false, "print the head of the answer, too")
	f.BoolVarP(&fail, "fail", "f", false, fmt.Sprintf("end with exit code %d if the answer is an error (status 400 and above)", exitHTTP))
	return cmd
}

// makeRequest makes the request of the arguments.
func makeRequest(cmd *cobra.Command, target, method, data string, headers []string) (*http.Request, error) {
	u, err := url.Parse(target)
	switch {
	case err != nil:
		return nil, daemon.UsageError(fmt.Sprintf("URL %q: %v", target, err))
	case u.Host == "" && !strings.HasPrefix(target, "/"), u.Host != "" && u.Scheme != "http" && u.Scheme != "https":
		return nil, daemon.UsageError(fmt.Sprintf("URL %q: want a path that begins with /, or http://HOST/PATH", target))
	case u.Host == "":
		u.Host = "localhost"
	}
	u.Scheme = "http" // in the tunnel; TLS with the target is the private relay's matter
	var body io.Reader
	if name, ok := strings.CutPrefix(data, "@"); ok && name == "-" {
		body = cmd.InOrStdin()
	} else if ok {
		f, err := os.Open(name)
		if err != nil {
			return nil, daemon.UsageError(fmt.Sprintf("--data %s: %v", data, err))
		}
		context.AfterFunc(cmd.Context(), func() { f.Close() })
		body = f
	} else if data != "" {
		body = strings.NewReader(data)
	}
	if method == "" {
		method = http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
	}
	req, err := http.NewRequest(method, u.String(), body)
	if err != nil {
		return nil, daemon.UsageError(err.Error())
	}
	if f, ok := body.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			req.ContentLength = info.Size()
		}
	}
	req.Header.Set("User-Agent", "tunnelctl/"+version)
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, daemon.UsageError(fmt.Sprintf("--header %q: want 'FIELD: value'", h))
		}
		value = strings.TrimSpace(value)
		if strings.EqualFold(name, "host") {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	return req, nil
}

// printHead prints the head of an answer.
func printHead(w io.Writer, resp *http.Response) {
	fmt.Fprintf(w, "%s %s\n", resp.Proto, printable(resp.Status))
	var names []string
	for name := range resp.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range resp.Header[name] {
			fmt.Fprintf(w, "%s: %s\n", printable(name), printable(value))
		}
	}
	fmt.Fprintln(w)
}
