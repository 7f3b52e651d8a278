/* tun and tap: a device that lives as long as its descriptor, a persistent one, one with two queues, one that is not set up. */
#include "workload.h"
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int tun(const char *name, int flags)
{
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	CHECK(fd >= 0, "/dev/net/tun");
	struct ifreq r = {.ifr_flags = flags};
	strcpy(r.ifr_name, name);
	CHECK(!*name || !ioctl(fd, TUNSETIFF, &r), "TUNSETIFF %s", name);
	return fd;
}
static void is(int fd, const char *name, int flags)
{
	struct ifreq r = {0};
	CHECK(!ioctl(fd, TUNGETIFF, &r), "TUNGETIFF %s", name);
	CHECK(!strcmp(r.ifr_name, name) && (r.ifr_flags & ~0x1800) == (flags & ~0x1800), "%s is %s with flags %x, not %x", name, r.ifr_name, r.ifr_flags, flags);
}

int main(void)
{
	int t = tun("mtun0", IFF_TUN | IFF_NO_PI), p = tun("mtap0", IFF_TAP | IFF_VNET_HDR), q1 = tun("mtun1", IFF_TUN | IFF_MULTI_QUEUE), q2 = tun("mtun1", IFF_TUN | IFF_MULTI_QUEUE);
	int none = tun("", 0), hdr = 12, snd = 54321;
	CHECK(!ioctl(p, TUNSETPERSIST, 1) && !ioctl(p, TUNSETOWNER, 1001) && !ioctl(p, TUNSETGROUP, 1002) && !ioctl(p, TUNSETVNETHDRSZ, &hdr) && !ioctl(p, TUNSETSNDBUF, &snd), "settings");
	struct ifreq r = {0};
	strcpy(r.ifr_name, "mtun0");
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	r.ifr_mtu = 1400;
	CHECK(!ioctl(s, SIOCSIFMTU, &r), "mtu");
	CHECK(!ioctl(s, SIOCGIFFLAGS, &r), "flags");
	r.ifr_flags |= IFF_UP;
	CHECK(!ioctl(s, SIOCSIFFLAGS, &r), "up");
	r.ifr_flags = IFF_DETACH_QUEUE;
	CHECK(!ioctl(q2, TUNSETQUEUE, &r), "detach");
	ready();
	is(t, "mtun0", IFF_TUN | IFF_NO_PI);
	is(p, "mtap0", IFF_TAP | IFF_VNET_HDR | IFF_PERSIST);
	is(q1, "mtun1", IFF_TUN | IFF_MULTI_QUEUE);
	r.ifr_flags = IFF_ATTACH_QUEUE;
	CHECK(!ioctl(q2, TUNSETQUEUE, &r), "attach again");
	hdr = snd = 0;
	CHECK(!ioctl(p, TUNGETVNETHDRSZ, &hdr) && hdr == 12 && !ioctl(p, TUNGETSNDBUF, &snd) && snd == 54321, "settings are %d %d", hdr, snd);
	struct ifreq x = {.ifr_flags = IFF_TUN};
	CHECK(ioctl(none, TUNGETIFF, &x) && errno == EBADFD, "the one that is not set up");
	strcpy(r.ifr_name, "mtun0");
	CHECK(!ioctl(s, SIOCGIFMTU, &r) && r.ifr_mtu == 1400 && !ioctl(s, SIOCGIFFLAGS, &r) && (r.ifr_flags & IFF_UP), "mtu %d", r.ifr_mtu);
	CHECK((fcntl(t, F_GETFL) & O_NONBLOCK), "flags");
	CHECK(!ioctl(p, TUNSETPERSIST, 0), "persistence");
	close(p);
	close(t);
	strcpy(r.ifr_name, "mtap0");
	CHECK(ioctl(s, SIOCGIFFLAGS, &r) && errno == ENODEV, "it stays");
	pass();
}
