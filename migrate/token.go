package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/pki"
)

func newTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token",
		Short:   "Tokens with which hosts join the cluster",
		Example: "  migrate token create --ttl 1h",
	}
	cmd.AddCommand(newTokenCreateCommand())
	return cmd
}

// tokenResult is what `token create -o json` prints.
type tokenResult struct {
	Token         string `json:"token"`
	Role          string `json:"role"`
	Server        bool   `json:"server"`
	ExpiresUnixMs int64  `json:"expires_unix_ms"`
	JoinAddress   string `json:"join_address,omitempty"`
}

func newTokenCreateCommand() *cobra.Command {
	var output, role, config string
	var ttl time.Duration
	var server bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token with which one host can join",
		Long: `Makes a token with which one host can join the cluster, once, until it expires. It is a secret, and the cluster keeps only a
hash of it. Tokens are made on a server of the cluster.`,
		Example: `  migrate token create
  migrate token create --ttl 10m --server`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if role != string(pki.RoleNode) {
				return fmt.Errorf("--role %s: only hosts join as yet, with the role node", role)
			}
			token := pki.Token{Secret: pki.NewSecret()}
			hash := sha256.Sum256(token.Secret)
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				r, err := a.cluster.CreateToken(ctx, &clusterapi.CreateTokenRequest{Hash: hash[:], TtlNs: int64(ttl), Server: server})
				if err != nil {
					return err
				}
				token.Fingerprint = r.GetFingerprint()
				res := tokenResult{token.String(), role, server, r.GetExpiresUnixNs() / int64(time.Millisecond), joinAddress(config)}
				if output != "json" {
					where := res.JoinAddress
					if where == "" {
						where = "ADDR"
					}
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "good for one host, for %v; on that host:  migrate join %s --token TOKEN\n", ttl, where)
					if err != nil {
						return err
					}
				}
				return printAs(cmd.OutOrStdout(), output, res, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, res.Token)
					return err
				})
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token is good for")
	cmd.Flags().StringVar(&role, "role", string(pki.RoleNode), "what joins with it: node")
	cmd.Flags().BoolVar(&server, "server", false, "the host may join as a server of the cluster, which votes")
	cmd.Flags().StringVar(&config, "config", defaultAgentFile, "configuration file of this host's agent")
	addOutputFlag(cmd, &output)
	return cmd
}
