/* Packet sockets with rings that are mapped, shared and private, also by a child that has no descriptor of it; frames arrive in them and
 * are sent from them afterwards. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

enum { proto = 0x88b6, BLOCK = 4096, FRAME = 2048, BLOCKS = 2, RING = BLOCK * BLOCKS }; /* for local experiments */

static int open_ring(int version, int both, struct sockaddr_ll *lo)
{
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	struct tpacket_req3 req = {.tp_block_size = BLOCK, .tp_block_nr = BLOCKS, .tp_frame_size = FRAME, .tp_frame_nr = RING / FRAME, .tp_retire_blk_tov = 1};
	socklen_t n = version == TPACKET_V3 ? sizeof req : sizeof(struct tpacket_req);
	CHECK(fd >= 0 && !setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version), "version");
	CHECK(!setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &req, n), "PACKET_RX_RING");
	CHECK(!both || !setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &req, n), "PACKET_TX_RING");
	CHECK(!bind(fd, (struct sockaddr *)lo, sizeof *lo), "bind");
	return fd;
}

static void await(int fd, volatile uint32_t *status, uint32_t bit)
{
	while (!(__atomic_load_n(status, __ATOMIC_ACQUIRE) & bit)) {
		struct pollfd p = {fd, POLLIN, 0};
		CHECK(poll(&p, 1, 20000) == 1, "no frame");
	}
}

static int is_mapped(void *at, int fd)
{
	struct stat st;
	char line[512], want[64];
	unsigned long start;
	int found = 0;
	CHECK(!fstat(fd, &st), "fstat");
	snprintf(want, sizeof want, "socket:[%lu]", (unsigned long)st.st_ino);
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f))
		found += sscanf(line, "%lx-", &start) == 1 && start == (unsigned long)at && strstr(line, want);
	fclose(f);
	return found;
}

int main(void)
{
	struct sockaddr_ll lo = {.sll_family = AF_PACKET, .sll_protocol = htons(proto), .sll_ifindex = if_nametoindex("lo")};
	int v2 = open_ring(TPACKET_V2, 1, &lo), v3 = open_ring(TPACKET_V3, 0, &lo), told_fds[2];
	char *two = mmap(NULL, 2 * RING, PROT_READ | PROT_WRITE, MAP_SHARED, v2, 0), *three = mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_PRIVATE, v3, 0);
	CHECK(two != MAP_FAILED && three != MAP_FAILED && !pipe(told_fds), "mmap");
	pid_t child = fork();
	if (!child) {
		close(v2);
		char c;
		if (read(told_fds[0], &c, 1) != 1)
			_exit(1);
		await(-1, &((struct tpacket2_hdr *)two)->tp_status, TP_STATUS_USER); /* it has come: nothing to wait for */
		_exit(((struct tpacket2_hdr *)two)->tp_len == 60 ? 0 : 2);
	}
	ready();
	CHECK(is_mapped(two, v2) && is_mapped(three, v3), "not mapped");
	struct tpacket2_hdr *out = (void *)(two + RING), *in = (void *)two;
	unsigned char *frame = (unsigned char *)out + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll);
	memset(frame, 0, 60);
	frame[12] = proto >> 8, frame[13] = proto & 0xff;
	memcpy(frame + 14, "a frame", 8);
	out->tp_len = 60;
	out->tp_status = TP_STATUS_SEND_REQUEST;
	CHECK(send(v2, NULL, 0, 0) == 60, "send");
	await(v2, &in->tp_status, TP_STATUS_USER);
	CHECK(in->tp_len == 60 && !strcmp((char *)in + in->tp_mac + 14, "a frame"), "another frame of %u bytes", in->tp_len);
	struct tpacket_block_desc *b = (void *)three;
	await(v3, &b->hdr.bh1.block_status, TP_STATUS_USER);
	struct tpacket3_hdr *h = (void *)(three + b->hdr.bh1.offset_to_first_pkt);
	CHECK(b->hdr.bh1.num_pkts >= 1 && !strcmp((char *)h + h->tp_mac + 14, "a frame"), "%u frames", b->hdr.bh1.num_pkts);
	int status;
	CHECK(write(told_fds[1], "x", 1) == 1 && waitpid(child, &status, 0) == child && status == 0, "the child: %x", status);
	pass();
}
