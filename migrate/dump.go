//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"migrate/engine/dump"
	"migrate/engine/restore"
)

func newDumpCommand() *cobra.Command {
	var pid int
	var dir string
	var running, stopped bool
	var outside outsideFlags
	var external []string
	cmd := &cobra.Command{
		Use:     "dump --pid PID --dir DIR",
		Short:   "Write a checkpoint of a process and its descendants to disk",
		Long:    "Writes a checkpoint of a process and all its descendants. The tree ends once the checkpoint is complete, unless it\nis to be left running or stopped. When the dump fails, the tree runs on.\n\nThe peers of its TCP connections see nothing of the end: until the checkpoint is restored, a table of nftables drops\ntheir segments (inet migrate-dump-...; blob-tcp-lock.raw in DIR has its name). To give a checkpoint up, delete the table.",
		Example: "  migrate dump --pid 4711 --dir /var/tmp/4711\n  migrate dump --pid 4711 --dir /var/tmp/4711 --leave-running",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			opts := dump.Options{Target: dump.Target{PID: pid}, LockConnections: true, SameHost: true}
			if err := outside.setDump(&opts); err != nil {
				return err
			}
			if opts.External, err = externalFiles(external); err != nil {
				return err
			}
			src, err := dump.Open(ctx, opts)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, src.Close(ctx)) }()
			if err := dump.ToDir(ctx, src, dir); err != nil {
				return printDumpObstacles(cmd, err)
			}
			switch {
			case running:
				return src.Thaw(ctx)
			case stopped:
				return src.Stop(ctx)
			}
			return src.Destroy(ctx)
		},
	}
	f := cmd.Flags()
	f.IntVar(&pid, "pid", 0, "root of the tree")
	f.StringVar(&dir, "dir", "", "directory for the checkpoint, new or empty")
	f.BoolVar(&running, "leave-running", false, "let the tree run on afterwards")
	f.BoolVar(&stopped, "leave-stopped", false, "leave the tree stopped (SIGSTOP) afterwards")
	outside.add(cmd)
	f.StringArrayVar(&external, "external", nil, "pipe or file that migrate restore --inherit-fd will give the program: pipe:[NUMBER], as /proc/PID/fd\nshows it, or a path; may be repeated")
	cmd.MarkFlagsMutuallyExclusive("leave-running", "leave-stopped")
	_ = cmd.MarkFlagRequired("pid") // fails for unknown flags only
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

// printDumpObstacles lists what is not carried, beyond the first that the error names.
func printDumpObstacles(cmd *cobra.Command, err error) error {
	var list *dump.ObstacleError
	if errors.As(err, &list) {
		for _, o := range list.List {
			if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "  - %v\n", o); err != nil {
				return err
			}
		}
	}
	return err
}

func newRestoreCommand() *cobra.Command {
	var dir, pidfile, namespace, tty string
	var inherit []string
	var detach bool
	cmd := &cobra.Command{
		Use:     "restore --dir DIR",
		Short:   "Bring a checkpoint on disk back",
		Long:    "Brings a checkpoint back with the same process ids, as a child of this command, waits for its end and passes its\nexit code on. Until then SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the first process of the tree.\n\nA program that was dumped with --tty new gets the terminal of this command; it cannot be detached then.\nWhat was called --external at the dump is given by --inherit-fd, as to `criu restore`.",
		Example: "  migrate restore --dir /var/tmp/4711\n  migrate restore --dir /var/tmp/4711 --inherit-fd 'fd[3]:pipe:[81312]' 3>&1\n  migrate restore --dir /var/tmp/4711 --detach --pidfile /run/it.pid",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if tty != "" && tty != "new" {
				return fmt.Errorf("--tty %q is not known: use new", tty)
			}
			if namespace != "same" && namespace != "new" {
				return fmt.Errorf("--pid-namespace %q is not known: use same or new", namespace)
			}
			given, err := parseInherited(inherit)
			if err != nil {
				return err
			}
			var signals chan os.Signal
			if !detach {
				signals = make(chan os.Signal, 16)
				signal.Notify(signals, forwarded...)
				defer signal.Stop(signals)
			}
			opts := restore.DirOptions{NewPIDNamespace: namespace == "new", External: given.open}
			own := terminalOf(cmd.InOrStdin(), cmd.OutOrStdout())
			if own != nil && !detach {
				opts.Terminal = own.take
			}
			r, err := restore.FromDir(cmd.Context(), dir, opts)
			if err != nil {
				return errors.Join(err, own.end())
			}
			defer func() { err = errors.Join(err, own.end()) }()
			if own != nil {
				if err := own.begin(); err != nil {
					return err
				}
			}
			if pidfile != "" {
				if err := os.WriteFile(pidfile, []byte(strconv.Itoa(r.PID)+"\n"), 0o644); err != nil {
					return err
				}
			}
			if detach {
				return nil
			}
			return waitFor(r, signals)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "directory of the checkpoint")
	f.BoolVar(&detach, "detach", false, "return once the tree runs")
	f.StringVar(&tty, "tty", "", "new: as at the dump, for a program that gets the terminal of this command")
	f.StringArrayVar(&inherit, "inherit-fd", nil, "fd[N]:NAME: the descriptor N of this command stands for what was called --external NAME at the dump; may be repeated")
	f.StringVar(&pidfile, "pidfile", "", "file to write the process id of the tree's root to")
	f.StringVar(&namespace, "pid-namespace", "same", "same: the ids are those of this pid namespace; new: in one of its own")
	_ = cmd.MarkFlagRequired("dir") // fails for unknown flags only
	return cmd
}

// forwarded are the signals that a restore in the foreground passes on.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// waitFor waits for the end of a restored tree's root, which gets the signals, and passes its exit code on.
func waitFor(r *restore.Restored, signals <-chan os.Signal) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended, and its parent has seen it
		return fmt.Errorf("pid %d: pidfd_open: %w", r.PID, err)
	}
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	type end struct {
		status unix.WaitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		st, err := r.Wait()
		ended <- end{st, err}
	}()
	for {
		select {
		case sig := <-signals:
			if n, ok := sig.(unix.Signal); ok && fd >= 0 {
				if err := unix.PidfdSendSignal(fd, n, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("pid %d: passing on %v: %w", r.PID, sig, err)
				}
			}
		case e := <-ended:
			return exitOf(r.PID, e.status, e.err)
		}
	}
}

// exitOf is the exit of this program that passes on how the root of a tree has ended.
func exitOf(pid int, status unix.WaitStatus, err error) error {
	switch {
	case err != nil:
		return err
	case status.Signaled():
		return &exitError{code: 128 + int(status.Signal()), err: fmt.Errorf("pid %d was ended by %s", pid, unix.SignalName(status.Signal()))}
	case status.ExitStatus() != 0:
		return &exitError{code: status.ExitStatus()}
	}
	return nil
}
