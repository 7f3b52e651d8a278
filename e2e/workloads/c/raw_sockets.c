/* Raw sockets: protocol, addresses, options, filters of ICMP types. */
#include "sockopts.h"
#include <arpa/inet.h>
#include <linux/icmp.h>
#include <netinet/in.h>

int main(void)
{
	int fds[4] = {socket(AF_INET, SOCK_RAW, 253), socket(AF_INET, SOCK_RAW, 6), socket(AF_INET6, SOCK_RAW, 58), socket(AF_INET, SOCK_RAW, IPPROTO_RAW)};
	static struct answers was[4];
	for (int i = 0; i < 4; i++)
		CHECK(fds[i] >= 0, "raw socket %d", i);
	struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("127.0.0.7")}, you = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("127.0.0.8")}, is;
	struct sockaddr_in lo = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr("127.0.0.9")};
	CHECK(!bind(fds[0], (struct sockaddr *)&me, sizeof me) && !connect(fds[0], (struct sockaddr *)&you, sizeof you), "bind, connect");
	CHECK(!bind(fds[1], (struct sockaddr *)&lo, sizeof lo), "bind");
	set(fds[0], IPPROTO_IP, 22 /* IP_NODEFRAG */, 1);
	set(fds[1], IPPROTO_IP, IP_HDRINCL, 1);
	set(fds[1], IPPROTO_IP, IP_ROUTER_ALERT, 1);
	set(fds[2], IPPROTO_IPV6, 36 /* IPV6_HDRINCL */, 1);
	set(fds[0], IPPROTO_IP, IP_TTL, 9);
	uint32_t f6[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	CHECK(!setsockopt(fds[2], 58, 1, f6, sizeof f6), "ICMPV6_FILTER");
	for (int i = 0; i < 4; i++)
		ask(fds[i], &was[i]);
	ready();
	for (int i = 0; i < 4; i++)
		same(fds[i], &was[i], "raw socket");
	socklen_t n = sizeof is;
	CHECK(!getsockname(fds[0], (struct sockaddr *)&is, &n) && is.sin_addr.s_addr == me.sin_addr.s_addr, "it is bound to %x", is.sin_addr.s_addr);
	CHECK(!getsockname(fds[1], (struct sockaddr *)&is, &n) && is.sin_addr.s_addr == lo.sin_addr.s_addr, "it is bound to %x", is.sin_addr.s_addr);
	/* it is connected, so no address is needed */
	int peer = socket(AF_INET, SOCK_RAW, 253);
	char buf[64];
	CHECK(!bind(peer, (struct sockaddr *)&you, sizeof you) && send(fds[0], "hello", 5, 0) == 5, "send");
	CHECK(recv(peer, buf, sizeof buf, 0) == 25 && !memcmp(buf + 20, "hello", 5) && buf[8] == 9, "the packet");
	pass();
}
