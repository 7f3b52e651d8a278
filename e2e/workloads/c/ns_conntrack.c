/* Connections that the kernel tracks in a network namespace of its own: UDP and TCP, with marks; a rule that wants an established one lets it go on. */
#include "workload.h"
#include <arpa/inet.h>
#include <sched.h>
#include <sys/socket.h>

static const char setup[] = "ip link set lo up && nft -f - <<'N'\n"
			    "table inet t {\n"
			    "  chain out {\n    type filter hook output priority 0;\n"
			    "    udp sport 5000 ct state new ct mark set 7\n    tcp dport 5002 ct state new ct mark set 9\n  }\n"
			    "  chain in {\n    type filter hook input priority 0;\n"
			    "    tcp dport 5002 ct mark 9 ct state established counter name ok\n  }\n"
			    "  counter ok { }\n"
			    "}\nN\n";

/* What is tracked, sorted, without the time that is left. */
static const char question[] = "sed -e 's/^\\(ipv[46] *[0-9]* [a-z0-9]* *[0-9]*\\) [0-9]*/\\1/' -e 's/use=.*//' /proc/net/nf_conntrack | sort";

static void ask(char *out, int size)
{
	FILE *f = popen(question, "r");
	CHECK(f, "popen");
	int n = fread(out, 1, size - 1, f);
	out[n] = 0;
	CHECK(!pclose(f) && n, "nothing is tracked");
}

static struct sockaddr_in at(int port)
{
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static char before[8192], after[8192];

int main(void)
{
	CHECK(!unshare(CLONE_NEWNET) && !system(setup), "set up");
	struct sockaddr_in a = at(5000), b = at(5001), l = at(5002);
	int from = socket(AF_INET, SOCK_DGRAM, 0), to = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(!bind(from, (void *)&a, sizeof a) && !bind(to, (void *)&b, sizeof b), "bind");
	char c;
	CHECK(sendto(from, "x", 1, 0, (void *)&b, sizeof b) == 1 && recv(to, &c, 1, 0) == 1, "datagram");
	int listener = socket(AF_INET, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(!bind(listener, (void *)&l, sizeof l) && !listen(listener, 1) && !connect(tcp, (void *)&l, sizeof l), "connect");
	int other = accept(listener, NULL, NULL);
	CHECK(other >= 0 && send(tcp, "y", 1, 0) == 1 && recv(other, &c, 1, 0) == 1, "stream");
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = htons(5003), .sin6_addr = IN6ADDR_LOOPBACK_INIT}, b6 = a6;
	int from6 = socket(AF_INET6, SOCK_DGRAM, 0), to6 = socket(AF_INET6, SOCK_DGRAM, 0);
	b6.sin6_port = htons(5004);
	CHECK(!bind(from6, (void *)&a6, sizeof a6) && !bind(to6, (void *)&b6, sizeof b6), "bind, IPv6");
	CHECK(sendto(from6, "x", 1, 0, (void *)&b6, sizeof b6) == 1 && recv(to6, &c, 1, 0) == 1, "datagram, IPv6");
	struct { unsigned char type, code; unsigned short sum, id, seq; } echo = {8, 0, 0, htons(77), htons(1)};
	echo.sum = ~(unsigned short)(htons(0x0800) + htons(77) + htons(1));
	struct sockaddr_in lo = at(0);
	int raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	CHECK(raw >= 0 && sendto(raw, &echo, sizeof echo, 0, (void *)&lo, sizeof lo) == sizeof echo && !close(raw), "echo");
	CHECK(!system("nft reset counter inet t ok >/dev/null"), "counter");
	ask(before, sizeof before);
	CHECK(strstr(before, "mark=7") && strstr(before, "mark=9") && strstr(before, "ESTABLISHED") && strstr(before, "ipv6") && strstr(before, "icmp"), "tracked: %s", before);
	ready();
	ask(after, sizeof after);
	if (strcmp(before, after))
		fprintf(stderr, "before:\n%s\nafter:\n%s\n", before, after);
	CHECK(!strcmp(before, after), "other connections are tracked");
	CHECK(send(tcp, "z", 1, 0) == 1 && recv(other, &c, 1, 0) == 1 && c == 'z', "the stream goes on");
	CHECK(!system("nft list counter inet t ok | grep -q 'packets [1-9]'"), "the rule does not take it for established");
	pass();
}
