package client

import (
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/status"
)

// wrapping is what gRPC writes around the error of a connection: `connection error: desc = "..."`.
var wrapping = regexp.MustCompile(`(?:connection error: |rpc error: code = \w+ )desc = ("(?:[^"\\]|\\.)*")?`)

// Message is the text of a call's error for people, on one line: without the wrapping of gRPC.
func Message(err error) string {
	m := wrapping.ReplaceAllStringFunc(status.Convert(err).Message(), func(s string) string {
		_, quoted, _ := strings.Cut(s, "desc = ")
		if plain, err := strconv.Unquote(quoted); err == nil {
			return plain
		}
		return ""
	})
	for _, s := range []string{"transport: ", "error while dialing: ", "Error while dialing: "} {
		m = strings.ReplaceAll(m, s, "")
	}
	return OneLine(m)
}

// OneLine makes several lines of an error (errors.Join) one.
func OneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}
