//go:build linux

package tcprepair

// For the fuzzer.
var (
	ParseDiag   = parseDiag
	ParseSigned = parseSigned
)
