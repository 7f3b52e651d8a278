//go:build linux

package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"migrate/e2e/cluster"
)

// inventory prints what moves could leave behind on a host: processes, cgroups, devices, addresses, rules, files. What is kept of programs
// that have ended, for `migrate logs`, is no leftover.
const inventory = `
for p in /proc/[0-9]*; do c=$(cat $p/comm 2>/dev/null); case "$c" in ''|sh|cat|find|ip|nft|sort|migrate) ;; *) echo "process $c";; esac; done | sort
find /sys/fs/cgroup -mindepth 2 -type d | grep -v -e '/exec' -e '/migrate/' -e '/migrate$' | sort | sed 's/^/cgroup /'
ip -o link | sed 's/^[0-9]*: //; s/[@:].*//; s/^/device /' | sort
ip -o addr | sed 's/^[0-9]*: //; s/  */ /g; s/valid_lft.*//; s/^/address /' | sort
nft list ruleset | sed 's/^/rule /'
find /tmp /run /var/lib/migrate -not -path '/var/lib/migrate/raft*' -not -path '/var/lib/migrate/workloads/*' | sort | sed 's/^/file /'
`

// leftovers compares the hosts with how they were.
type leftovers struct {
	r      *rig
	before map[string]string // by host
}

// leavesNothing begins a test that is to leave the hosts as they are now.
func (r *rig) leavesNothing() *leftovers {
	r.Helper()
	l := &leftovers{r, map[string]string{}}
	for _, h := range cluster.Hosts.Hosts() {
		l.before[h.Name()] = r.On(h.Name(), "sh", "-c", inventory)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := l.check(ctx, 40*time.Second, func(string) bool { return true }); err != nil {
			r.Error(err)
		}
	})
	return l
}

// soon are what goes with the move. Records of moves go when the cluster has been asked, which takes its time.
func soon(line string) bool { return !strings.HasPrefix(line, "file ") }

// check waits until there is nothing new, of what counts.
func (l *leftovers) check(ctx context.Context, d time.Duration, counts func(line string) bool) error {
	var errs []error
	for host, was := range l.before {
		var news []string
		err := until(ctx, "what is left on "+host+" to go", d, func() bool {
			out, err := cluster.Hosts.Host(host).Exec(ctx, "sh", "-c", inventory)
			news = slices.DeleteFunc(added(was, out), func(line string) bool { return !counts(line) })
			return err == nil && len(news) == 0
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %s", err, strings.Join(news, "; ")))
			l.before[host] += strings.Join(news, "\n") + "\n" // it is said once
		}
	}
	return errors.Join(errs...)
}

// added are the lines of a text that another one has not, or not as often.
func added(before, now string) (list []string) {
	rest := strings.Split(before, "\n")
	for line := range strings.SplitSeq(now, "\n") {
		if i := slices.Index(rest, line); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			list = append(list, line)
		}
	}
	return list
}
