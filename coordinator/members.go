package coordinator

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// Members is a host's membership of the gossip. It tells in some seconds who seems to be up: a hint, never a fence.
// Every agent may be a member; the servers are the ones that others join by.
type Members struct {
	list *memberlist.Memberlist
	stop chan struct{}
	done chan struct{}
}

// rejoinEvery is how often a member calls on those that it does not see: after a long partition nobody else would.
const rejoinEvery = 10 * time.Second

// MembersConfig is what JoinMembers needs. All fields but Key and Log have to be set.
type MembersConfig struct {
	Name string
	Bind string // IP address
	Port int    // UDP and TCP, the same on every host
	Join []string
	Key  []byte // 16, 24 or 32 bytes; without one gossip is neither secret nor authenticated
	Log  *slog.Logger
}

// JoinMembers starts to gossip. That nobody can be reached is no error: they will reach us.
func JoinMembers(c MembersConfig) (*Members, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.BindAddr, conf.BindPort, conf.AdvertisePort = c.Name, c.Bind, c.Port, c.Port
	conf.AdvertiseAddr = c.Bind
	conf.SecretKey = c.Key
	conf.LogOutput = nil
	if c.Log == nil {
		c.Log = slog.Default()
	}
	conf.Logger = log.New(lines{c.Log.With("part", "gossip")}, "", 0)
	conf.GossipInterval, conf.ProbeInterval = 200*time.Millisecond, time.Second
	if ip := net.ParseIP(c.Bind); ip == nil || ip.IsUnspecified() {
		conf.AdvertiseAddr = ""
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		return nil, fmt.Errorf("coordinator: gossip on %s port %d: %w", c.Bind, c.Port, err)
	}
	if _, err := list.Join(c.Join); err != nil {
		c.Log.Debug("nobody to gossip with yet", "error", err)
	}
	m := &Members{list: list, stop: make(chan struct{}), done: make(chan struct{})}
	go m.rejoin(c.Join)
	return m, nil
}

// rejoin ends with Close.
func (m *Members) rejoin(join []string) {
	defer close(m.done)
	tick := time.NewTicker(rejoinEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-tick.C:
			if m.list.NumMembers() <= len(join) {
				_, _ = m.list.Join(join) // whoever is down will be called again
			}
		}
	}
}

// Alive is who seems to be up.
func (m *Members) Alive() map[string]bool {
	out := map[string]bool{}
	for _, n := range m.list.Members() {
		out[n.Name] = n.State == memberlist.StateAlive
	}
	return out
}

// Close leaves and ends the gossip.
func (m *Members) Close() error {
	close(m.stop)
	<-m.done
	return errors.Join(m.list.Leave(200*time.Millisecond), m.list.Shutdown())
}

func (s *Server) startGossip() (*Members, error) {
	var join []string
	for _, p := range s.c.peers() {
		if p.name != s.c.Name {
			join = append(join, p.addr(s.c.Ports.Gossip))
		}
	}
	return JoinMembers(MembersConfig{Name: s.c.Name, Bind: s.c.Bind, Port: s.c.Ports.Gossip, Join: join, Key: s.c.GossipKey, Log: s.c.Log})
}
