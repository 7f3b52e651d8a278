package tcprepair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// saveOptions reads all options of the table that this kind of socket has.
func saveOptions(fd int, kind when, v6 bool) (map[string]int64, error) {
	opts := make(map[string]int64, len(optionTable))
	for _, o := range optionTable {
		if o.when&kind == 0 || o.when&onlyV6 != 0 && !v6 {
			continue
		}
		v, err := getInt(fd, o.level, o.num)
		if quiet(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", o.name, err)
		}
		opts[o.name] = int64(v)
	}
	return opts, nil
}

// restoreOptions sets the recorded options of one moment, where the fresh socket has another value.
func restoreOptions(fd int, opts map[string]int64, moment, kind when, v6 bool) error {
	for _, o := range optionTable {
		want, ok := opts[o.name]
		if !ok || o.when&moment == 0 || o.when&kind == 0 || o.when&onlyV6 != 0 && !v6 {
			continue
		}
		have, err := getInt(fd, o.level, o.num)
		if err == nil && int64(have) == int64(int32(want)) {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.num, int(int32(want))); err != nil {
			return fmt.Errorf("set %s to %d: %w", o.name, want, err)
		}
	}
	return nil
}
