package client

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMessage(t *testing.T) {
	for in, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 10.77.0.13:7405: i/o timeout"`: "dial tcp 10.77.0.13:7405: i/o timeout",
		`host2 does not answer: connection error: desc = "transport: a \"b\""`:                             `host2 does not answer: a "b"`,
		`host2: rpc error: code = Unavailable desc = no route`:                                             "host2: no route",
		"more than the bound of 100ms\nPTRACE_INTERRUPT: gone\n":                                           "more than the bound of 100ms; PTRACE_INTERRUPT: gone",
		"plain": "plain",
	} {
		if got := Message(status.Error(codes.Unavailable, in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := Message(errors.New("a\nb")); got != "a; b" {
		t.Errorf("no status: %q", got)
	}
}
