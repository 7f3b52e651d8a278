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
	"migrate/engine/span"
)

func newDumpCommand() *cobra.Command {
	var pid int
	var dir string
	var running, stopped bool
	var outside outsideFlags
	var external []string
	var explain explainFlag
	cmd := &cobra.Command{
		Use:     "dump --pid PID --dir DIR",
		Short:   "Write a checkpoint of a process and its descendants to disk",
		Long:    "Writes a checkpoint of a process and all its descendants. The tree ends once the checkpoint is complete, unless it\nis to be left running or stopped. When the dump fails, the tree runs on.\n\nThe peers of its TCP connections see nothing of the end: until the checkpoint is restored, a table of nftables drops\ntheir segments (inet migrate-dump-...; blob-tcp-lock.raw in DIR has its name). To give a checkpoint up, delete the table.",
		Example: "  migrate dump --pid 4711 --dir /var/tmp/4711\n  migrate dump --pid 4711 --dir /var/tmp/4711 --leave-running\n  migrate dump --pid 4711 --dir /var/tmp/4711 --tty new --external 'pipe:[81312]' --external-unix /run/dbus/socket=null",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx, print := explain.record(cmd.Context(), cmd.ErrOrStderr())
			defer func() { err = print(err) }()
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
			return span.Do(ctx, "destroy", src.Destroy)
		},
	}
	f := cmd.Flags()
	f.IntVar(&pid, "pid", 0, "root of the tree")
	f.StringVar(&dir, "dir", "", "directory for the checkpoint, new or empty")
	f.BoolVar(&running, "leave-running", false, "let the tree run on afterwards")
	f.BoolVar(&stopped, "leave-stopped", false, "leave the tree stopped (SIGSTOP) afterwards")
	explain.add(cmd)
	outside.add(cmd, "that of migrate restore")
	f.StringArrayVar(&external, "external", nil, "pipe or file that migrate restore --inherit-fd will give the program: pipe:[NUMBER], as /proc/PID/fd\nshows it, or a path; what waits in it stays behind; may be repeated")
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

// restoreFlags are the flags of `migrate restore`.
type restoreFlags struct {
	dir, pidfile, namespace, tty string
	inherit                      []string
	detach                       bool
	explain                      explainFlag
}

func newRestoreCommand() *cobra.Command {
	var o restoreFlags
	cmd := &cobra.Command{
		Use:   "restore --dir DIR",
		Short: "Bring a checkpoint on disk back",
		Long: "Brings a checkpoint back with the same process ids, as a child of this command, waits for its end and passes its\n" +
			"exit code on. Until then SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the first process of the tree.\n\n" +
			"A program that was dumped with --tty new gets the terminal of this command, which must not be detached then.\n" +
			"What was called --external at the dump is given by --inherit-fd, as to `criu restore`.",
		Example: "  migrate restore --dir /var/tmp/4711\n  migrate restore --dir /var/tmp/4711 --detach --pidfile /run/it.pid\n" +
			"  migrate restore --dir /var/tmp/4711 --inherit-fd 'fd[3]:pipe:[81312]' 3>>/var/log/it",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "directory of the checkpoint")
	f.BoolVar(&o.detach, "detach", false, "return once the tree runs")
	o.explain.add(cmd)
	f.StringVar(&o.tty, "tty", "", "new: insist on a terminal for the program, that of this command; one that was dumped with --tty new gets it in any case")
	f.StringArrayVar(&o.inherit, "inherit-fd", nil, "fd[N]:NAME: the descriptor N of this command stands for what was called --external NAME at the dump; may be\nrepeated")
	f.StringVar(&o.pidfile, "pidfile", "", "file to write the process id of the tree's root to")
	f.StringVar(&o.namespace, "pid-namespace", "same", "same: the ids are those of this pid namespace; new: in one of its own")
	cmd.MarkFlagsMutuallyExclusive("tty", "detach")
	_ = cmd.MarkFlagRequired("dir") // fails for unknown flags only
	return cmd
}

func (o *restoreFlags) run(cmd *cobra.Command) (err error) {
	if o.namespace != "same" && o.namespace != "new" {
		return fmt.Errorf("--pid-namespace %q is not known: use same or new", o.namespace)
	}
	own := terminalOf(cmd.InOrStdin(), cmd.OutOrStdout())
	switch {
	case o.tty != "" && o.tty != "new":
		return fmt.Errorf("--tty %q is not known: use new", o.tty)
	case o.tty == "new" && own == nil:
		return errors.New("--tty new gives the program the terminal of this command, and its standard input is none")
	}
	given, err := parseInherited(o.inherit)
	if err != nil {
		return err
	}
	opts := restore.DirOptions{NewPIDNamespace: o.namespace == "new", Detached: o.detach, External: given.open}
	if own != nil && !o.detach {
		opts.Terminal = own.take
	}
	var signals chan os.Signal
	if !o.detach {
		signals = make(chan os.Signal, 16)
		signal.Notify(signals, forwarded...)
		defer signal.Stop(signals)
	}
	defer func() { err = errors.Join(err, own.end()) }()
	ctx, print := o.explain.record(cmd.Context(), cmd.ErrOrStderr())
	r, err := restore.FromDir(ctx, o.dir, opts)
	if err := print(err); err != nil {
		return err
	}
	if err := own.begin(); err != nil {
		return err
	}
	if o.pidfile != "" {
		if err := os.WriteFile(o.pidfile, []byte(strconv.Itoa(r.PID)+"\n"), 0o644); err != nil {
			return err
		}
	}
	if o.detach {
		return nil
	}
	return waitFor(r, signals)
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
