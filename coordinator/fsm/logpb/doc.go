// Package logpb is the generated form of the log's entries and snapshots. Package fsm gives them meaning.
package logpb

//go:generate sh -c "cd ../../.. && protoc -I . --go_out=. --go_opt=module=migrate coordinator/fsm/logpb/log.proto"
