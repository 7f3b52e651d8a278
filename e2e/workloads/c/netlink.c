/* Netlink sockets: ports, groups of both ways to join, peers, options; bound and not. */
#include "sockopts.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

static struct sockaddr_nl own(int fd)
{
	struct sockaddr_nl a;
	socklen_t n = sizeof a;
	CHECK(!getsockname(fd, (struct sockaddr *)&a, &n), "getsockname");
	return a;
}

int main(void)
{
	int raw = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), dgram = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE), free_ = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	int diag = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG), user = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK), to = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK);
	CHECK(raw >= 0 && dgram >= 0 && free_ >= 0 && diag >= 0 && user >= 0 && to >= 0, "sockets");
	struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = 0}, b = {.nl_family = AF_NETLINK};
	CHECK(!bind(raw, (struct sockaddr *)&a, sizeof a) && !bind(dgram, (struct sockaddr *)&b, sizeof b) && !bind(diag, (struct sockaddr *)&b, sizeof b), "bind");
	set(dgram, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_MPLS_NETCONF);
	set(dgram, SOL_NETLINK, NETLINK_PKTINFO, 1);
	set(dgram, SOL_NETLINK, NETLINK_EXT_ACK, 1);
	set(dgram, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
	struct sockaddr_nl u = {.nl_family = AF_NETLINK, .nl_groups = 5}, t = {.nl_family = AF_NETLINK};
	CHECK(!bind(user, (struct sockaddr *)&u, sizeof u) && !bind(to, (struct sockaddr *)&t, sizeof t), "bind");
	u = own(user);
	struct sockaddr_nl peer = {.nl_family = AF_NETLINK, .nl_pid = u.nl_pid}, is;
	CHECK(!connect(to, (struct sockaddr *)&peer, sizeof peer), "connect");
	struct sockaddr_nl was[4] = {own(raw), own(dgram), own(user), own(to)};
	ready();
	int fds[4] = {raw, dgram, user, to};
	for (int i = 0; i < 4; i++) {
		is = own(fds[i]);
		CHECK(!memcmp(&is, &was[i], sizeof is), "socket %d: port %u, groups %x; was %u, %x", i, is.nl_pid, is.nl_groups, was[i].nl_pid, was[i].nl_groups);
	}
	CHECK(own(free_).nl_pid == 0, "an unbound socket is bound");
	uint32_t groups[8] = {0};
	socklen_t n = sizeof groups;
	CHECK(!getsockopt(dgram, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &n) && groups[(RTNLGRP_MPLS_NETCONF - 1) / 32] & 1u << (RTNLGRP_MPLS_NETCONF - 1) % 32, "group");
	int v = 0, type = 0;
	n = sizeof v;
	CHECK(!getsockopt(dgram, SOL_NETLINK, NETLINK_PKTINFO, &v, &n) && v == 1, "NETLINK_PKTINFO");
	CHECK(!getsockopt(dgram, SOL_NETLINK, NETLINK_EXT_ACK, &v, &n) && v == 1, "NETLINK_EXT_ACK");
	CHECK(!getsockopt(dgram, SOL_SOCKET, SO_TYPE, &type, &n) && type == SOCK_DGRAM, "type %d", type);
	n = sizeof is;
	CHECK(!getpeername(to, (struct sockaddr *)&is, &n) && is.nl_pid == u.nl_pid, "peer %u, was %u", is.nl_pid, u.nl_pid);
	struct { struct nlmsghdr h; char text[8]; } m = {{.nlmsg_len = sizeof m, .nlmsg_type = 100}, "hello"}, got;
	CHECK(send(to, &m, sizeof m, 0) == sizeof m && recv(user, &got, sizeof got, MSG_DONTWAIT) == sizeof got && !strcmp(got.text, "hello"), "a message");
	struct { struct nlmsghdr h; struct rtgenmsg g; } q = {{.nlmsg_len = sizeof q, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}, {AF_UNSPEC}};
	char buf[8192];
	CHECK(send(raw, &q, sizeof q, 0) == sizeof q && recv(raw, buf, sizeof buf, 0) > 0, "the kernel's answer");
	pass();
}
