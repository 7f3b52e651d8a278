package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"migrate/coordinator"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/pki"
)

// tokenVariable is the environment variable that holds a token, which is then not in the list of processes.
const tokenVariable = "MIGRATE_TOKEN"

// joinTime bounds a join; the election of a leader fits in.
const joinTime = 30 * time.Second

func newJoinCommand() *cobra.Command {
	var h hostFlags
	var text string
	var server bool
	cmd := &cobra.Command{
		Use:   "join ADDR",
		Short: "Make this host a member of a cluster",
		Long: `Makes this host a member of the cluster whose authority is at ADDR, the host on which ` + "`migrate init`" + ` was run. The host makes
its key itself and gets a certificate for it; the token tells it which authority to believe. Afterwards its agent can be
started. With --server the host becomes a voter of the cluster once its agent runs.`,
		Example: `  migrate join 192.0.2.11 --token mj1_...
  migrate join 192.0.2.11 --token - --server < token`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := readToken(cmd, text)
			if err != nil {
				return err
			}
			addr := args[0]
			if _, _, err := net.SplitHostPort(addr); err != nil {
				addr = net.JoinHostPort(strings.Trim(addr, "[]"), strconv.Itoa(coordinator.DefaultJoinPort))
			}
			if err := h.join(cmd.Context(), addr, token, server); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, at %s, has joined the cluster.\nstart its agent:    systemctl enable --now migrate-agent   (or: migrate agent --config %s)\n", h.name, h.advertise, h.config)
			return err
		},
	}
	h.add(cmd)
	cmd.Flags().StringVar(&text, "token", "", "the token, or - to read it from stdin (default $"+tokenVariable+")")
	cmd.Flags().BoolVar(&server, "server", false, "be a server of the cluster, which votes; the token must be one with --server")
	return cmd
}

func readToken(cmd *cobra.Command, text string) (pki.Token, error) {
	switch text {
	case "":
		if text = os.Getenv(tokenVariable); text == "" {
			return pki.Token{}, errors.New("a host joins with a token: make one with `migrate token create` on a server, and give it with --token")
		}
	case "-":
		b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4096))
		if err != nil {
			return pki.Token{}, fmt.Errorf("the token: %w", err)
		}
		text = string(b)
	}
	return pki.ParseToken(text)
}

func (h *hostFlags) join(ctx context.Context, addr string, token pki.Token, server bool) error {
	towards, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	ip, err := h.complete(towards)
	if err != nil {
		return err
	}
	key, request, err := pki.NewRequest(h.name, ip)
	if err != nil {
		return err
	}
	reply, err := askToJoin(ctx, addr, token, &clusterapi.JoinRequest{Secret: token.Secret, Request: request, Server: server})
	if err != nil {
		return err
	}
	cred, err := pki.Accept(key, h.name, token.Fingerprint, reply.GetCertificate(), reply.GetAuthority())
	if err != nil {
		return err
	}
	f := h.file()
	f.Server, f.Joined, f.Servers = server, server, reply.GetServers()
	if server {
		f.Servers = append(f.Servers, h.name+"="+h.advertise)
	}
	f.Ports.Control, f.Ports.Pages = int(reply.GetControlPort()), int(reply.GetPagesPort())
	f.Ports.Raft, f.Ports.Gossip = int(reply.GetRaftPort()), int(reply.GetGossipPort())
	return h.install(f, cred, nil)
}

// askToJoin makes the one call. It is made again, with the same key, only by gRPC and only where it did not leave.
func askToJoin(ctx context.Context, addr string, token pki.Token, req *clusterapi.JoinRequest) (_ *clusterapi.JoinReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(pki.JoinClientTLS(token.Fingerprint))))
	if err != nil {
		return nil, fmt.Errorf("connection to %s: %w", addr, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	reply, err := clusterapi.NewEnrolmentClient(conn).Join(ctx, req)
	switch {
	case err == nil:
		return reply, nil
	case status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), pki.ErrOtherAuthority.Error()):
		return nil, fmt.Errorf("%s: %w; check the address, and that the token is whole", addr, pki.ErrOtherAuthority)
	case status.Code(err) == codes.Unavailable:
		return nil, fmt.Errorf("%s does not let hosts join: %s; ADDR is the host on which `migrate init` was run, and its agent must run", addr, client.Message(err))
	}
	return nil, errors.New(client.Message(err))
}
