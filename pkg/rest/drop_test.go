package rest

import (
	"context"
	"testing"
)

// A feed is ended by Drop also while Admit decides about it, and Drop does not look at its Call before.
func TestDropWhileAdmitted(t *testing.T) {
	deciding, dropped := make(chan struct{}), make(chan struct{})
	s := &Server{Prefix: "/api/", Admit: func(_ context.Context, c *Call) error {
		close(deciding)
		<-dropped
		c.Identity = "ann"
		return nil
	}}
	s.Set(&Service{Root: "ticks", Methods: []*Method{
		Feed("Watch", func(ctx context.Context, _ struct{}, _ func(int) error) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}),
	}})
	defer s.Close()
	ended := make(chan error)
	go func() {
		var err error
		for _, err = range Follow[int](t.Context(), s.Local(nil), "ticks/Watch", struct{}{}) {
		}
		ended <- err
	}()
	<-deciding
	s.Drop(func(c *Call) bool { return c.Identity == "bob" })
	s.Drop(func(c *Call) bool { return c.Identity == "ann" })
	close(dropped)
	if e, ok := (<-ended).(*Error); !ok || e.Code != errDropped.Code {
		t.Errorf("the feed ended with %v", e)
	}
}
