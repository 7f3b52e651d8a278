package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentapi "migrate/agent/api"
)

// notify tells the service manager something, if one wants to know (sd_notify(3)).
func notify(ctx context.Context, state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if abstract, ok := strings.CutPrefix(path, "@"); ok {
		path = "\x00" + abstract
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixgram", path)
	if err != nil {
		return fmt.Errorf("the service manager's socket: %w", err)
	}
	_, err = c.Write([]byte(state))
	if err := errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("telling the service manager %s: %w", state, err)
	}
	return nil
}

// watchdogTime is how often the service manager wants to hear of this process (sd_watchdog_enabled(3)); 0: it does not.
func watchdogTime() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// watchdog says that the agent is well for as long as it answers on its socket, until ctx ends. One that hangs is then started
// anew by the service manager.
func watchdog(ctx context.Context, socket string, within time.Duration, log *slog.Logger) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("agent socket %s: %w", socket, err)
	}
	tick := time.NewTicker(within / 2)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, within/3)
		_, err := agentapi.NewAgentClient(conn).LocalInfo(ask, &agentapi.LocalInfoRequest{})
		cancel()
		if err == nil {
			err = notify(ctx, "WATCHDOG=1")
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("the watchdog is not told that all is well", "error", err)
		}
		select {
		case <-ctx.Done():
			return conn.Close()
		case <-tick.C:
		}
	}
}

// served says that the agent is ready, watches over it until ctx ends, and says that it stops.
func served(ctx context.Context, socket string, log *slog.Logger) error {
	if err := notify(ctx, "READY=1"); err != nil {
		return err
	}
	var err error
	if within := watchdogTime(); within > 0 {
		err = watchdog(ctx, socket, within, log)
	}
	<-ctx.Done()
	return errors.Join(err, notify(context.WithoutCancel(ctx), "STOPPING=1"))
}
