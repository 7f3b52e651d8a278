/*
 * Children with network namespaces of their own: a veth pair between two of them with a bridge at one end, TCP across it, sockets of
 * all kinds inside, abstract names that stand in both; and namespaces that no process is in: one kept by a descriptor, with a
 * socket in it, and one by a mount.
 */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>

struct shared {
	volatile int go, bad;
	char why[4][200];
};
static struct shared *s;
static int tell[2];

#define TRY(cond, ...)                                                                       \
	do {                                                                                 \
		if (!(cond)) {                                                               \
			int e_ = errno, n_ = snprintf(s->why[me], 160, __VA_ARGS__);         \
			snprintf(s->why[me] + n_, 200 - n_, " (%s)", strerror(e_));          \
			s->bad = me + 1;                                                     \
			fprintf(stderr, "%s\n", s->why[me]);                                 \
			_exit(write(tell[1], "x", 1));                                       \
		}                                                                            \
	} while (0)

static struct rtattr *add(struct nlmsghdr *h, int type, const void *data, int len)
{
	struct rtattr *a = (void *)((char *)h + NLMSG_ALIGN(h->nlmsg_len));
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(len);
	if (len)
		memcpy(RTA_DATA(a), data, len);
	h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + RTA_ALIGN(a->rta_len);
	return a;
}

static void end(struct nlmsghdr *h, struct rtattr *a) { a->rta_len = (char *)h + h->nlmsg_len - (char *)a; }

/* A device; the other end of a veth is called peer and is in the namespace of a process. */
static void device(int me, const char *name, const char *kind, const char *peer, int pid)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
		char rest[1024];
	} m = {.h = {NLMSG_LENGTH(sizeof m.i), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1, 0}};
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	add(&m.h, IFLA_IFNAME, name, strlen(name) + 1);
	struct rtattr *info = add(&m.h, IFLA_LINKINFO, NULL, 0);
	add(&m.h, IFLA_INFO_KIND, kind, strlen(kind));
	if (peer) {
		struct rtattr *data = add(&m.h, IFLA_INFO_DATA, NULL, 0), *p = add(&m.h, VETH_INFO_PEER, &m.i, sizeof m.i);
		add(&m.h, IFLA_IFNAME, peer, strlen(peer) + 1);
		add(&m.h, IFLA_NET_NS_PID, &pid, sizeof pid);
		end(&m.h, p);
		end(&m.h, data);
	}
	end(&m.h, info);
	struct {
		struct nlmsghdr h;
		struct nlmsgerr e;
	} reply;
	TRY(send(fd, &m, m.h.nlmsg_len, 0) > 0 && recv(fd, &reply, sizeof reply, 0) > 0, "netlink");
	errno = -reply.e.error;
	TRY(!reply.e.error, "making %s", name);
	close(fd);
}

static struct sockaddr_in in4(const char *addr, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, addr, &a.sin_addr);
	return a;
}

static void up(int me, const char *name, const char *addr)
{
	struct ifreq r = {0};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	strcpy(r.ifr_name, name);
	if (addr) {
		struct sockaddr_in a = in4(addr, 0);
		memcpy(&r.ifr_addr, &a, sizeof a);
		TRY(!ioctl(fd, SIOCSIFADDR, &r), "address of %s", name);
		a = in4("255.255.255.0", 0);
		memcpy(&r.ifr_netmask, &a, sizeof a);
		TRY(!ioctl(fd, SIOCSIFNETMASK, &r), "mask of %s", name);
	}
	r.ifr_flags = IFF_UP;
	TRY(!ioctl(fd, SIOCSIFFLAGS, &r), "%s up", name);
	close(fd);
}

static int listener(int me, const char *addr, int port)
{
	struct sockaddr_in a = in4(addr, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	TRY(!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "reuse");
	TRY(!bind(fd, (void *)&a, sizeof a) && !listen(fd, 5), "listen on %s", addr);
	return fd;
}

static int dial(int me, const char *addr, int port)
{
	struct sockaddr_in a = in4(addr, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	for (int i = 0; i < 200; i++) { /* the devices may take a moment to come up */
		if (!connect(fd, (void *)&a, sizeof a))
			return fd;
		close(fd);
		usleep(10000);
		fd = socket(AF_INET, SOCK_STREAM, 0);
	}
	TRY(0, "connect to %s", addr);
	return fd;
}

static void both(int me, int a, int b, const char *what)
{
	char buf[8] = "";
	struct pollfd p = {b, POLLIN, 0}, q = {a, POLLIN, 0};
	TRY(write(a, "ping", 4) == 4 && poll(&p, 1, 20000) == 1 && read(b, buf, 4) == 4 && !memcmp(buf, "ping", 4), "%s: there", what);
	TRY(write(b, "pong", 4) == 4 && poll(&q, 1, 20000) == 1 && read(a, buf, 4) == 4 && !memcmp(buf, "pong", 4), "%s: back", what);
}

static int named(int me, int *client)
{
	struct sockaddr_un u = {.sun_family = AF_UNIX, .sun_path = "\0the same in all"};
	socklen_t size = offsetof(struct sockaddr_un, sun_path) + 16;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	TRY(!bind(fd, (void *)&u, size) && !listen(fd, 3), "abstract name");
	*client = socket(AF_UNIX, SOCK_STREAM, 0);
	TRY(!connect(*client, (void *)&u, size), "connect");
	int got = accept(fd, NULL, NULL);
	TRY(got >= 0, "accept");
	return got;
}

static void hold(int me)
{
	TRY(write(tell[1], "x", 1) == 1, "tell");
	while (!s->go)
		usleep(1000);
}

/* word passes between the two children. */
static void say(int fd) { (void)!write(fd, "w", 1); }
static void hear(int me, int fd)
{
	char c;
	TRY(read(fd, &c, 1) == 1, "the other child");
}

static void left(int in, int out, int peer)
{
	int me = 0, uc, us, inner, across;
	TRY(!unshare(CLONE_NEWNET), "unshare");
	hear(me, in); /* the other has its namespace */
	up(me, "lo", NULL);
	device(me, "left0", "veth", "right0", peer);
	up(me, "left0", "10.77.0.1");
	say(out);
	us = named(me, &uc);
	int l = listener(me, "127.0.0.1", 7001), l2 = listener(me, "10.77.0.1", 7002);
	inner = dial(me, "127.0.0.1", 7001);
	int served = accept(l, NULL, NULL);
	across = accept(l2, NULL, NULL);
	TRY(served >= 0 && across >= 0, "accept");
	struct sockaddr_in a = in4("10.77.0.1", 7003);
	int udp = socket(AF_INET, SOCK_DGRAM, 0), raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), nl = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	TRY(!bind(udp, (void *)&a, sizeof a) && raw >= 0 && nl >= 0, "others");
	unsigned index = if_nametoindex("left0");
	hold(me);
	TRY(if_nametoindex("left0") == index, "the device");
	both(me, us, uc, "unix");
	both(me, inner, served, "lo");
	both(me, across, across, "across, echoed");
	char buf[8] = "";
	struct pollfd p = {udp, POLLIN, 0};
	TRY(poll(&p, 1, 20000) == 1 && read(udp, buf, 3) == 3 && !strcmp(buf, "dgm"), "datagram");
	int again = dial(me, "127.0.0.1", 7001);
	TRY(accept(l, NULL, NULL) >= 0 && again >= 0, "a new connection");
	say(out);
	_exit(0);
}

static void right(int in, int out)
{
	int me = 1, uc, us;
	TRY(!unshare(CLONE_NEWNET), "unshare");
	say(out);
	hear(me, in);
	device(me, "br0", "bridge", NULL, 0);
	struct ifreq r = {.ifr_name = "br0", .ifr_ifindex = if_nametoindex("right0")};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	TRY(!ioctl(fd, 0x89a2, &r), "SIOCBRADDIF");
	up(me, "right0", NULL);
	up(me, "br0", "10.77.0.2");
	us = named(me, &uc);
	int across = dial(me, "10.77.0.1", 7002);
	hold(me);
	both(me, us, uc, "unix");
	struct sockaddr_in a = in4("10.77.0.1", 7003);
	for (int i = 0; i < 2; i++) { /* the echo */
		char buf[8];
		struct pollfd p = {across, POLLIN, 0};
		TRY(poll(&p, 1, 20000) == 1 && read(across, buf, 4) == 4 && write(across, buf, 4) == 4, "echo");
	}
	struct pollfd other = {in, POLLIN, 0};
	do /* until it has one: a datagram may be lost, while a device comes up for one */
		TRY(sendto(fd, "dgm", 3, 0, (void *)&a, sizeof a) == 3, "sendto");
	while (!poll(&other, 1, 100));
	hear(me, in);
	_exit(0);
}

/* A namespace that only a mount keeps, in a mount namespace of a child. */
static void mounted(void)
{
	int me = 2, home = open("/proc/self/ns/net", O_RDONLY);
	TRY(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount namespace");
	TRY(!unshare(CLONE_NEWNET), "unshare");
	device(me, "kept0", "bridge", NULL, 0);
	TRY(!mount("/proc/self/ns/net", "kept", NULL, MS_BIND, NULL), "bind");
	TRY(!setns(home, CLONE_NEWNET), "home");
	hold(me);
	int fd = open("kept", O_RDONLY);
	TRY(fd >= 0 && !setns(fd, CLONE_NEWNET), "entering the mounted one");
	TRY(if_nametoindex("kept0") > 0, "its device");
	_exit(0);
}

int main(void)
{
	int me = 3, there[2], back[2];
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s != MAP_FAILED && !pipe(tell) && !pipe(there) && !pipe(back), "set up");
	int file = open("kept", O_CREAT | O_WRONLY, 0600);
	close(file);
	/* A namespace that only descriptors keep. */
	int home = open("/proc/self/ns/net", O_RDONLY);
	CHECK(home >= 0 && !unshare(CLONE_NEWNET), "unshare");
	device(me, "lost0", "bridge", NULL, 0);
	up(me, "lost0", "10.78.0.1");
	struct sockaddr_in a = in4("10.78.0.1", 7004);
	int udp = socket(AF_INET, SOCK_DGRAM, 0), kept = open("/proc/self/ns/net", O_RDONLY);
	CHECK(!bind(udp, (void *)&a, sizeof a) && kept >= 0 && !setns(home, CLONE_NEWNET), "back home");
	pid_t r = fork();
	if (!r)
		right(there[0], back[1]);
	pid_t l = fork();
	if (!l)
		left(back[0], there[1], r);
	pid_t m = fork();
	if (!m)
		mounted();
	for (int i = 0; i < 3; i++) {
		char c;
		CHECK(read(tell[0], &c, 1) == 1, "pipe");
		CHECK(!s->bad, "child: %s", s->why[s->bad - 1]);
	}
	CHECK(!if_nametoindex("lost0") && !if_nametoindex("left0"), "home has the devices");
	ready();
	s->go = 1;
	pid_t all[] = {l, r, m};
	for (int i = 0; i < 3; i++) {
		int status;
		CHECK(waitpid(all[i], &status, 0) == all[i], "wait");
		CHECK(!s->bad && !status, "child %d: %x, %s", i, status, s->bad ? s->why[s->bad - 1] : "");
	}
	CHECK(!if_nametoindex("lost0") && !if_nametoindex("left0"), "home has the devices now");
	struct sockaddr_in got;
	socklen_t size = sizeof got;
	CHECK(!getsockname(udp, (void *)&got, &size) && got.sin_addr.s_addr == a.sin_addr.s_addr && got.sin_port == a.sin_port, "the socket in the lost one");
	CHECK(!setns(kept, CLONE_NEWNET) && if_nametoindex("lost0"), "entering the lost one");
	CHECK(sendto(udp, "x", 1, 0, (void *)&a, sizeof a) == 1, "its socket");
	CHECK(!setns(home, CLONE_NEWNET) && !if_nametoindex("lost0"), "going home");
	if (s->bad)
		fail("%s", s->why[s->bad - 1]);
	pass();
}
