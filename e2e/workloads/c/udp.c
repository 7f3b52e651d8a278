/*
 * UDP, UDP-Lite and ping sockets: queues with the senders' addresses, also of sockets that share an address; connected, shut down,
 * multicast groups with sources, bound to an interface.
 */
#include "sockopts.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, ip, &a.sin_addr);
	return a;
}

static int port_of(int fd)
{
	struct sockaddr_in6 a;
	socklen_t n = sizeof a;
	CHECK(!getsockname(fd, (struct sockaddr *)&a, &n), "getsockname");
	return ntohs(a.sin6_port);
}

static int udp(int proto, const char *ip, int port, int reuse)
{
	int fd = socket(AF_INET, SOCK_DGRAM, proto);
	struct sockaddr_in a = at(ip, port);
	CHECK(fd >= 0, "socket of protocol %d", proto);
	if (reuse)
		set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	CHECK(!bind(fd, (struct sockaddr *)&a, sizeof a), "bind to %s:%d", ip, port);
	return fd;
}

static void to(int fd, const char *ip, int port)
{
	struct sockaddr_in a = at(ip, port);
	CHECK(!connect(fd, (struct sockaddr *)&a, sizeof a), "connect to %s:%d", ip, port);
}

static void say(int fd, const char *ip, int port, const char *text)
{
	struct sockaddr_in a = at(ip, port);
	CHECK(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&a, sizeof a) == (ssize_t)strlen(text), "send \"%s\" to %s:%d", text, ip, port);
}

static void hear(int fd, const char *want, int port)
{
	struct pollfd p = {fd, POLLIN, 0};
	poll(&p, 1, 20000);
	char buf[128];
	struct sockaddr_in6 a;
	socklen_t n = sizeof a;
	ssize_t got = recvfrom(fd, buf, sizeof buf, MSG_DONTWAIT, (struct sockaddr *)&a, &n);
	CHECK(got == (ssize_t)strlen(want) && !memcmp(buf, want, got) && ntohs(a.sin6_port) == port, "received %zd bytes from port %d, want \"%s\" from %d", got, ntohs(a.sin6_port), want, port);
}

static void silent(int fd)
{
	char c;
	CHECK(recv(fd, &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "something came that was not sent");
}

static int ping(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	struct sockaddr_in a = at("127.0.0.1", 0);
	if (fd < 0)
		return -1; /* not allowed (net.ipv4.ping_group_range) */
	CHECK(!bind(fd, (struct sockaddr *)&a, sizeof a), "bind a ping socket");
	return fd;
}

int main(void)
{
	int a = udp(0, "127.0.0.1", 0, 0), b = udp(0, "0.0.0.0", 0, 0), c = udp(0, "127.0.0.1", 0, 0), pa = port_of(a), pb = port_of(b), pc = port_of(c);
	say(a, "127.0.0.1", pb, "one");
	say(c, "127.0.0.1", pb, "two");
	say(a, "127.0.0.5", pb, "three");
	to(c, "127.0.0.1", pa);
	say(a, "127.0.0.1", pc, "to a connected one");
	/* two that share an address */
	int r1 = udp(0, "127.0.0.1", 0, 1), pr = port_of(r1), r2 = udp(0, "127.0.0.1", pr, 1), n1 = 0, n2 = 0;
	for (int i = 0; i < 8; i++) {
		int s = udp(0, "127.0.0.1", 0, 0);
		say(s, "127.0.0.1", pr, "shared");
		close(s);
	}
	char buf[64];
	/* IPv6, and IPv4 through it */
	int six = socket(AF_INET6, SOCK_DGRAM, 0);
	struct sockaddr_in6 any = {.sin6_family = AF_INET6};
	CHECK(six >= 0 && !bind(six, (struct sockaddr *)&any, sizeof any), "IPv6");
	int p6 = port_of(six), s6 = socket(AF_INET6, SOCK_DGRAM, 0);
	struct sockaddr_in6 lo6 = {.sin6_family = AF_INET6, .sin6_port = htons(p6), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	say(a, "127.0.0.1", p6, "mapped");
	int has6 = sendto(s6, "six", 3, 0, (struct sockaddr *)&lo6, sizeof lo6) == 3, ps6 = has6 ? port_of(s6) : 0;
	/* bound to an interface, groups */
	int dev = udp(0, "127.0.0.1", 0, 0), pd = port_of(dev);
	CHECK(!setsockopt(dev, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), "SO_BINDTODEVICE");
	say(a, "127.0.0.1", pd, "on lo");
	struct ip_mreqn m = {.imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = 1};
	CHECK(!setsockopt(dev, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof m), "IP_ADD_MEMBERSHIP");
	struct ip_mreq_source src = {.imr_multiaddr.s_addr = inet_addr("239.1.2.4"), .imr_interface.s_addr = inet_addr("127.0.0.1"), .imr_sourceaddr.s_addr = inet_addr("127.0.0.9")};
	CHECK(!setsockopt(dev, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &src, sizeof src), "IP_ADD_SOURCE_MEMBERSHIP");
	struct in_addr out = {inet_addr("127.0.0.1")};
	CHECK(!setsockopt(dev, IPPROTO_IP, IP_MULTICAST_IF, &out, sizeof out), "IP_MULTICAST_IF");
	struct ipv6_mreq m6 = {.ipv6mr_interface = 1};
	inet_pton(AF_INET6, "ff02::1234", &m6.ipv6mr_multiaddr);
	int joined6 = !setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &m6, sizeof m6);
	/* shut down */
	int sr = udp(0, "127.0.0.1", 0, 0), sw = udp(0, "127.0.0.1", 0, 0), sb = udp(0, "127.0.0.1", 0, 0), free_ = socket(AF_INET, SOCK_DGRAM, 0);
	to(sr, "127.0.0.1", pa), to(sw, "127.0.0.1", pa), to(sb, "127.0.0.1", pa);
	CHECK(!shutdown(sr, SHUT_RD) && !shutdown(sw, SHUT_WR) && !shutdown(sb, SHUT_RDWR), "shutdown");
	int lite = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), pl = 0;
	if (lite >= 0) {
		close(lite);
		lite = udp(IPPROTO_UDPLITE, "127.0.0.1", 0, 0), pl = port_of(lite);
		set(lite, 136, 10, 20);
		say(lite, "127.0.0.1", pl, "lite");
	}
	int corked = udp(0, "127.0.0.1", 0, 0), whole = udp(0, "127.0.0.1", 0, 0);
	to(corked, "127.0.0.1", port_of(whole));
	set(corked, IPPROTO_UDP, 1 /* UDP_CORK */, 1);
	int pi = ping(), id = pi >= 0 ? port_of(pi) : 0;
	ready();
	hear(b, "one", pa);
	hear(b, "two", pc);
	hear(b, "three", pa);
	silent(b);
	hear(c, "to a connected one", pa);
	while (recv(r1, buf, sizeof buf, MSG_DONTWAIT) == 6)
		n1++;
	while (recv(r2, buf, sizeof buf, MSG_DONTWAIT) == 6)
		n2++;
	CHECK(n1 + n2 == 8, "%d and %d datagrams of 8", n1, n2);
	hear(six, "mapped", pa);
	if (has6)
		hear(six, "six", ps6);
	hear(dev, "on lo", pa);
	silent(dev);
	say(a, "127.0.0.1", pd, "again");
	hear(dev, "again", pa);
	CHECK(setsockopt(dev, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof m) < 0 && errno == EADDRINUSE, "the group was left");
	CHECK(setsockopt(dev, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &src, sizeof src) < 0 && errno == EADDRNOTAVAIL, "the source was left");
	CHECK(!setsockopt(dev, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &src, sizeof src), "IP_DROP_SOURCE_MEMBERSHIP");
	socklen_t n = sizeof out;
	CHECK(!getsockopt(dev, IPPROTO_IP, IP_MULTICAST_IF, &out, &n) && out.s_addr == inet_addr("127.0.0.1"), "IP_MULTICAST_IF");
	if (joined6)
		CHECK(setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &m6, sizeof m6) < 0 && errno == EADDRINUSE, "the IPv6 group was left");
	CHECK(recv(sr, buf, 1, 0) == 0 && send(sr, "x", 1, 0) == 1, "shut for reading");
	CHECK(send(sw, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "shut for writing");
	CHECK(recv(sb, buf, 1, 0) == 0 && send(sb, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "shut for both");
	silent(sw);
	CHECK(send(corked, "in ", 3, 0) == 3 && send(corked, "parts", 5, 0) == 5, "send");
	silent(whole);
	set(corked, IPPROTO_UDP, 1, 0);
	CHECK(recv(whole, buf, sizeof buf, MSG_DONTWAIT) == 8 && !memcmp(buf, "in parts", 8), "what UDP_CORK has put together");
	CHECK(port_of(free_) == 0, "an unbound socket is bound");
	to(free_, "127.0.0.1", pa);
	if (lite >= 0)
		hear(lite, "lite", pl);
	CHECK(pi < 0 || port_of(pi) == id, "the identifier of a ping socket is %d, was %d", port_of(pi), id);
	pass();
}
