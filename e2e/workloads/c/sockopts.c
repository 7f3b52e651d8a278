/* Options of unix and UDP sockets, each of them other than its default; filters among them. */
#include "sockopts.h"
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <sys/un.h>

static struct answers was[5];

static void all(int fd)
{
	static const int ints[][2] = {{SO_DEBUG, 1}, {SO_REUSEADDR, 1}, {SO_DONTROUTE, 1}, {SO_BROADCAST, 1}, {SO_SNDBUF, 30000}, {SO_RCVBUF, 40000}, {SO_KEEPALIVE, 1},
		{SO_OOBINLINE, 1}, {SO_PRIORITY, 5}, {SO_RCVLOWAT, 7}, {SO_TIMESTAMPNS, 1}, {SO_MARK, 9}, {SO_RXQ_OVFL, 1}, {SO_PEEK_OFF, 11}, {SO_SELECT_ERR_QUEUE, 1},
		{SO_BUSY_POLL, 12}, {SO_MAX_PACING_RATE, 100000}, {SO_PREFER_BUSY_POLL, 1}, {SO_LOCK_FILTER, 1}};
	struct sock_filter pass[] = {BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0), BPF_STMT(BPF_RET | BPF_A, 0)};
	struct sock_fprog prog = {2, pass};
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), "filter");
	for (unsigned i = 0; i < sizeof ints / sizeof *ints; i++)
		set(fd, SOL_SOCKET, ints[i][0], ints[i][1]);
	struct timeval tv = {3, 500000};
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), "SO_RCVTIMEO");
	tv.tv_sec = 4;
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv), "SO_SNDTIMEO");
	struct linger l = {1, 8};
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), "SO_LINGER");
}

int main(void)
{
	int p[2], udp = socket(AF_INET, SOCK_DGRAM, 0), udp6 = socket(AF_INET6, SOCK_DGRAM, 0), plain = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, p) && udp >= 0 && udp6 >= 0 && plain >= 0, "sockets");
	all(p[0]);
	set(p[0], SOL_SOCKET, SO_PASSCRED, 1);
	set(p[1], SOL_SOCKET, 76 /* SO_PASSPIDFD */, 1);
	set(udp, SOL_SOCKET, SO_REUSEPORT, 1);
	static const int v4[][2] = {{IP_TOS, 0x10}, {IP_TTL, 33}, {IP_RECVOPTS, 1}, {IP_RETOPTS, 1}, {IP_PKTINFO, 1}, {IP_MTU_DISCOVER, IP_PMTUDISC_DO}, {IP_RECVERR, 1},
		{IP_RECVTTL, 1}, {IP_RECVTOS, 1}, {IP_FREEBIND, 1}, {IP_PASSSEC, 1}, {IP_TRANSPARENT, 1}, {IP_RECVORIGDSTADDR, 1}, {IP_MINTTL, 5}, {23 /* IP_CHECKSUM */, 1},
		{IP_MULTICAST_TTL, 7}, {IP_MULTICAST_LOOP, 0}, {49 /* IP_MULTICAST_ALL */, 0}};
	for (unsigned i = 0; i < sizeof v4 / sizeof *v4; i++)
		set(udp, IPPROTO_IP, v4[i][0], v4[i][1]);
	all(udp);
	set(udp, SOL_SOCKET, SO_NO_CHECK, 1);
	static const int v6[][2] = {{IPV6_V6ONLY, 1}, {IPV6_UNICAST_HOPS, 3}, {IPV6_MULTICAST_HOPS, 4}, {IPV6_MULTICAST_LOOP, 0}, {IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO},
		{IPV6_RECVERR, 1}, {IPV6_RECVPKTINFO, 1}, {IPV6_RECVHOPLIMIT, 1}, {IPV6_RECVRTHDR, 1}, {IPV6_RECVHOPOPTS, 1}, {IPV6_RECVDSTOPTS, 1}, {IPV6_RECVTCLASS, 1},
		{IPV6_TCLASS, 0x20}, {62 /* IPV6_DONTFRAG */, 1}, {78 /* IPV6_FREEBIND */, 1}, {75 /* IPV6_TRANSPARENT */, 1}, {33 /* IPV6_FLOWINFO_SEND */, 1}};
	for (unsigned i = 0; i < sizeof v6 / sizeof *v6; i++)
		set(udp6, IPPROTO_IPV6, v6[i][0], v6[i][1]);
	set(udp6, SOL_SOCKET, SO_TIMESTAMPING_OLD, SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
	set(udp6, SOL_SOCKET, 75 /* SO_RCVMARK */, 1);
	set(udp6, IPPROTO_UDP, 104 /* UDP_GRO */, 1);
	struct { int clock, flags; } tx = {CLOCK_MONOTONIC, 1};
	CHECK(!setsockopt(udp6, SOL_SOCKET, 61 /* SO_TXTIME */, &tx, sizeof tx), "SO_TXTIME");
	unsigned char ipopts[4] = {1, 1, 1, 0};
	CHECK(!setsockopt(plain, IPPROTO_IP, IP_OPTIONS, ipopts, sizeof ipopts), "IP_OPTIONS");
	struct sockaddr_in elsewhere = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0a636363)}; /* 10.99.99.99: IP_FREEBIND */
	CHECK(!bind(udp, (struct sockaddr *)&elsewhere, sizeof elsewhere), "bind");
	int fds[5] = {p[0], p[1], udp, udp6, plain};
	for (int i = 0; i < 5; i++)
		ask(fds[i], &was[i]);
	ready();
	static const char *const names[5] = {"unix", "its peer", "UDP", "UDP over IPv6", "plain UDP"};
	for (int i = 0; i < 5; i++)
		same(fds[i], &was[i], names[i]);
	pass();
}
