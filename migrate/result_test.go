package main

import (
	"strings"
	"testing"

	clusterapi "migrate/coordinator/api"
)

func TestPrintSteps(t *testing.T) {
	var b strings.Builder
	err := printSteps(&b, &clusterapi.Migration{Destination: "host2", DowntimeMs: 12.5, Steps: []*clusterapi.Step{
		{Name: "state", StartMs: 1, Ms: 4.25, Host: "host1"}, {Name: "state/files", StartMs: 2.5, Ms: 0.5, Host: "host1"},
	}})
	want := "AT        TOOK     HOST   STEP\n" +
		"1.00 ms   4.25 ms  host1  state\n" +
		"2.50 ms   0.50 ms  host1    files\n" +
		"12.50 ms           host2  the program runs\n"
	if err != nil || b.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, b.String(), want)
	}
}
