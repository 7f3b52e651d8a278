package main

import (
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"migrate/e2e/demo"
)

func newDemoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a live server change hosts under its clients",
		Long: "Brings up three virtual hosts on this machine, starts a server with its own address, connects clients that can neither\n" +
			"retry nor reconnect, moves the server from host to host, prints what the clients saw, and removes everything.",
		Example: "  migrate demo --clients 16",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return demo.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Server, "server", "auto", "redis, builtin, or auto: redis where it is installed")
	f.IntVar(&o.Clients, "clients", 8, "connections")
	f.StringSliceVar(&o.Path, "path", []string{"host2", "host3", "host1"}, "hosts to move to, one after another")
	return cmd
}

// newDemoServerCommand is the demo's own server, for machines without redis-server.
func newDemoServerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-server ADDR",
		Short:  "The built-in server of the demo",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := net.Listen("tcp", args[0])
			if err != nil {
				return fmt.Errorf("listening on %s: %w", args[0], err)
			}
			return demo.Serve(cmd.Context(), l)
		},
	}
}
