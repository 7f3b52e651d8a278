//go:build linux

package agent

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/port"
	"migrate/agent/workload"
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

// A thread of the kernel is refused as a request that cannot work, and not as a failure of the agent.
func TestAPlanRefusesKernelThreads(t *testing.T) {
	kerneltest.Root(t)
	if comm, err := os.ReadFile("/proc/2/comm"); err != nil || strings.TrimSpace(string(comm)) != "kthreadd" {
		t.Skip("no kernel thread can be seen from here")
	}
	log := slog.New(slog.DiscardHandler)
	a := &Agent{log: log, node: &agentapi.NodeInfo{}, host: &host{log: log}}
	_, err := a.PlanSource(t.Context(), &agentapi.PlanSourceRequest{Target: &agentapi.PlanSourceRequest_Pid{Pid: 2}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "pid 2") || !strings.Contains(err.Error(), "kernel thread") {
		t.Errorf("kthreadd: %v", err)
	}
}

// A destination names each thing that it lacks.
func TestAPlanNamesWhatADestinationLacks(t *testing.T) {
	node := &agentapi.NodeInfo{Arch: "amd64", CpuFeatures: []string{"sse2", "avx"}, KernelFeatures: []string{"time namespaces"}, Addresses: []string{"127.0.0.5/8"}}
	for name, c := range map[string]struct {
		needs *agentapi.Requirements
		kind  string // "": nothing is lacking
		says  string
	}{
		"nothing":        {needs: &agentapi.Requirements{Arch: "amd64", CpuFeatures: []string{"avx", "sse2"}, KernelFeatures: []string{"time namespaces"}, MemoryBytes: 1 << 20}},
		"architecture":   {&agentapi.Requirements{Arch: "arm64"}, "processor", "arm64"},
		"CPU feature":    {&agentapi.Requirements{Arch: "amd64", CpuFeatures: []string{"avx", "avx512f"}}, "processor", "lacks avx512f,"},
		"kernel feature": {&agentapi.Requirements{KernelFeatures: []string{"time namespaces", "pidfd_getfd(2)"}}, "kernel", "lacks pidfd_getfd(2)"},
		"memory":         {&agentapi.Requirements{MemoryBytes: 1 << 60}, "memory", "1099511627840 MiB are needed"},
		"other network":  {&agentapi.Requirements{Addresses: []string{"198.51.100.7/24"}}, "address", "no address in the network 198.51.100.0/24"},
		"its own":        {&agentapi.Requirements{Addresses: []string{"127.0.0.1/8"}}, "address", "in use there"},
		"an address":     {needs: &agentapi.Requirements{Addresses: []string{"127.0.0.77/8"}, Mtu: 1280}},
		"MTU":            {&agentapi.Requirements{Addresses: []string{"127.0.0.77/8"}, Mtu: 1 << 20}, "address", "that of the source 1048576"},
		"MTU, bare":      {&agentapi.Requirements{Addresses: []string{"127.0.0.77/8"}, Mtu: 1 << 20, Extra: []byte(`{"bare":true}`)}, "address", "that of the source 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{cfg: Config{Name: "host2"}, log: slog.New(slog.DiscardHandler), node: node, host: &host{ports: &port.Host{}, bridge: "lo", set: &workload.Set{}}}
			r, err := a.PlanDestination(t.Context(), &agentapi.PlanDestinationRequest{Requirements: c.needs})
			if err != nil {
				t.Fatal(err)
			}
			o := r.GetObstacles()
			switch {
			case c.kind == "" && len(o) > 0:
				t.Errorf("obstacles where nothing is lacking: %v", o)
			case c.kind != "" && (len(o) != 1 || o[0].GetKind() != c.kind || o[0].GetHost() != "host2" || !strings.Contains(o[0].GetReason(), c.says)):
				t.Errorf("obstacles %v, want one of kind %q that says %q", o, c.kind, c.says)
			}
		})
	}
}
