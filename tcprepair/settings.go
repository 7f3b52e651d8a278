package tcprepair

import "fmt"

// Settings are what a program has set on a socket, in whatever state it is.
type Settings struct {
	// UID owns the socket, as fstat(2) tells: who may join its group of SO_REUSEPORT, and what rules of a firewall go by.
	UID     uint32
	Buffers Buffers
	Linger  Linger
	// ReuseAddr is SO_REUSEADDR, which repair overwrites.
	ReuseAddr bool
	// Congestion is the name of the congestion control, such as "cubic".
	Congestion string
	// Device is the interface that the socket is bound to (SO_BINDTODEVICE); mostly empty.
	Device string
	// Options are the values of the other socket options that the kernel told, by their names, such as
	// "TCP_NODELAY". Only names that OptionNames lists are accepted.
	Options map[string]int64
	// Values are those of options that are no integers, where they are not empty: see valueTable.
	Values map[string][]byte
}

// A value is a socket option of more than an integer.
type value struct {
	name       string
	level, num int
	max        int // bytes
}

// Names of values that are set in ways of their own.
const (
	socketFilter = "SO_ATTACH_FILTER" // struct sock_filter, 8 bytes each
	// KeysMD5 is the key of Settings.Values for the keys of TCP_MD5SIG, as sock_diag(7) tells them: struct tcp_diag_md5sig, one
	// after another.
	KeysMD5     = "TCP_MD5SIG"
	keyMD5Size  = 100
	maxKeysMD5  = 1024
	maxFilter   = 4096 // BPF_MAXINSNS
	sizeTimeval = 16
)

var valueTable = []value{
	{"SO_RCVTIMEO", solSocket, 20, sizeTimeval},
	{"SO_SNDTIMEO", solSocket, 21, sizeTimeval},
	{"IP_OPTIONS", solIP, 4, 40},
	{"TCP_FASTOPEN_KEY", solTCP, 33, 32},
	{"IPV6_HOPOPTS", solIPv6, 54, 2048},
	{"IPV6_RTHDRDSTOPTS", solIPv6, 55, 2048},
	{"IPV6_RTHDR", solIPv6, 57, 2048},
	{"IPV6_DSTOPTS", solIPv6, 59, 2048},
	{socketFilter, solSocket, 26, 8 * maxFilter},
	{KeysMD5, solTCP, 14, keyMD5Size * maxKeysMD5},
}

// validate calls bad for each field that no kernel could have given.
func (s *Settings) validate(bad func(field, format string, args ...any)) {
	const maxBuffer = 1 << 31
	if s.Buffers.Send >= maxBuffer || s.Buffers.Recv >= maxBuffer || s.Buffers.Locked > 3 {
		bad("Buffers", "%+v", s.Buffers)
	}
	if s.Linger.Seconds < 0 {
		bad("Linger", "%d seconds", s.Linger.Seconds)
	}
	if !validName(s.Congestion) {
		bad("Congestion", "%.40q is not a name", s.Congestion)
	}
	if !validName(s.Device) {
		bad("Device", "%.40q is not a name", s.Device)
	}
	if why := optionsProblem(s.Options); why != "" {
		bad("Options", "%s", why)
	}
	if why := valuesProblem(s.Values); why != "" {
		bad("Values", "%s", why)
	}
}

// valuesProblem says what is wrong with a map of values from outside, or nothing.
func valuesProblem(values map[string][]byte) string {
	left := len(values)
	for _, v := range valueTable {
		b, ok := values[v.name]
		if !ok {
			continue
		}
		left--
		size, unit := len(b), 1
		switch v.name {
		case socketFilter:
			unit = 8
		case KeysMD5:
			unit = keyMD5Size
		}
		if size == 0 || size > v.max || size%unit != 0 {
			return fmt.Sprintf("%s: %d bytes", v.name, size)
		}
	}
	if left > 0 {
		return fmt.Sprintf("%d unknown names", left)
	}
	return ""
}
