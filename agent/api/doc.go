// Package agentapi is the generated gRPC interface of an agent: what the cluster's leader and the local command ask
// of it (Agent), and what the agent of the other host sends during a move (Peer).
//
// Messages that are refused, and why, are in agent.proto beside this file; coordinator/handoff says what each order
// of a handoff means.
package agentapi

//go:generate sh -c "cd ../.. && protoc -I . --go_out=. --go_opt=module=migrate --go-grpc_out=. --go-grpc_opt=module=migrate agent/api/agent.proto"

// MaxMessage bounds one gRPC message in bytes, both ways: a layout of 50,000 mappings takes some 5 MiB, gRPC's own
// bound is 4 MiB. Clients and servers of Agent and Peer set it.
const MaxMessage = 64 << 20

// FinishPartBytes bounds FinishPart.Data.
const FinishPartBytes = 1 << 20
