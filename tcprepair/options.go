package tcprepair

import (
	"fmt"
	"slices"
)

// An option is one socket option with an integer value. Numbers are the kernel's for amd64 and arm64 (asm-generic/
// socket.h, linux/tcp.h, linux/in.h, linux/in6.h), so that a State can be checked on every system.
type option struct {
	name       string
	level, num int
	when       when
}

// when says at which point an option is set, and on which sockets it makes sense.
type when uint8

const (
	early   when = 1 << iota // before bind: changes how the socket is bound or routed, or is without effect there
	last                     // after all others
	late                     // on the complete connection: changes how data is queued, or is reset by connecting
	onConn                   // connections
	onListn                  // listeners
	onlyV6                   // sockets of AF_INET6
)

const (
	solSocket = 1
	solIP     = 0
	solTCP    = 6
	solIPv6   = 41

	both = onConn | onListn
)

// optionTable lists every integer option that is carried. An option that a kernel does not know is not recorded; one
// that is recorded and differs from the fresh socket's must be accepted by the destination, or Restore fails and names it.
// Not here, because they are handled apart: SO_REUSEADDR, SO_SNDBUF, SO_RCVBUF, SO_LINGER, SO_BINDTODEVICE,
// TCP_CONGESTION, TCP_WINDOW_CLAMP of connections (set after the window), TCP_MAXSEG of
// connections, TCP_FASTOPEN. And TCP_QUICKACK, which is the kernel's to change (tcp(7)): a restored connection starts by
// acknowledging at once, so that no peer waits.
var optionTable = []option{
	{"SO_DEBUG", solSocket, 1, early | both},
	{"SO_DONTROUTE", solSocket, 5, early | both},
	{"SO_BROADCAST", solSocket, 6, early | both},
	{"SO_KEEPALIVE", solSocket, 9, late | both},
	{"SO_OOBINLINE", solSocket, 10, early | both},
	{"SO_NO_CHECK", solSocket, 11, early | both},
	{"SO_PRIORITY", solSocket, 12, late | both}, // IP_TOS overwrites it
	{"SO_REUSEPORT", solSocket, 15, early | both},
	{"SO_RCVLOWAT", solSocket, 18, late | both},
	{"SO_TIMESTAMP", solSocket, 29, early | both},
	{"SO_TIMESTAMPNS", solSocket, 35, early | both},
	{"SO_MARK", solSocket, 36, early | both},
	{"SO_TIMESTAMPING", solSocket, 37, early | both},
	{"SO_RXQ_OVFL", solSocket, 40, early | both},
	{"SO_WIFI_STATUS", solSocket, 41, early | both},
	{"SO_PEEK_OFF", solSocket, 42, late | onConn},
	{"SO_LOCK_FILTER", solSocket, 44, last | both},
	{"SO_SELECT_ERR_QUEUE", solSocket, 45, early | both},
	{"SO_BUSY_POLL", solSocket, 46, early | both},
	{"SO_MAX_PACING_RATE", solSocket, 47, late | both},
	{"SO_ZEROCOPY", solSocket, 60, early | both},
	{"SO_TIMESTAMP_NEW", solSocket, 63, early | both},
	{"SO_TIMESTAMPNS_NEW", solSocket, 64, early | both},
	{"SO_TIMESTAMPING_NEW", solSocket, 65, early | both},
	{"SO_PREFER_BUSY_POLL", solSocket, 69, early | both},
	{"SO_RESERVE_MEM", solSocket, 73, late | both},
	{"SO_TXREHASH", solSocket, 74, early | both},
	{"SO_RCVMARK", solSocket, 75, early | both},
	{"SO_RCVPRIORITY", solSocket, 82, early | both},

	{"TCP_NODELAY", solTCP, 1, late | both},
	{"TCP_MAXSEG", solTCP, 2, early | onListn},
	{"TCP_CORK", solTCP, 3, late | both},
	{"TCP_KEEPIDLE", solTCP, 4, early | both},
	{"TCP_KEEPINTVL", solTCP, 5, early | both},
	{"TCP_KEEPCNT", solTCP, 6, early | both},
	{"TCP_SYNCNT", solTCP, 7, early | both},
	{"TCP_LINGER2", solTCP, 8, early | both},
	{"TCP_DEFER_ACCEPT", solTCP, 9, early | onListn},
	{"TCP_WINDOW_CLAMP", solTCP, 10, early | onListn},
	{"TCP_THIN_LINEAR_TIMEOUTS", solTCP, 16, early | both},
	{"TCP_USER_TIMEOUT", solTCP, 18, early | both},
	{"TCP_NOTSENT_LOWAT", solTCP, 25, early | both},
	{"TCP_SAVE_SYN", solTCP, 27, early | onListn},
	{"TCP_FASTOPEN_CONNECT", solTCP, 30, early | onListn},
	{"TCP_FASTOPEN_NO_COOKIE", solTCP, 34, early | onListn},
	{"TCP_INQ", solTCP, 36, early | both},
	{"TCP_TX_DELAY", solTCP, 37, early | both},
	{"TCP_RTO_MAX_MS", solTCP, 44, early | both},
	{"TCP_RTO_MIN_US", solTCP, 45, early | both},
	{"TCP_DELACK_MAX_US", solTCP, 46, early | both},

	{"IP_TOS", solIP, 1, early | both},
	{"IP_TTL", solIP, 2, early | both},
	{"IP_RECVOPTS", solIP, 6, early | both},
	{"IP_RETOPTS", solIP, 7, early | both},
	{"IP_PKTINFO", solIP, 8, early | both},
	{"IP_MTU_DISCOVER", solIP, 10, early | both},
	{"IP_RECVERR", solIP, 11, early | both},
	{"IP_RECVTTL", solIP, 12, early | both},
	{"IP_RECVTOS", solIP, 13, early | both},
	{"IP_FREEBIND", solIP, 15, early | both},
	{"IP_PASSSEC", solIP, 18, early | both},
	{"IP_TRANSPARENT", solIP, 19, early | both},
	{"IP_RECVORIGDSTADDR", solIP, 20, early | both},
	{"IP_MINTTL", solIP, 21, early | both},
	{"IP_BIND_ADDRESS_NO_PORT", solIP, 24, late | both}, // early, it would keep bind from taking the port
	{"IP_RECVFRAGSIZE", solIP, 25, early | both},
	{"IP_RECVERR_RFC4884", solIP, 26, early | both},
	{"IP_MULTICAST_LOOP", solIP, 34, early | both},
	{"IP_MULTICAST_ALL", solIP, 49, early | both},
	{"IP_LOCAL_PORT_RANGE", solIP, 51, early | both},

	{"IPV6_UNICAST_HOPS", solIPv6, 16, early | both | onlyV6},
	{"IPV6_2292PKTINFO", solIPv6, 2, early | both | onlyV6},
	{"IPV6_2292HOPOPTS", solIPv6, 3, early | both | onlyV6},
	{"IPV6_2292DSTOPTS", solIPv6, 4, early | both | onlyV6},
	{"IPV6_2292RTHDR", solIPv6, 5, early | both | onlyV6},
	{"IPV6_2292HOPLIMIT", solIPv6, 8, early | both | onlyV6},
	{"IPV6_FLOWINFO", solIPv6, 11, early | both | onlyV6},
	{"IPV6_MULTICAST_LOOP", solIPv6, 19, early | both | onlyV6},
	{"IPV6_MTU_DISCOVER", solIPv6, 23, early | both | onlyV6},
	{"IPV6_RECVERR", solIPv6, 25, early | both | onlyV6},
	{"IPV6_V6ONLY", solIPv6, 26, early | both | onlyV6},
	{"IPV6_MULTICAST_ALL", solIPv6, 29, early | both | onlyV6},
	{"IPV6_RECVERR_RFC4884", solIPv6, 31, early | both | onlyV6},
	{"IPV6_FLOWINFO_SEND", solIPv6, 33, early | both | onlyV6},
	{"IPV6_RECVPKTINFO", solIPv6, 49, early | both | onlyV6},
	{"IPV6_RECVHOPLIMIT", solIPv6, 51, early | both | onlyV6},
	{"IPV6_RECVHOPOPTS", solIPv6, 53, early | both | onlyV6},
	{"IPV6_RECVRTHDR", solIPv6, 56, early | both | onlyV6},
	{"IPV6_RECVDSTOPTS", solIPv6, 58, early | both | onlyV6},
	{"IPV6_RECVPATHMTU", solIPv6, 60, early | both | onlyV6},
	{"IPV6_DONTFRAG", solIPv6, 62, early | both | onlyV6},
	{"IPV6_RECVTCLASS", solIPv6, 66, early | both | onlyV6},
	{"IPV6_TCLASS", solIPv6, 67, early | both | onlyV6},
	{"IPV6_AUTOFLOWLABEL", solIPv6, 70, early | both | onlyV6},
	{"IPV6_ADDR_PREFERENCES", solIPv6, 72, early | both | onlyV6},
	{"IPV6_MINHOPCOUNT", solIPv6, 73, early | both | onlyV6},
	{"IPV6_RECVORIGDSTADDR", solIPv6, 74, early | both | onlyV6},
	{"IPV6_TRANSPARENT", solIPv6, 75, early | both | onlyV6},
	{"IPV6_RECVFRAGSIZE", solIPv6, 77, early | both | onlyV6},
	{"IPV6_FREEBIND", solIPv6, 78, early | both | onlyV6},
}

// windowClamp is the key of TCP_WINDOW_CLAMP of a connection in State.Options.
const windowClamp = "TCP_WINDOW_CLAMP"

// OptionNames lists the names that State.Options and Listener.Options may hold.
func OptionNames() []string {
	names := make([]string, 0, len(optionTable))
	for _, o := range optionTable {
		names = append(names, o.name)
	}
	slices.Sort(names)
	return names
}

var knownOptions = func() map[string]bool {
	m := make(map[string]bool, len(optionTable))
	for _, o := range optionTable {
		m[o.name] = true
	}
	return m
}()

// optionsProblem says what is wrong with a map of options from outside, or nothing.
func optionsProblem(opts map[string]int64) string {
	if len(opts) > maxOptions {
		return fmt.Sprintf("%d options", len(opts))
	}
	for name, v := range opts {
		if !knownOptions[name] {
			return fmt.Sprintf("%.40q is not a known option", name)
		}
		if v < -1<<31 || v >= 1<<32 {
			return fmt.Sprintf("%s: value %d does not fit", name, v)
		}
	}
	return ""
}
