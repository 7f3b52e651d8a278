package agent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/engine/kernel"
	"migrate/engine/procfs"
)

// describeNode collects what this host is and offers.
func describeNode(c *Config) (*agentapi.NodeInfo, error) {
	boot, err := procfs.Host.BootID()
	if err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	memory, err := meminfo("MemTotal")
	if err != nil {
		return nil, err
	}
	flags, err := cpuFeatures()
	if err != nil {
		return nil, err
	}
	n := &agentapi.NodeInfo{
		Name: c.Name, BootId: boot, ControlAddress: c.address(c.ControlPort), PagesAddress: c.address(c.PagesPort),
		MemoryBytes: memory, Cpus: uint32(runtime.NumCPU()), Arch: runtime.GOARCH, Kernel: unix.ByteSliceToString(uts.Release[:]),
		CpuFeatures: flags, Version: c.Version, Server: c.Server,
	}
	for _, f := range kernel.All() {
		if f.Have() {
			n.KernelFeatures = append(n.KernelFeatures, f.Name)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			n.Addresses = append(n.Addresses, ip.String())
		}
	}
	return n, nil
}

// meminfo reads one line of /proc/meminfo, in bytes.
func meminfo(field string) (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if f := strings.Fields(value); name == field && len(f) > 0 {
			kb, err := strconv.ParseUint(f[0], 10, 54)
			if err != nil {
				return 0, fmt.Errorf("/proc/meminfo: %s: %w", field, err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no line %s", field)
}

// cpuFeatures are the flags of the first processor (amd64) or its features (arm64).
func cpuFeatures() ([]string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		if name = strings.TrimSpace(name); name == "flags" || name == "Features" {
			return strings.Fields(value), nil
		}
	}
	return nil, nil
}

const (
	heartbeatEvery = time.Second
	registerRetry  = 500 * time.Millisecond
	callTime       = 5 * time.Second
)

// belong registers the host with the cluster, and says now and then that it is there, until the agent ends.
func (a *Agent) belong() {
	registered := false
	for a.ctx.Err() == nil {
		if !registered {
			err := a.register()
			if err != nil {
				a.log.Debug("not registered yet", "error", err)
				if !a.pause(registerRetry) {
					return
				}
				continue
			}
			registered = true
			a.log.Info("registered with the cluster")
		}
		if !a.pause(heartbeatEvery) {
			return
		}
		registered = a.heartbeat()
	}
}

func (a *Agent) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.ctx.Done():
		return false
	}
}

func (a *Agent) register() error {
	ctx, cancel := context.WithTimeout(a.ctx, callTime)
	defer cancel()
	reply, err := a.api.RegisterNode(ctx, &clusterapi.RegisterNodeRequest{Node: a.node})
	if err != nil {
		return err
	}
	for _, w := range reply.GetWorkloads() {
		if _, err := a.host.set.Get(w.GetInstance()); err != nil && !w.GetSpec().GetBare() && w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
			// The log says that it runs here, and it does not: its pid 1 was killed while the agent was away.
			a.log.Warn("a workload of this host is gone", "workload", w.GetName(), "instance", w.GetInstance())
			a.ended(&agentapi.Ref{Incarnation: reply.GetIncarnation(), Instance: w.GetInstance(), Epoch: w.GetEpoch()}, w.GetName(), int32(unix.SIGKILL))
		}
	}
	return nil
}

// heartbeat says that the host is there and what it holds. It reports false when the cluster wants a registration.
func (a *Agent) heartbeat() bool {
	ctx, cancel := context.WithTimeout(a.ctx, callTime)
	defer cancel()
	free, err := meminfo("MemAvailable")
	if err != nil {
		a.log.Warn("free memory", "error", err)
	}
	reply, err := a.api.Heartbeat(ctx, &clusterapi.HeartbeatRequest{Node: a.cfg.Name, BootId: a.node.GetBootId(), MemoryFreeBytes: free, Copies: a.copies()})
	if err != nil {
		return status.Code(err) != codes.NotFound
	}
	a.metrics.lastHeartbeat.SetToCurrentTime()
	a.incarnation.Store(reply.GetIncarnation())
	return !reply.GetRegister()
}
