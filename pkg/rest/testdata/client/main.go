// Command client uses what oapi-codegen has made of the document of the tests of package rest: see TestGeneratedClient.
package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url string) error {
	ctx := context.Background()
	c, err := NewClientWithResponses(url)
	if err != nil {
		return err
	}
	sum, err := c.CalcSumWithResponse(ctx, TermsInput{A: 3.12, B: 4.2})
	if err != nil {
		return err
	}
	fmt.Println("POST Sum", sum.JSON200.Result)
	got, err := c.CalcSumGetWithResponse(ctx, &CalcSumGetParams{A: 3.12, B: 4.2})
	if err != nil {
		return err
	}
	fmt.Println("GET Sum", got.JSON200.Result)
	divided, err := c.CalcDivideWithResponse(ctx, PointInput{X: 7, Y: 2})
	if err != nil {
		return err
	}
	fmt.Println("Divide", divided.JSON200.Result)
	point, err := c.BarePointGetWithResponse(ctx, &BarePointGetParams{X: 1, Y: 2})
	if err != nil {
		return err
	}
	fmt.Println("Point", point.JSON200.X, point.JSON200.Y)
	note := "n"
	set, err := c.CalcSetWithResponse(ctx, 17, CalcSetInput{Note: &note})
	if err != nil {
		return err
	}
	fmt.Println("Set", set.JSON200.Result.Id, *set.JSON200.Result.Note)
	day := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	list := []string{"a", "b"}
	every, err := c.CalcEveryGetWithResponse(ctx, &CalcEveryGetParams{Int: 1, Uint: 2, Float: 0.5, Text: "t & ü", Bool: true, List: &list, Time: &day, Point: &PointValue{X: &one}})
	if err != nil {
		return err
	}
	if every.JSON200 == nil {
		return fmt.Errorf("Every: %s", every.Body)
	}
	e := every.JSON200.Result
	fmt.Println("Every", *e.List, e.Limit, e.Time.Format(time.DateOnly), e.Bool)
	missing, err := c.CalcMissingWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println("Missing", missing.StatusCode(), missing.JSONDefault.ErrorText)
	return nil
}

var one int64 = 1
