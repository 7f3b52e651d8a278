// Command migrate moves running Linux programs, with their memory, files and live TCP connections, from one host
// to another. There is one file per verb: it parses its arguments, calls what does the work, prints the answer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the linker (see Makefile).
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // the first signal asks for an end, the second one is the end
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program, with everything it touches passed in. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			_, _ = fmt.Fprintf(stderr, "migrate: %v\n", exit.err)
		}
		return exit.code
	}
	_, _ = fmt.Fprintf(stderr, "migrate: %v\n", err)
	return 1
}

// exitError is an error with an exit code of its own. Without err it prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// bareNumber is the error of a time that was given without its unit.
var bareNumber = regexp.MustCompile(`: time: missing unit in duration "([0-9.]+)"$`)

// flagError says how a time is written.
func flagError(err error) error {
	if m := bareNumber.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s: a time has a unit, such as %sms or %ss", strings.TrimSuffix(err.Error(), m[0]), m[1], m[1])
	}
	return err
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "migrate",
		Short:         "Move running programs between hosts",
		Long:          "migrate moves a running Linux program (a tree of processes with its memory, files, timers and live\nTCP connections) from one host to another while its clients stay connected.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().String("socket", "", "the agent's socket (default $MIGRATE_SOCKET or "+defaultSocket+")")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.AddCommand(
		newRunCommand(), newPsCommand(), newLogsCommand(), newAttachCommand(), newStopCommand(),
		newPlanCommand(), newMoveCommand(), newStatusCommand(), newWatchCommand(), newCancelCommand(), newSetCommand(), newResolveCommand(), newHistoryCommand(), newEventsCommand(), newDashboardCommand(),
		newInitCommand(), newTokenCommand(), newJoinCommand(), newAgentCommand(), newNodesCommand(), newDrainCommand(), newUndrainCommand(), newCheckCommand(), newDumpCommand(), newRestoreCommand(), newLabCommand(), newDemoCommand(), newDemoServerCommand(), newManCommand(), newVersionCommand(),
	)
	return root
}
