package coordinator

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/pki"
)

// Every method of the service says who may call it, and nothing else does.
func TestEveryMethodHasItsAccess(t *testing.T) {
	service := "/" + clusterapi.Cluster_ServiceDesc.ServiceName + "/"
	all := map[string]bool{}
	for _, m := range clusterapi.Cluster_ServiceDesc.Methods {
		all[service+m.MethodName] = true
	}
	for _, m := range clusterapi.Cluster_ServiceDesc.Streams {
		all[service+m.StreamName] = true
	}
	for m := range all {
		if needed[accessTo[m]] == nil {
			t.Errorf("nobody has said who may call %s", m)
		}
	}
	for m := range accessTo {
		if !all[m] {
			t.Errorf("%s is no method", m)
		}
	}
}

// as calls with a certificate of its own, by whichever server comes first.
func (w *world) as(name string, roles ...pki.Role) clusterapi.ClusterClient {
	w.t.Helper()
	cred, err := w.ca.Issue(name, nil, roles...)
	if err != nil {
		w.t.Fatal(err)
	}
	var servers []client.Server
	for _, h := range hosts {
		servers = append(servers, client.Server{Name: h, Address: w.configs[h].Bind + ":7401"})
	}
	return w.dial(w.t, cred, servers).Cluster()
}

// TestRoles makes every call with every role, on each server in turn: what a role may not do is refused, the same on the leader and elsewhere.
func TestRoles(t *testing.T) {
	w := start(t, true)
	w.run("db")
	onDB := &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: "db"}}
	onPID := &clusterapi.Target{What: &clusterapi.Target_Pid{Pid: 77}, Host: "host1"}
	id := w.begin("db", "host2")
	w.await(id)
	// What each call answers is of no account, but for PermissionDenied. The workload is on host2 now, its migration was from host1.
	calls := []struct {
		name   string
		access access
		own    string // the node that may do it
		call   func(ctx context.Context, c clusterapi.ClusterClient) error
	}{
		{"Workloads", reads, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Workloads(ctx, &clusterapi.WorkloadsRequest{})
			return err
		}},
		{"Nodes", reads, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Nodes(ctx, &clusterapi.NodesRequest{})
			return err
		}},
		{"GetMigration", reads, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.GetMigration(ctx, &clusterapi.GetMigrationRequest{Id: id})
			return err
		}},
		{"WatchMigration", reads, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			s, err := c.WatchMigration(ctx, &clusterapi.WatchMigrationRequest{Id: id})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}},
		{"Run elsewhere", orders, "host3", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Run(ctx, &clusterapi.RunRequest{Host: "host3", Spec: &agentapi.WorkloadSpec{Name: "bad name!"}})
			return err
		}},
		{"Run anywhere", orders, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Run(ctx, &clusterapi.RunRequest{Spec: &agentapi.WorkloadSpec{Name: "bad name!"}})
			return err
		}},
		{"Stop of none", orders, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Stop(ctx, &clusterapi.StopRequest{Workload: "none"})
			return err
		}},
		{"Logs", orders, "host2", func(ctx context.Context, c clusterapi.ClusterClient) error {
			s, err := c.Logs(ctx, &clusterapi.LogsRequest{Workload: "db"})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}},
		{"Plan", orders, "host2", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Plan(ctx, &clusterapi.PlanRequest{Target: onDB, Destination: "host2"})
			return err
		}},
		{"Move", orders, "host2", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Move(ctx, &clusterapi.MoveRequest{Target: onDB, Destination: "host2"}) // to itself
			return err
		}},
		{"Move of a process", orders, "host1", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Move(ctx, &clusterapi.MoveRequest{Target: onPID, Destination: "host1"})
			return err
		}},
		{"Cancel", orders, "host1", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Cancel(ctx, &clusterapi.CancelRequest{Id: id})
			return err
		}},
		{"Retune", orders, "host1", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Retune(ctx, &clusterapi.RetuneRequest{Id: id})
			return err
		}},
		{"Drain", orders, "nobody", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Drain(ctx, &clusterapi.DrainRequest{Node: "nobody"})
			return err
		}},
		{"Undrain", decides, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Undrain(ctx, &clusterapi.UndrainRequest{Node: "nobody"})
			return err
		}},
		{"Resolve", decides, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.Resolve(ctx, &clusterapi.ResolveRequest{Id: "none"})
			return err
		}},
		{"CreateToken", admits, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.CreateToken(ctx, &clusterapi.CreateTokenRequest{})
			return err
		}},
		{"RedeemToken", admits, "", func(ctx context.Context, c clusterapi.ClusterClient) error {
			_, err := c.RedeemToken(ctx, &clusterapi.RedeemTokenRequest{})
			return err
		}},
	}
	for _, who := range []struct {
		name  string
		roles []pki.Role
	}{
		{"reader", []pki.Role{pki.RoleViewer}}, {"somebody", []pki.Role{pki.RoleOperator}}, {"host1", []pki.Role{pki.RoleNode}}, {"host2", []pki.Role{pki.RoleNode}},
		{"host3", []pki.Role{pki.RoleNode}}, {"nobody", []pki.Role{pki.RoleNode}}, {"host1", []pki.Role{pki.RoleNode, pki.RoleServer}}, {"none", nil},
	} {
		c := w.as(who.name, who.roles...)
		id := pki.Identity{Name: who.name, Roles: who.roles}
		for _, x := range calls {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := x.call(ctx, c)
			cancel()
			may := id.Has(needed[x.access]...) || x.access == orders && id.Has(pki.RoleNode) && x.own == who.name
			if refused := status.Code(err) == codes.PermissionDenied; refused == may {
				t.Errorf("%s by %s with %v: %v", x.name, who.name, who.roles, err)
			} else if refused && !strings.Contains(err.Error(), who.name) {
				t.Errorf("%s by %s with %v is refused without its name: %v", x.name, who.name, who.roles, err)
			}
		}
	}
}

// A node speaks for itself alone, whatever it writes into its requests or beside them.
func TestNodeSpeaksForItself(t *testing.T) {
	w := start(t, true)
	c := w.as("host4", pki.RoleNode)
	for name, call := range map[string]func(ctx context.Context) error{
		"RegisterNode": func(ctx context.Context) error {
			_, err := c.RegisterNode(ctx, &clusterapi.RegisterNodeRequest{Node: &agentapi.NodeInfo{Name: "host1", BootId: "b", ControlAddress: "127.0.0.1:1"}})
			return err
		},
		"Heartbeat": func(ctx context.Context) error {
			_, err := c.Heartbeat(ctx, &clusterapi.HeartbeatRequest{Node: "host1"})
			return err
		},
		"Report": func(ctx context.Context) error {
			_, err := c.Report(ctx, &clusterapi.ReportRequest{Node: "host1"})
			return err
		},
		"RequestCommit": func(ctx context.Context) error {
			_, err := c.RequestCommit(ctx, &clusterapi.RequestCommitRequest{Node: "host1"})
			return err
		},
	} {
		for what, ctx := range map[string]context.Context{"": t.Context(), " with a forged forwarding": forged(t.Context(), "host1")} {
			if err := call(ctx); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s%s: %v", name, what, err)
			}
		}
	}
	// In its own name, but of what is not its own.
	w.run("db")
	m := w.begin("db", "host2")
	ref := &agentapi.Ref{Migration: m}
	if _, err := c.RequestCommit(t.Context(), &clusterapi.RequestCommitRequest{Node: "host4", Ref: ref}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a commit for somebody else's migration: %v", err)
	}
	if _, err := c.Report(t.Context(), &clusterapi.ReportRequest{Node: "host4", Ref: ref, Role: agentapi.Role_ROLE_DESTINATION}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a report on somebody else's migration: %v", err)
	}
	w.await(m)
	ended := &clusterapi.ReportRequest_WorkloadEnded{WorkloadEnded: &clusterapi.WorkloadEnded{Workload: "db"}}
	reply, err := c.Report(t.Context(), &clusterapi.ReportRequest{Node: "host4", Ref: &agentapi.Ref{Instance: w.owner("db").GetInstance()}, Event: ended})
	if err != nil || !reply.GetStale() || w.owner("db").GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
		t.Errorf("the end of somebody else's workload: %v, %v; it is %v", reply, err, w.owner("db"))
	}
	if _, err := c.Run(forged(t.Context(), "host1"), &clusterapi.RunRequest{Host: "host1", Spec: &agentapi.WorkloadSpec{Name: "x", Argv: []string{"x"}}}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Run with a forged forwarding: %v", err)
	}
}

func forged(ctx context.Context, name string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, forwardedFor, name, forwardedRoles, string(pki.RoleServer))
}
