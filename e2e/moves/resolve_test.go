//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// undecided is a migration that the protocol may not decide.
type undecided struct {
	*scope
	name, id, src, dst string
	endpoint           string
	before             instance
	all                []*talker
	rebooted           bool // the destination
}

// undecided begins a move whose destination's agent dies at the instant at which the copy may run there: nobody else knows whether it did.
func (s *scope) undecided(name, ip string) *undecided {
	s.Helper()
	u := &undecided{scope: s, name: name, endpoint: ip + ":6379"}
	u.src, u.dst, _ = s.roles() // the leader stays
	s.Run(name, []string{"--host", u.src, "--addr", ip + "/24"}, redisCommand(s.T)...)
	dst := cluster.Hosts.Host(u.dst)
	s.Cleanup(func() { // before the workload is stopped
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := cluster.Hosts.Heal(ctx); err != nil {
			s.Error(err)
		}
		if !u.rebooted { // the environment of its agent is to go
			u.reboot(ctx)
		}
		if err := cluster.AwaitNodes(ctx, 3); err != nil {
			s.Errorf("the cluster has not come back: %v", err)
		}
	})
	s.AwaitListener(u.endpoint)
	u.all = s.talkers(u.endpoint)[:1]
	s.talkOn(u.all)
	s.noRecords(u.dst) // the next agent would come to the point of an earlier move
	if err := dst.SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
	if err := dst.StartAgent(s.Ctx, "MIGRATE_FAILPOINT=destination.resume.before"); err != nil {
		s.Fatal(err)
	}
	s.until("its new agent to answer", func() bool {
		_, err := cluster.Hosts.Host(u.src).Exec(s.Ctx, cluster.Migrate, "plan", name, "--to", u.dst)
		return err == nil
	})
	u.before = s.psOn(u.src, name)
	reached := u.logged(u.dst, "failpoint reached")
	u.id = strings.TrimSpace(s.On(u.src, cluster.Migrate, "move", name, "--to", u.dst, "--detach", "--max-downtime", "5s"))
	s.until("the failpoint", func() bool { return u.logged(u.dst, "failpoint reached") > reached })
	return u
}

// reboot is a loss of power at the destination.
func (u *undecided) reboot(ctx context.Context) {
	u.Helper()
	u.rebooted = true
	if err := cluster.Hosts.Host(u.dst).Reboot(ctx); err != nil {
		u.Error(err)
	}
}

// logged counts a text in the log of a host's agent.
func (u *undecided) logged(host, text string) int {
	u.Helper()
	log, err := cluster.Hosts.Host(host).AgentLog(u.Ctx)
	if err != nil {
		u.Fatal(err)
	}
	return strings.Count(log, text)
}

// status is what `migrate status -o json` says.
func (u *undecided) status() (m migration) {
	u.Helper()
	if err := json.Unmarshal([]byte(u.On(u.src, cluster.Migrate, "status", u.id, "-o", "json")), &m); err != nil {
		u.Fatal(err)
	}
	return m
}

// still checks that the program runs nowhere and that the client waits.
func (u *undecided) still() {
	u.Helper()
	turns := u.all[0].turns.Load()
	time.Sleep(time.Second) // that nothing happens is not announced
	if now := u.all[0].turns.Load(); now != turns {
		u.Errorf("the client has had %d turns, and %d before", now, turns)
	}
}

// resolve has an operator decide for the source, after words that are refused, and checks that the program goes on there.
func (u *undecided) resolve() {
	u.Helper()
	verb := []string{cluster.Migrate, "resolve", u.id, "--run-at"}
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"host9", "--fenced", u.dst}, []string{"host9", u.src, u.dst}},
		{[]string{u.src, "--fenced", u.src}, []string{"--fenced " + u.dst}},
		{[]string{u.src, "--fenced", u.dst}, []string{"--accept-loss", u.dst}},
	} {
		u.mention(u.Fails(1, u.src, append(verb, c.args...)...), c.words...)
	}
	u.still()
	decided := u.logged(u.src, "an operator decides")
	u.mention(u.On(u.src, append(verb, u.src, "--fenced", u.dst, "--accept-loss")...), u.id, u.name, u.src)
	u.talkOn(u.all) // over the connection that it had, with the count that it had
	u.until("the end of the migration", func() bool { return u.status().Outcome == "source_running" && u.psOn(u.src, u.name).Migration == "" })
	if u.logged(u.src, "an operator decides") != decided+1 {
		u.Error("the leader's log does not have the decision once")
	}
	now := u.psOn(u.src, u.name)
	if now.Host != u.src || now.PID != u.before.PID || now.Epoch != u.before.Epoch+2 || now.State != "running" {
		u.Errorf("%s was %+v and is %+v", u.name, u.before, now)
	}
	u.runs(u.src, u.before.PID)
	u.mention(u.Fails(1, u.src, append(verb, u.src, "--fenced", u.dst, "--accept-loss")...), "nothing to resolve")
}

// TestResolveAfterReboot: the destination comes back without the copy that may have run. The cluster asks for an operator.
func TestResolveAfterReboot(t *testing.T) {
	s := begin(t, 2*time.Minute)
	u := s.undecided("rebooted", "10.77.0.94")
	u.still()
	u.reboot(s.Ctx)
	_, err := cluster.Hosts.Host(u.src).Exec(s.Ctx, cluster.Migrate, "watch", u.id)
	s.exits(5, err)
	if m := u.status(); m.State != "needs_operator" || m.Outcome != "needs_operator" {
		t.Errorf("the migration is %+v", m)
	}
	u.still()
	u.resolve()
	s.Move(u.name, u.dst, "--max-downtime", "5s") // the host takes it again
	s.talkOn(u.all)
}

// TestResolveWhileGone: the destination is gone, with the copy that may have run. The cluster waits for it, until an operator says that it is
// fenced. When it is back it has to take the same program again.
func TestResolveWhileGone(t *testing.T) {
	s := begin(t, 2*time.Minute)
	u := s.undecided("marooned", "10.77.0.95")
	if err := cluster.Hosts.Cut(s.Ctx, u.dst); err != nil {
		t.Fatal(err)
	}
	s.until("the cluster to wait for "+u.dst, func() bool {
		return strings.Contains(s.On(u.src, cluster.Migrate, "status", u.id), u.dst+" cannot be reached")
	})
	if m := u.status(); m.State != "committed" || m.Outcome == "source_running" {
		t.Errorf("the migration is %+v", m)
	}
	u.resolve()
	u.reboot(s.Ctx) // it was switched off, as the operator has said
	if err := cluster.Hosts.Heal(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	s.Move(u.name, u.dst, "--max-downtime", "5s")
	s.talkOn(u.all)
}
