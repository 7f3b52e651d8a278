/*
 * TCP sockets without a connection: only made, bound, bound in every special way, listening with special options, shut down,
 * and used after it: they connect, listen and refuse as they would have.
 */
#include "tcp.h"
#include <linux/filter.h>
#include <net/if.h>

static int bound(int family, const char *addr, int port, int option_level, int opt)
{
	union address a;
	socklen_t len = loopback(&a, family, port);
	int fd = socket(family, SOCK_STREAM, 0);
	if (opt)
		set_option(fd, option_level, opt, 1);
	CHECK(inet_pton(family, addr, family == AF_INET ? (void *)&a.in.sin_addr : (void *)&a.in6.sin6_addr) == 1, "address");
	CHECK(!bind(fd, &a.sa, len), "bind %s", addr);
	return fd;
}

int main(void)
{
	int plain4 = socket(AF_INET, SOCK_STREAM, 0), plain6 = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int bound4 = bound(AF_INET, "127.0.0.1", 0, 0, 0), port4 = port_of(bound4);
	int bound6 = bound(AF_INET6, "::1", 0, 0, 0), port6 = port_of(bound6);
	int mapped = bound(AF_INET6, "::ffff:127.0.0.1", 0, 0, 0), mapped_port = port_of(mapped);
	int only6 = bound(AF_INET6, "::", 0, IPPROTO_IPV6, IPV6_V6ONLY), only6_port = port_of(only6);
	CHECK(!listen(only6, 3), "listen");
	int noport = bound(AF_INET, "127.0.0.1", 0, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
	CHECK(port_of(noport) == 0, "a port was taken");

	/* An address that the host does not have; the option is taken back afterwards on one of the two. */
	int alien = bound(AF_INET, "203.0.113.7", 0, IPPROTO_IP, IP_FREEBIND), alien_port = port_of(alien);
	int alien6 = bound(AF_INET6, "2001:db8::7", 0, IPPROTO_IPV6, IPV6_FREEBIND), alien6_port = port_of(alien6);
	set_option(alien, IPPROTO_IP, IP_FREEBIND, 0);
	CHECK(!listen(alien6, 1), "listen");

	/* Groups. */
	int r1 = bound(AF_INET, "127.0.0.1", 0, SOL_SOCKET, SO_REUSEPORT), rport = port_of(r1);
	int r2 = bound(AF_INET, "127.0.0.1", rport, SOL_SOCKET, SO_REUSEPORT);
	CHECK(!listen(r1, 5) && !listen(r2, 5), "listen");
	int a1 = bound(AF_INET, "127.0.0.1", 0, SOL_SOCKET, SO_REUSEADDR), aport = port_of(a1);
	int a2 = bound(AF_INET, "127.0.0.1", aport, SOL_SOCKET, SO_REUSEADDR);
	CHECK(!listen(a1, 5), "listen");

	/* Options. */
	int dev = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(!setsockopt(dev, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), "SO_BINDTODEVICE");
	int l = listen_on(AF_INET, 17);
	set_option(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3);
	set_option(l, IPPROTO_TCP, TCP_FASTOPEN, 9);
	set_option(l, IPPROTO_TCP, TCP_SAVE_SYN, 1);
	set_option(l, SOL_SOCKET, SO_RCVBUF, 40000);
	struct timeval tv = {.tv_sec = 5, .tv_usec = 120000};
	CHECK(!setsockopt(plain4, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), "SO_RCVTIMEO");
	CHECK(!setsockopt(l, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv), "SO_SNDTIMEO");
	set_option(plain4, IPPROTO_TCP, TCP_MAXSEG, 700);
	set_option(plain4, IPPROTO_TCP, TCP_USER_TIMEOUT, 4321);
	set_option(plain4, SOL_SOCKET, SO_TIMESTAMPING, 1 << 4);
	CHECK(!setsockopt(plain4, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), "reno");
	struct sock_filter accept_all[] = {{BPF_RET | BPF_K, 0, 0, 0xffff}};
	struct sock_fprog prog = {1, accept_all};
	CHECK(!setsockopt(plain6, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), "filter");
	set_option(plain6, SOL_SOCKET, SO_LOCK_FILTER, 1);
	CHECK(!fchown(plain6, 1234, 1234), "fchown");
	int mptcp = socket(AF_INET, SOCK_STREAM, 262), mptcp_l = socket(AF_INET, SOCK_STREAM, 262);
	union address a;
	socklen_t len = loopback(&a, AF_INET, 0);
	if (mptcp >= 0)
		CHECK(!bind(mptcp_l, &a.sa, len) && !listen(mptcp_l, 4), "MPTCP");

	/* shutdown(2) of a socket that is not connected fails and works. */
	int shut = bound(AF_INET, "127.0.0.1", 0, 0, 0);
	CHECK(shutdown(shut, SHUT_RDWR) && errno == ENOTCONN, "shutdown");

	ready();

	CHECK(port_of(bound4) == port4 && port_of(bound6) == port6 && port_of(mapped) == mapped_port && port_of(only6) == only6_port, "ports");
	CHECK(port_of(plain4) == 0 && port_of(plain6) == 0 && port_of(noport) == 0, "no ports");
	len = sizeof a;
	CHECK(!getsockname(noport, &a.sa, &len) && a.in.sin_addr.s_addr == htonl(INADDR_LOOPBACK), "address without a port");
	CHECK(!getsockname(alien, &a.sa, &len) && a.in.sin_addr.s_addr == inet_addr("203.0.113.7") && port_of(alien) == alien_port, "foreign address");
	CHECK(option(alien, IPPROTO_IP, IP_FREEBIND) == 0 && port_of(alien6) == alien6_port && option(alien6, SOL_SOCKET, SO_ACCEPTCONN), "freebind");
	CHECK(option(only6, IPPROTO_IPV6, IPV6_V6ONLY) == 1 && option(only6, SOL_SOCKET, SO_ACCEPTCONN) == 1, "v6only");
	CHECK(option(l, IPPROTO_TCP, TCP_DEFER_ACCEPT) >= 3 && option(l, IPPROTO_TCP, TCP_FASTOPEN) == 9 && option(l, IPPROTO_TCP, TCP_SAVE_SYN) == 1, "listener");
	CHECK(option(l, SOL_SOCKET, SO_RCVBUF) == 80000, "SO_RCVBUF");
	struct tcp_info info;
	len = sizeof info;
	CHECK(!getsockopt(l, IPPROTO_TCP, TCP_INFO, &info, &len) && info.tcpi_sacked == 17, "backlog %u", info.tcpi_sacked);
	memset(&tv, 0, sizeof tv);
	len = sizeof tv;
	CHECK(!getsockopt(plain4, SOL_SOCKET, SO_RCVTIMEO, &tv, &len) && tv.tv_sec == 5 && tv.tv_usec >= 110000, "SO_RCVTIMEO");
	memset(&tv, 0, sizeof tv);
	CHECK(!getsockopt(l, SOL_SOCKET, SO_SNDTIMEO, &tv, &len) && tv.tv_sec == 5, "SO_SNDTIMEO");
	CHECK(option(plain4, IPPROTO_TCP, TCP_MAXSEG) == 700 && option(plain4, IPPROTO_TCP, TCP_USER_TIMEOUT) == 4321, "TCP options");
	CHECK(option(plain4, SOL_SOCKET, SO_TIMESTAMPING) == 1 << 4, "SO_TIMESTAMPING");
	char name[16] = {0};
	len = sizeof name;
	CHECK(!getsockopt(plain4, IPPROTO_TCP, TCP_CONGESTION, name, &len) && !strcmp(name, "reno"), "congestion %s", name);
	memset(name, 0, sizeof name);
	len = sizeof name;
	CHECK(!getsockopt(dev, SOL_SOCKET, SO_BINDTODEVICE, name, &len) && !strcmp(name, "lo"), "device %s", name);
	struct sock_filter got[1];
	len = 1;
	CHECK(!getsockopt(plain6, SOL_SOCKET, SO_GET_FILTER, got, &len) && len == 1 && !memcmp(got, accept_all, sizeof got), "filter");
	CHECK(setsockopt(plain6, SOL_SOCKET, SO_DETACH_FILTER, &prog, sizeof prog) && errno == EPERM, "the filter is locked");
	struct stat st;
	CHECK(!fstat(plain6, &st) && st.st_uid == 1234, "owner");
	CHECK(fcntl(plain6, F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
	int so_type = option(mptcp, SOL_SOCKET, SO_PROTOCOL);
	CHECK(mptcp < 0 || (so_type == 262 && option(mptcp_l, SOL_SOCKET, SO_PROTOCOL) == 262 && option(mptcp_l, SOL_SOCKET, SO_ACCEPTCONN)), "MPTCP");

	/* They work. */
	CHECK(!listen(bound4, 3), "listen 4");
	CHECK(!listen(mapped, 3) && !listen(bound6, 3), "listen 6");
	int c = connect_to(AF_INET, port4), s = accept(bound4, NULL, NULL);
	CHECK(s >= 0, "accept");
	set_option(plain4, IPPROTO_TCP, TCP_MAXSEG, 0);
	loopback(&a, AF_INET, mapped_port);
	CHECK(!connect(plain4, &a.sa, sizeof a.in), "connect");
	close(connect_to(AF_INET6, port6));
	close(connect_to(AF_INET6, only6_port));
	loopback(&a, AF_INET, only6_port);
	CHECK(connect(noport, &a.sa, sizeof a.in) && errno == ECONNREFUSED, "IPv6 only");
	CHECK(listen(a2, 1) && errno == EADDRINUSE, "a second listener");
	close(a1);
	CHECK(!listen(a2, 1), "the second listener, when the first is gone");
	int r3 = bound(AF_INET, "127.0.0.1", rport, SOL_SOCKET, SO_REUSEPORT);
	CHECK(!listen(r3, 1), "another of the group");
	struct pollfd p = {.fd = shut, .events = POLLIN | POLLRDHUP};
	CHECK(poll(&p, 1, 0) == 1 && p.revents & POLLRDHUP && p.revents & POLLHUP, "poll of a socket shut down: %x", p.revents);
	close(c);
	pass();
}
