package coordinator

import (
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
)

// TestGuessedTokens: whoever reaches the port for joining can guess as often as he likes, and nothing of it comes into the log.
func TestGuessedTokens(t *testing.T) {
	w := start(t, false)
	for i := range 10 {
		req := &clusterapi.RedeemTokenRequest{Hash: []byte{31: byte(i)}, Name: "stranger", Host: "10.0.0.9", KeyHash: make([]byte, 32)}
		if _, err := w.servers["host1"].redeem(t.Context(), req); status.Code(asStatus(err)) != codes.NotFound {
			t.Errorf("guess %d: %v", i, err)
		}
	}
	n := w.servers[w.leader()].node
	for i := uint64(1); i <= n.raft.LastIndex(); i++ {
		var l raft.Log
		if err := n.log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if c, err := fsm.Decode(l.Data); l.Type == raft.LogCommand && (err != nil || c.GetRedeemToken() != nil) {
			t.Errorf("entry %d: %v, %v", i, c, err)
		}
	}
}
