/* Packet sockets of all types: interface, protocol, memberships, rings that are not mapped, fanout, filters and options. */
#include "sockopts.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>

static struct answers was[4];

static struct sockaddr_ll own(int fd)
{
	struct sockaddr_ll a;
	socklen_t n = sizeof a;
	memset(&a, 0, sizeof a);
	CHECK(!getsockname(fd, (struct sockaddr *)&a, &n), "getsockname");
	return a;
}

int main(void)
{
	enum { proto = 0x88b5 }; /* for local experiments: nothing else comes */
	int raw = socket(AF_PACKET, SOCK_RAW, 0), dgram = socket(AF_PACKET, SOCK_DGRAM, htons(proto)), ring = socket(AF_PACKET, SOCK_RAW, 0), old = socket(AF_PACKET, SOCK_PACKET, htons(proto));
	CHECK(raw >= 0 && dgram >= 0 && ring >= 0 && old >= 0, "sockets");
	struct sockaddr_ll lo = {.sll_family = AF_PACKET, .sll_protocol = htons(proto), .sll_ifindex = if_nametoindex("lo")};
	struct sockaddr name = {.sa_family = AF_PACKET, .sa_data = "lo"};
	CHECK(!bind(raw, (struct sockaddr *)&lo, sizeof lo) && !bind(old, &name, sizeof name), "bind");
	set(raw, SOL_PACKET, PACKET_AUXDATA, 1);
	set(raw, SOL_PACKET, PACKET_ORIGDEV, 1);
	set(raw, SOL_PACKET, PACKET_VNET_HDR, 1);
	set(raw, SOL_PACKET, PACKET_TIMESTAMP, 1);
	set(raw, SOL_PACKET, PACKET_COPY_THRESH, 77);
	set(dgram, SOL_PACKET, 20 /* PACKET_QDISC_BYPASS */, 1);
	set(ring, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
	set(ring, SOL_PACKET, PACKET_RESERVE, 16);
	set(ring, SOL_PACKET, PACKET_LOSS, 1);
	struct tpacket_req req = {4096, 2, 2048, 4};
	CHECK(!setsockopt(ring, SOL_PACKET, PACKET_RX_RING, &req, sizeof req) && !setsockopt(ring, SOL_PACKET, PACKET_TX_RING, &req, sizeof req), "rings");
	CHECK(!bind(ring, (struct sockaddr *)&lo, sizeof lo), "bind");
	struct packet_mreq m = {lo.sll_ifindex, PACKET_MR_ALLMULTI, 0, {0}};
	CHECK(!setsockopt(dgram, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &m, sizeof m), "PACKET_ADD_MEMBERSHIP");
	int fan[2];
	for (int i = 0; i < 2; i++) {
		fan[i] = socket(AF_PACKET, SOCK_RAW, 0);
		CHECK(fan[i] >= 0 && !bind(fan[i], (struct sockaddr *)&lo, sizeof lo), "bind");
		set(fan[i], SOL_PACKET, PACKET_FANOUT, 4242 | PACKET_FANOUT_LB << 16);
	}
	struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, 100)};
	struct sock_fprog prog = {1, all};
	CHECK(!setsockopt(raw, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), "filter");
	int fds[4] = {raw, dgram, ring, old};
	struct sockaddr_ll names[4];
	for (int i = 0; i < 4; i++) {
		ask(fds[i], &was[i]);
		names[i] = own(fds[i]);
	}
	ready();
	for (int i = 0; i < 4; i++) {
		same(fds[i], &was[i], i == 0 ? "raw" : i == 1 ? "datagram" : i == 2 ? "ring" : "legacy");
		struct sockaddr_ll is = own(fds[i]);
		CHECK(!memcmp(&is, &names[i], sizeof is), "socket %d is bound to another address", i);
	}
	CHECK(setsockopt(ring, SOL_PACKET, PACKET_RX_RING, &req, sizeof req) < 0 && errno == EBUSY, "there is no ring");
	void *map = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	CHECK(map != MAP_FAILED, "map the rings");
	CHECK(!setsockopt(dgram, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &m, sizeof m), "the membership was left");
	int v = 0;
	socklen_t n = sizeof v;
	CHECK(!getsockopt(fan[1], SOL_PACKET, PACKET_FANOUT, &v, &n) && v == (4242 | PACKET_FANOUT_LB << 16), "fanout %x", v);
	char frame[128] = {0}, buf[256];
	frame[12] = (char)(proto >> 8), frame[13] = (char)(proto & 255);
	memcpy(frame + 14, "hello", 5);
	int out = socket(AF_PACKET, SOCK_RAW, 0);
	CHECK(sendto(out, frame, sizeof frame, 0, (struct sockaddr *)&lo, sizeof lo) == sizeof frame, "send");
	ssize_t got = recv(raw, buf, sizeof buf, 0);
	CHECK(got == 110 && !memcmp(buf + 10 + 14, "hello", 5), "raw: %zd bytes", got); /* virtio_net_hdr, and cut by the filter */
	CHECK(recv(dgram, buf, sizeof buf, 0) == 114 && !memcmp(buf, "hello", 5), "datagram");
	CHECK(recv(old, buf, sizeof buf, 0) == 128, "legacy");
	struct pollfd in_ring = {ring, POLLIN, 0}; /* each of the sockets gets the frame in its turn */
	CHECK(poll(&in_ring, 1, 20000) == 1 && *(volatile uint32_t *)map & TP_STATUS_USER, "the ring is empty");
	pass();
}
