/* Rules of nftables in a network namespace of its own: chains, sets, maps, counters, quotas, and that they still do what they say. */
#include "workload.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static const char rules[] =
	"table inet filter {\n"
	"  counter hits { packets 7 bytes 700 }\n"
	"  quota much { over 5 mbytes used 1000 bytes }\n"
	"  set ports { type inet_service; flags interval; elements = { 7000-7010, 8080 } }\n"
	"  set slow { type ipv4_addr; flags timeout; elements = { 10.0.0.1 timeout 1h } }\n"
	"  map jumps { type ipv4_addr : verdict; elements = { 127.0.0.1 : jump local, 10.0.0.9 : drop } }\n"
	"  set pairs { type ipv4_addr . inet_service; elements = { 10.1.1.1 . 80 } }\n"
	"  chain local { counter name hits comment \"kept\"; }\n"
	"  chain input { type filter hook input priority 0; policy accept;\n"
	"    ip saddr vmap @jumps\n"
	"    udp dport 9999 counter packets 3 bytes 300 drop\n"
	"    tcp dport { 22, 80, 443 } accept\n"
	"    tcp dport @ports quota name much\n"
	"    limit rate 10/second burst 5 packets ct state established,related accept\n"
	"  }\n"
	"}\n"
	"table ip nat { chain post {\n type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 masquerade\n }\n }\n"
	"table ip6 empty { }\n";

/* The rules without what goes on by itself. */
static void list(char *out, int size)
{
	FILE *f = popen("nft list ruleset", "r");
	int n = 0;
	CHECK(f, "nft");
	char line[512];
	while (fgets(line, sizeof line, f) && n + (int)strlen(line) < size) {
		char *p = strstr(line, " expires ");
		if (p)
			*p = 0;
		n += sprintf(out + n, "%s", line);
	}
	CHECK(!pclose(f), "nft list ruleset");
}

/* filtered sends to a port that is dropped and then to one that is not: what comes on the second would have come on the first before. */
static int filtered(void)
{
	int from = socket(AF_INET, SOCK_DGRAM, 0), to[2];
	for (int i = 0; i < 2; i++) {
		struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9999 - i), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		to[i] = socket(AF_INET, SOCK_DGRAM, 0);
		CHECK(!bind(to[i], (void *)&a, sizeof a) && sendto(from, "x", 1, 0, (void *)&a, sizeof a) == 1, "datagram");
	}
	char c;
	struct pollfd p = {to[1], POLLIN, 0};
	int passed = poll(&p, 1, 20000) == 1 && recv(to[1], &c, 1, MSG_DONTWAIT) == 1, dropped = recv(to[0], &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
	close(from), close(to[0]), close(to[1]);
	return passed && dropped;
}

static char before[1 << 16], after[1 << 16];

int main(void)
{
	CHECK(!unshare(CLONE_NEWNET), "unshare");
	struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(!ioctl(s, SIOCSIFFLAGS, &r), "lo");
	close(s);
	FILE *f = popen("nft -f -", "w");
	CHECK(f && fputs(rules, f) >= 0 && !pclose(f), "nft -f");
	CHECK(filtered(), "the rules before");
	list(before, sizeof before);
	CHECK(strstr(before, "masquerade") && strstr(before, "8080"), "the list of rules");
	ready();
	list(after, sizeof after);
	CHECK(!strcmp(before, after), "the rules differ%d", printf("before\n%s\nafter\n%s\n", before, after) * fflush(stdout));
	CHECK(filtered(), "the rules after");
	pass();
}
