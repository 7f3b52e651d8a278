package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"migrate/e2e/lab"
)

// Exit codes of a command that could not be run, as shells and env(1) give them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

func newLabExecCommand(f *labFlags) *cobra.Command {
	var env []string
	var dir string
	cmd := &cobra.Command{
		Use:   "exec HOST -- CMD...",
		Short: "Run a command inside a host",
		Long: "Runs a command inside a virtual host as root, with this command's stdin, stdout and stderr, and ends with its exit code\n" +
			"(128 and the number of a signal that ended it; 127 if there is no such command). What it leaves running runs on.",
		Example:           "  migrate lab exec host1 -- migrate run --addr 10.77.0.50/24 -- redis-server\n  echo hello | migrate lab exec host2 -- sh -c 'cat > /root/file'",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: f.completeHosts(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withHost(cmd.Context(), args[0], func(h *lab.Host) error {
				// A signal to us is passed on to the command; it is not a reason to kill it.
				c := h.Command(context.WithoutCancel(cmd.Context()), args[1:]...)
				c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
				c.Dir, c.Env = dir, env
				if term := os.Getenv("TERM"); term != "" {
					c.Env = append([]string{"TERM=" + term}, env...)
				}
				return runPassingSignals(c)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "add KEY=VALUE to the command's environment")
	cmd.Flags().StringVarP(&dir, "cwd", "C", "", "the command's working directory in the host (default /)")
	return cmd
}

func runPassingSignals(c *lab.Cmd) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := c.Start(); err != nil {
		var start *lab.StartError
		switch {
		case !errors.As(err, &start):
			return err
		case errors.Is(err, fs.ErrNotExist):
			return &exitError{code: exitNotFound, err: err}
		}
		return &exitError{code: exitCannotRun, err: err}
	}
	ended := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case <-ended:
				return
			case s := <-signals:
				_ = c.Signal(s.(syscall.Signal)) // it fails when the command has just ended
			}
		}
	}()
	err := c.Wait()
	close(ended)
	<-passed
	var exit *lab.ExitError
	if errors.As(err, &exit) {
		return &exitError{code: exit.ExitCode()}
	}
	return err
}
