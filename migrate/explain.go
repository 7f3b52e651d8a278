package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"migrate/engine/span"
)

// explainFlag is --explain of dump and restore.
type explainFlag struct{ on bool }

func (e *explainFlag) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&e.on, "explain", false, "print to standard error how long each step took")
}

// record has the steps of what is done in the context that it returns recorded, if the flag is set; print prints them, after what err says.
func (e *explainFlag) record(ctx context.Context, w io.Writer) (_ context.Context, print func(err error) error) {
	if !e.on {
		return ctx, func(err error) error { return err }
	}
	begun := time.Now()
	r := span.New(begun)
	return span.With(ctx, r), func(err error) error { return errors.Join(err, printSpans(w, r.Spans(), time.Since(begun))) }
}

// printSpans prints steps in the order of their beginnings, the parts of each under it, and how long all took.
func printSpans(w io.Writer, list []span.Span, total time.Duration) error {
	slices.SortStableFunc(list, func(a, b span.Span) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(strings.Count(a.Name, "/"), strings.Count(b.Name, "/")))
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "AT\tTOOK\tSTEP")
	msOf := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	for _, s := range list {
		_, _ = fmt.Fprintf(t, "%.2f ms\t%.2f ms\t%s%s\n", msOf(s.Start), msOf(s.Took), strings.Repeat("  ", strings.Count(s.Name, "/")), s.Name[strings.LastIndexByte(s.Name, '/')+1:])
	}
	_, _ = fmt.Fprintf(t, "\t%.2f ms\ttotal\n", msOf(total))
	return t.Flush()
}
