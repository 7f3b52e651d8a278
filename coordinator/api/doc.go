// Package clusterapi is the generated gRPC interface of the cluster's servers, used by the command and by agents.
// Package coordinator/client dials it and follows the leader.
package clusterapi

//go:generate sh -c "cd ../.. && protoc -I . --go_out=. --go_opt=module=migrate --go-grpc_out=. --go-grpc_opt=module=migrate coordinator/api/cluster.proto"
