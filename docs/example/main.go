// Example is a calculator that a public relay publishes. It listens on no port of this machine.
//
//	tunnelctl site add calculator --publish https://calc.example.com      # on the relay; prints a token
//	CULVERT_TOKEN=... go run culvert.dev/docs/example https://calc.example.com
//	curl 'https://calc.example.com/calc/Sum?a=3.12&b=4.2'                 # {"result":7.32}
//
// The token is needed once: the folder "calculator" has the site's key from then on. Ctrl-C ends it when the requests under
// way are answered.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"culvert.dev/pkg/rest"
	"culvert.dev/pkg/site"
)

type terms struct {
	A float64 `json:"a"`
	B float64 `json:"b"`
}

func sum(_ context.Context, in terms) (float64, error) { return in.A + in.B, nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	api := &rest.Server{Title: "Calculator", Version: "1"}
	api.Set(&rest.Service{Root: "calc", Methods: []*rest.Method{rest.Of("Sum", sum)}})
	s := &site.Site{Dir: "calculator", Token: os.Getenv("CULVERT_TOKEN")}
	defer s.Close()
	if err := s.Serve(ctx, "calculator", os.Args[1], api); err != nil {
		log.Print(err)
	}
}
