package procfs

import (
	"io"

	"github.com/moby/sys/mountinfo"
)

// ParseMounts parses /proc/PID/mountinfo (proc_pid_mountinfo(5)); the escapes in paths are undone.
func ParseMounts(r io.Reader) ([]*mountinfo.Info, error) {
	return mountinfo.GetMountsFromReader(r, nil)
}
