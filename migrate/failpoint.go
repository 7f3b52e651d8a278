package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
)

// failpoint returns what is called at each point of a move, such as "source.freeze.after"; nil when tests have asked for nothing.
// MIGRATE_FAILPOINT names points, separated by commas, at which the agent ends as kill -9 would end it. MIGRATE_FAILPOINT_SOCKET
// is a socket whose owner is told of every point, and holds the agent there until it closes the connection.
func failpoint(log *slog.Logger) func(string) {
	wanted := map[string]bool{}
	for p := range strings.SplitSeq(os.Getenv("MIGRATE_FAILPOINT"), ",") {
		wanted[p] = p != ""
	}
	socket := os.Getenv("MIGRATE_FAILPOINT_SOCKET")
	if len(os.Getenv("MIGRATE_FAILPOINT")) == 0 && socket == "" {
		return nil
	}
	return func(p string) {
		if wanted[p] {
			log.Warn("failpoint reached", "point", p)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal takes effect before this goroutine could go on
		}
		if socket != "" {
			if err := holdAt(socket, p); err != nil {
				log.Debug("nobody holds the agent", "point", p, "error", err)
			}
		}
	}
}

// holdAt tells the owner of a socket of a point, and returns once it has closed the connection.
func holdAt(socket, point string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintln(c, point); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}
