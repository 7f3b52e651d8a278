package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// statusField returns a number from /proc/TID/status, decimal, or hexadecimal for the signal sets (proc_pid_status(5)).
func statusField(tid int, field string) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("thread %d: %w", tid, ErrGone)
	} else if err != nil {
		return 0, err
	}
	return parseStatusField(string(raw), field)
}

func parseStatusField(status, field string) (uint64, error) {
	base := 10
	if strings.HasPrefix(field, "Sig") || field == "ShdPnd" {
		base = 16
	}
	for line := range strings.Lines(status) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == field {
			n, err := strconv.ParseUint(strings.TrimSpace(value), base, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/PID/status: %s: %w", field, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", field)
}
