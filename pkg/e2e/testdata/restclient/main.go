// Command restclient lists the sites of a relay by what oapi-codegen has made of its document: see TestMethods.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url string) error {
	token, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	c, err := NewClientWithResponses(url, WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+string(token))
		return nil
	}))
	if err != nil {
		return err
	}
	sites, err := c.SitesListGetWithResponse(context.Background())
	if err != nil {
		return err
	}
	if sites.JSON200 == nil {
		return fmt.Errorf("%s %s", sites.Status(), sites.Body)
	}
	for _, s := range *sites.JSON200 {
		fmt.Println(s.Name, s.State)
	}
	return nil
}
