package coordinator

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/pki"
)

// Who may call what. Who calls is taken from the certificate that the connection has shown, never from a request; a server that hands a
// call on to the leader says whose it is.

// access is what a method asks of its caller.
type access int

const (
	// reads: anybody with a certificate of the cluster.
	reads access = iota + 1
	// orders: operators and servers; a node for what is on it, which it holds anyway.
	orders
	// decides: operators and servers.
	decides
	// speaks: nodes, each in its own name (see speaksFor).
	speaks
	// admits: servers, which hold the authority of the cluster.
	admits
)

// accessTo has every method of service Cluster; one that is missing is refused to all.
var accessTo = map[string]access{
	clusterapi.Cluster_Workloads_FullMethodName:      reads,
	clusterapi.Cluster_WatchMigration_FullMethodName: reads,
	clusterapi.Cluster_GetMigration_FullMethodName:   reads,
	clusterapi.Cluster_ListMigrations_FullMethodName: reads,
	clusterapi.Cluster_ReadMigration_FullMethodName:  reads,
	clusterapi.Cluster_Nodes_FullMethodName:          reads,
	clusterapi.Cluster_WatchDrain_FullMethodName:     reads,
	clusterapi.Cluster_Events_FullMethodName:         reads,
	clusterapi.Cluster_Run_FullMethodName:            orders,
	clusterapi.Cluster_Stop_FullMethodName:           orders,
	clusterapi.Cluster_Logs_FullMethodName:           orders,
	clusterapi.Cluster_Plan_FullMethodName:           orders,
	clusterapi.Cluster_Move_FullMethodName:           orders,
	clusterapi.Cluster_Cancel_FullMethodName:         orders,
	clusterapi.Cluster_Retune_FullMethodName:         orders,
	clusterapi.Cluster_Drain_FullMethodName:          orders,
	clusterapi.Cluster_Undrain_FullMethodName:        decides, // a node that was taken out of use does not take itself back into it
	clusterapi.Cluster_Resolve_FullMethodName:        decides,
	clusterapi.Cluster_RegisterNode_FullMethodName:   speaks,
	clusterapi.Cluster_Heartbeat_FullMethodName:      speaks,
	clusterapi.Cluster_Report_FullMethodName:         speaks,
	clusterapi.Cluster_RequestCommit_FullMethodName:  speaks,
	clusterapi.Cluster_CreateToken_FullMethodName:    admits,
	clusterapi.Cluster_RedeemToken_FullMethodName:    admits,
}

// needed are the roles that may call a method with each access, whatever it is about.
var needed = map[access][]pki.Role{
	reads:   {pki.RoleViewer, pki.RoleOperator, pki.RoleNode, pki.RoleServer},
	orders:  {pki.RoleOperator, pki.RoleServer},
	decides: {pki.RoleOperator, pki.RoleServer},
	speaks:  {pki.RoleNode, pki.RoleServer},
	admits:  {pki.RoleServer},
}

// Metadata of a call that a server hands on to the leader: who called first and with which roles, as that server has verified it.
const (
	forwardedFor   = "migrate-forwarded-for"
	forwardedRoles = "migrate-forwarded-roles"
)

func isForwarded(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(forwardedFor)) > 0
}

// forwarding says in a call to the leader for whom it is.
func (s *Server) forwarding(ctx context.Context) context.Context {
	id, _ := caller(ctx)
	ctx = metadata.AppendToOutgoingContext(ctx, forwardedFor, id.Name)
	for _, r := range id.Roles {
		ctx = metadata.AppendToOutgoingContext(ctx, forwardedRoles, string(r))
	}
	return ctx
}

// caller is whoever called first; false for one that came without TLS, which is this program itself.
func caller(ctx context.Context) (pki.Identity, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Identity{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return pki.Identity{}, false
	}
	id, err := pki.PeerIdentity(info.State)
	if err != nil {
		return pki.Identity{}, true // somebody, who may do nothing
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if f := md.Get(forwardedFor); len(f) == 1 && id.Has(pki.RoleServer) && f[0] != "" {
		first := pki.Identity{Name: f[0]}
		for _, r := range md.Get(forwardedRoles) {
			first.Roles = append(first.Roles, pki.Role(r))
		}
		if len(first.Roles) == 0 { // a server of an earlier version, which has let the call in by its own rules
			first.Roles = id.Roles
		}
		return first, true
	}
	return id, true
}

// speaksFor refuses a node's word from the mouth of another.
func speaksFor(ctx context.Context, node string) error {
	if id, ok := caller(ctx); ok && id.Name != node {
		return status.Errorf(codes.PermissionDenied, "%s cannot speak for %s", id.Name, node)
	}
	return nil
}

// admit checks whether the caller may call the method. Where that depends on what the call is about, own tells whether it is about
// what is on the caller's host; nil, on a server that does not lead, leaves this to the leader.
func admit(ctx context.Context, method string, own func(node string) bool) error {
	id, ok := caller(ctx)
	if !ok {
		return nil
	}
	need := accessTo[method]
	if need == 0 || len(id.Roles) == 0 {
		return status.Errorf(codes.PermissionDenied, "%s, with roles %v, may not call %s", id.Name, id.Roles, method)
	}
	if id.Has(needed[need]...) {
		return nil
	}
	if need == orders && id.Has(pki.RoleNode) {
		if own == nil || own(id.Name) {
			return nil
		}
		return status.Errorf(codes.PermissionDenied, "%s is a node, which gives orders for what is on it alone; give this one on a server of the cluster (`migrate nodes` names them)", id.Name)
	}
	if need == admits {
		return status.Errorf(codes.PermissionDenied, "%s is no server of the cluster: this is done on one (`migrate nodes` names them)", id.Name)
	}
	return status.Errorf(codes.PermissionDenied, "%s, with %s, may not do this: it takes one of the %s", id.Name, rolesInWords(id.Roles), rolesInWords(needed[need]))
}

func rolesInWords(list []pki.Role) string {
	var words []string
	for _, r := range list {
		words = append(words, string(r))
	}
	if len(words) == 1 {
		return "role " + words[0]
	}
	return "roles " + strings.Join(words, ", ")
}

// isAbout tells whether a request is about what is on a node. What nobody knows is on none; the method says so itself.
func (s *Server) isAbout(req any, node string) bool {
	workload := func(name string) (on bool) {
		s.node.store.Read(func(st *fsm.State) { on = st.Workloads[name].GetHost() == node })
		return on
	}
	from := func(t *clusterapi.Target) bool {
		if t.GetWorkload() != "" {
			return workload(t.GetWorkload())
		}
		return t.GetHost() == node
	}
	migration := func(id string) bool {
		t := s.term()
		if t == nil {
			return false
		}
		m, err := t.find(id)
		return err == nil && m.GetSource() == node
	}
	switch r := req.(type) {
	case *clusterapi.RunRequest:
		return r.GetHost() == node
	case *clusterapi.StopRequest:
		return workload(r.GetWorkload())
	case *clusterapi.LogsRequest:
		return workload(r.GetWorkload())
	case *clusterapi.PlanRequest:
		return from(r.GetTarget())
	case *clusterapi.MoveRequest:
		return from(r.GetTarget())
	case *clusterapi.CancelRequest:
		return migration(r.GetId())
	case *clusterapi.RetuneRequest:
		return migration(r.GetId())
	case *clusterapi.DrainRequest:
		return r.GetNode() == node
	}
	return false
}

// admitHere is admit on the leader.
func (s *Server) admitHere(ctx context.Context, method string, req any) error {
	return admit(ctx, method, func(node string) bool { return s.isAbout(req, node) })
}
