package fsm

import (
	"crypto/sha256"
	"strings"
	"testing"

	"migrate/coordinator/fsm/logpb"
)

func hashOf(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

func (l *log) token(secret string, server bool, expires int64) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{
		Token: &logpb.Token{Hash: hashOf(secret), Server: server, ExpiresUnixNs: expires, UsedBy: "nobody"}}}})
}

func (l *log) redeem(secret, name, key string, server bool) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_RedeemToken{RedeemToken: &logpb.RedeemToken{Hash: hashOf(secret),
		Member: &logpb.Member{Name: name, Host: "10.0.0.1", KeyHash: hashOf(key), Server: server}}}})
}

// TestTokens: the log's time, which is the number of the entry here, decides when a token has expired.
func TestTokens(t *testing.T) {
	l := cluster(t)
	refused := func(why string, r Result) {
		t.Helper()
		if r.Err == nil || !strings.Contains(r.Err.Error(), why) {
			t.Errorf("got %v, want %q", r.Err, why)
		}
	}
	agreed := func(r Result) {
		t.Helper()
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	refused("SHA-256", l.apply(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{Hash: []byte("x"), ExpiresUnixNs: 1e9}}}}))
	refused("expired before", l.token("late", false, 1))
	agreed(l.token("a", false, 1e9))
	agreed(l.token("a", false, 1e9))
	refused("no such token", l.redeem("b", "new", "k", false))
	refused("no server", l.redeem("a", "new", "k", true))
	refused("another name", l.redeem("a", "host1", "k", false))
	refused("name and a key", l.redeem("a", "", "k", false))
	agreed(l.redeem("a", "new", "k", false))
	agreed(l.redeem("a", "new", "k", false)) // its answer got lost
	refused("used already, by new", l.redeem("a", "new", "other key", false))
	refused("used already, by new", l.redeem("a", "other", "k", false))
	agreed(l.token("s", true, 1e9))
	refused("another name", l.redeem("s", "new", "k2", true))
	agreed(l.redeem("s", "newer", "k2", true))
	agreed(l.token("short", false, int64(l.index)+2))
	refused("has expired", l.redeem("short", "x", "k3", false))

	back := stateOf(l.s.state.snapshot())
	if len(back.Tokens) != 3 || !back.Members["newer"].GetServer() || back.Tokens[string(hashOf("a"))].GetUsedBy() != "new" {
		t.Errorf("after a snapshot: %v, %v", back.Tokens, back.Members)
	}
	l.index += uint64(2 * tokensKept)
	agreed(l.token("much later", false, 3*int64(tokensKept)))
	if n := len(l.s.state.Tokens); n != 1 {
		t.Errorf("%d tokens are remembered", n)
	}
}
