/* A network namespace: devices with their numbers, addresses, flags, masters; routes; neighbours; sysctls. */
#include "../c/workload.h"
#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct in6_ifreq_ {
	struct in6_addr addr;
	uint32_t prefix;
	int index;
};

static int s4, s6;
static char text[2][1 << 16];

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

static void new_link(const char *name, const char *kind, const char *peer)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
		char rest[1024];
	} m = {.h = {NLMSG_LENGTH(sizeof m.i), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1, 0}};
	int s = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	add(&m.h, IFLA_IFNAME, name, strlen(name) + 1);
	struct rtattr *info = add(&m.h, IFLA_LINKINFO, NULL, 0);
	add(&m.h, IFLA_INFO_KIND, kind, strlen(kind));
	if (peer) {
		struct rtattr *data = add(&m.h, IFLA_INFO_DATA, NULL, 0), *p = add(&m.h, VETH_INFO_PEER, &m.i, sizeof m.i);
		add(&m.h, IFLA_IFNAME, peer, strlen(peer) + 1);
		end(&m.h, p);
		end(&m.h, data);
	}
	end(&m.h, info);
	struct {
		struct nlmsghdr h;
		struct nlmsgerr e;
	} reply;
	CHECK(send(s, &m, m.h.nlmsg_len, 0) > 0 && recv(s, &reply, sizeof reply, 0) > 0, "netlink");
	errno = -reply.e.error;
	CHECK(!reply.e.error, "making %s", name);
	close(s);
}

static void io(int s, unsigned long request, void *arg) { CHECK(!ioctl(s, request, arg), "ioctl %lx", request); }

static struct ifreq req(const char *name)
{
	struct ifreq r = {0};
	strcpy(r.ifr_name, name);
	return r;
}

static void address(const char *name, const char *ip, const char *mask, short flags)
{
	struct ifreq r = req(name);
	struct sockaddr_in *a = (void *)&r.ifr_addr;
	a->sin_family = AF_INET;
	inet_pton(AF_INET, ip, &a->sin_addr);
	io(s4, SIOCSIFADDR, &r);
	inet_pton(AF_INET, mask, &a->sin_addr);
	io(s4, SIOCSIFNETMASK, &r);
	r = req(name);
	r.ifr_flags = flags;
	io(s4, SIOCSIFFLAGS, &r);
}

static void set(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	CHECK(fd >= 0 && write(fd, value, strlen(value)) > 0, "%s", path);
	close(fd);
}

static char *get(char *out, const char *path)
{
	int fd = open(path, O_RDONLY), n;
	CHECK(fd >= 0, "%s", path);
	out += sprintf(out, "%s\n", path);
	while ((n = read(fd, out, 4096)) > 0)
		out += n;
	*out = 0;
	close(fd);
	return out;
}

static void state(char *out)
{
	for (unsigned i = 1; i < 12; i++) {
		char name[IF_NAMESIZE];
		if (!if_indextoname(i, name))
			continue;
		struct ifreq r = req(name);
		io(s4, SIOCGIFFLAGS, &r);
		out += sprintf(out, "%u %s flags %x", i, name, r.ifr_flags & 0xffff & ~IFF_RUNNING) /* which comes later, when the other end is up */;
		io(s4, SIOCGIFMTU, &r);
		out += sprintf(out, " mtu %d", r.ifr_mtu);
		io(s4, SIOCGIFHWADDR, &r);
		for (int k = 0; k < 6; k++)
			out += sprintf(out, " %02x", (unsigned char)r.ifr_hwaddr.sa_data[k]);
		out += sprintf(out, "\n");
	}
	static const char *files[] = {"/proc/net/route", "/proc/net/if_inet6", "/proc/net/arp", "/proc/sys/net/ipv4/ip_forward",
				      "/proc/sys/net/ipv4/conf/all/rp_filter", "/proc/sys/net/ipv4/conf/d0/rp_filter", "/proc/sys/net/ipv4/conf/default/forwarding",
				      "/proc/sys/net/ipv6/conf/d0/accept_dad", "/proc/sys/net/ipv6/conf/d0/addr_gen_mode", "/proc/sys/net/ipv4/ip_local_port_range",
				      "/proc/sys/net/core/somaxconn", "/proc/sys/net/unix/max_dgram_qlen", "/proc/sys/net/ipv4/ping_group_range"};
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
		out = get(out, files[i]);
	char link[64];
	ssize_t n = readlink("/sys/class/net/d1/master", link, 63);
	out += sprintf(out, "master %.*s\n", n < 0 ? 0 : (int)n, link);
}

/* The kernel lists some of it in an order of its own. */
static int compare(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
static void sort(char *out)
{
	char *lines[512], *copy = strdup(out);
	int n = 0;
	for (char *p = strtok(copy, "\n"); p && n < 512; p = strtok(NULL, "\n"))
		lines[n++] = p;
	qsort(lines, n, sizeof *lines, compare);
	for (int i = 0; i < n; i++)
		out += sprintf(out, "%s\n", lines[i]);
}

int main(void)
{
	s4 = socket(AF_INET, SOCK_DGRAM, 0);
	s6 = socket(AF_INET6, SOCK_DGRAM, 0);
	new_link("d0", "veth", "e0");
	new_link("d1", "veth", "e1");
	new_link("v0", "veth", "v1");
	new_link("br", "bridge", NULL);
	static const char *tested[] = {"d0", "v0", "v1"}; /* addresses that the kernel makes are not tested first, which takes its time */
	for (int i = 0; i < 3; i++) {
		char path[100];
		sprintf(path, "/proc/sys/net/ipv6/conf/%s/accept_dad", tested[i]);
		set(path, "0");
	}
	struct ifreq r;
	address("d0", "10.1.0.5", "255.255.0.0", IFF_UP | IFF_NOARP);
	address("v0", "10.2.0.1", "255.255.255.0", IFF_UP | IFF_MULTICAST);
	address("v1", "10.3.0.1", "255.255.255.0", IFF_UP | IFF_MULTICAST);
	r = req("br");
	r.ifr_ifindex = if_nametoindex("d1");
	io(s4, SIOCBRADDIF, &r);
	r = req("d1");
	r.ifr_mtu = 1400;
	io(s4, SIOCSIFMTU, &r);
	r = req("lo");
	r.ifr_mtu = 20000;
	io(s4, SIOCSIFMTU, &r);
	struct in6_ifreq_ a6 = {.prefix = 64, .index = if_nametoindex("lo")};
	inet_pton(AF_INET6, "fd00::7", &a6.addr);
	io(s6, SIOCSIFADDR, &a6);
	struct rtentry rt = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_metric = 5};
	rt.rt_dst.sa_family = rt.rt_genmask.sa_family = rt.rt_gateway.sa_family = AF_INET;
	inet_pton(AF_INET, "10.1.2.3", &((struct sockaddr_in *)&rt.rt_gateway)->sin_addr);
	io(s4, SIOCADDRT, &rt);
	struct arpreq arp = {.arp_flags = ATF_PERM | ATF_COM, .arp_dev = "v0"};
	arp.arp_pa.sa_family = AF_INET;
	inet_pton(AF_INET, "10.2.0.77", &((struct sockaddr_in *)&arp.arp_pa)->sin_addr);
	memcpy(arp.arp_ha.sa_data, "\2\1\2\3\4\5", 6);
	io(s4, SIOCSARP, &arp);
	set("/proc/sys/net/ipv4/ip_forward", "1");
	set("/proc/sys/net/ipv4/conf/all/rp_filter", "2");
	set("/proc/sys/net/ipv4/conf/d0/rp_filter", "1");
	set("/proc/sys/net/ipv4/ip_local_port_range", "20000 20999");
	set("/proc/sys/net/core/somaxconn", "77");
	set("/proc/sys/net/unix/max_dgram_qlen", "33");
	set("/proc/sys/net/ipv4/ping_group_range", "5 50");
	do { /* until the kernel has made its own addresses, and knows that no other has them */
		usleep(10000);
		get(text[0], "/proc/net/if_inet6");
	} while (strstr(text[0], " c0 ") || !strstr(text[0], "       v0") || !strstr(text[0], "       v1"));
	state(text[0]);
	sort(text[0]);
	ready();
	state(text[1]);
	sort(text[1]);
	CHECK(!strcmp(text[0], text[1]), "differs; see the output%d", printf("before\n%s\nafter\n%s\n", text[0], text[1]) * fflush(stdout));
	pass();
}
