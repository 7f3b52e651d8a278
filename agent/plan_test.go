//go:build linux

package agent

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"testing"

	agentapi "migrate/agent/api"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
	"migrate/engine/task"
)

// A plan carries what the processes need of their destination: else a move would fail on it after the freeze.
func TestAPlanSaysWhatProcessesNeed(t *testing.T) {
	kerneltest.Root(t)
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("777"), 0); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	a := &Agent{log: log, node: &agentapi.NodeInfo{}, host: &host{log: log}}
	r, err := a.PlanSource(t.Context(), &agentapi.PlanSourceRequest{Target: &agentapi.PlanSourceRequest_Pid{Pid: int32(pid)}})
	if err != nil {
		t.Fatal(err)
	}
	var extra extraNeeds
	if err := json.Unmarshal(r.GetRequirements().GetExtra(), &extra); err != nil {
		t.Fatal(err)
	}
	n, err := task.UnmarshalNeeds(extra.Tasks)
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Processes) != 1 || n.Processes[0].PID != pid || n.Processes[0].OOMScoreAdj != 777 || len(n.Processes[0].Limits) != procfs.NumLimits {
		t.Errorf("needs %+v", n)
	}
	if against, err := task.CheckNeeds(n); err != nil || len(against) > 0 {
		t.Errorf("this host cannot take its own program: %v, %v", against, err)
	}
}
