//go:build linux

package tcprepair

// ParseDiag is for the fuzzer.
var ParseDiag = parseDiag
