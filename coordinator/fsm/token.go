package fsm

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/proto"

	"migrate/coordinator/fsm/logpb"
)

// tokensKept is how long a token is remembered after it has expired, so that its late user is told so.
const tokensKept = 24 * time.Hour

// createToken lets one host join. The same hash again, by a repeated call, is the same token.
func (s *State) createToken(c *logpb.CreateToken, now int64) Result {
	t := proto.CloneOf(c.GetToken())
	hash := string(t.GetHash())
	switch {
	case len(hash) != 32:
		return Result{Err: conflict(Refused, "a token is known by a SHA-256 hash, not by %d bytes", len(hash))}
	case t.GetExpiresUnixNs() <= now:
		return Result{Err: conflict(Refused, "the token would have expired before it was made")}
	case s.Tokens[hash] != nil:
		return Result{}
	}
	for h, old := range s.Tokens {
		if old.GetExpiresUnixNs()+int64(tokensKept) < now {
			delete(s.Tokens, h)
		}
	}
	t.CreatedUnixNs, t.UsedBy, t.UsedUnixNs = now, "", 0
	s.Tokens[hash] = t
	return Result{}
}

// RefusesToken says why a host cannot join with a token, as things are; nil if it can. It is asked before an entry is proposed, too: the log
// is not to grow by the guesses of strangers.
func (s *State) RefusesToken(c *logpb.RedeemToken, now int64) error {
	t, m := s.Tokens[string(c.GetHash())], c.GetMember()
	const fresh = "make another one with `migrate token create`"
	switch {
	case m.GetName() == "" || len(m.GetKeyHash()) != 32:
		return conflict(Refused, "a host joins with a name and a key")
	case t == nil:
		return conflict(NotFound, "the cluster knows no such token; "+fresh)
	case t.GetUsedBy() == m.GetName() && bytes.Equal(s.Members[m.GetName()].GetKeyHash(), m.GetKeyHash()):
		return nil // the answer got lost
	case t.GetUsedBy() != "":
		return conflict(Refused, "the token was used already, by %s; "+fresh, t.GetUsedBy())
	case t.GetExpiresUnixNs() <= now:
		return conflict(Refused, "the token has expired; "+fresh)
	case m.GetServer() && !t.GetServer():
		return conflict(Refused, "the token lets no server join; make one with `migrate token create --server`, or join without --server")
	case s.Members[m.GetName()] != nil || s.Nodes[m.GetName()] != nil:
		return conflict(Exists, "a host named %q is in the cluster already; give this one another name with --name", m.GetName())
	}
	return nil
}

// redeemToken decides who joins with a token. Of two that race, the one whose entry comes first in the log does.
func (s *State) redeemToken(c *logpb.RedeemToken, now int64) Result {
	if err := s.RefusesToken(c, now); err != nil {
		return Result{Err: err}
	}
	t, m := s.Tokens[string(c.GetHash())], proto.CloneOf(c.GetMember())
	if t.GetUsedBy() != "" {
		return Result{} // the same host again
	}
	m.JoinedUnixNs = now
	t = proto.CloneOf(t)
	t.UsedBy, t.UsedUnixNs = m.GetName(), now
	s.Tokens[string(c.GetHash())], s.Members[m.GetName()] = t, m
	return Result{}
}
