/*
 * What a network namespace of its own has beside the usual: vxlan, ifb and macvlan devices, other names, settings and forwarding entries of a
 * bridge, queueing disciplines with classes, next hops, proxies, neighbours that were found, address labels, several tables of routes.
 */
#include "workload.h"
#include <sched.h>

static const char *setup[] = {
	"echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6", /* it would talk by itself */
	"echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
	"ip link set lo up",
	"ip link add v0 type veth peer name v1",
	"ip link set v0 alias 'the first' mtu 1400",
	"ip link property add dev v0 altname another-name altname a-third-name",
	"ip link add br0 type bridge",
	"ip link set v1 master br0",
	"ip link set br0 up",
	"ip link set v1 up",
	"ip link set v0 up",
	"ip addr add 10.0.0.1/24 dev v0",
	"bridge link set dev v1 cost 50 hairpin on learning off",
	"bridge fdb add 02:00:00:00:00:99 dev v1 master static",
	"ip link add vx0 type vxlan id 42 dev v0 remote 10.0.0.2 local 10.0.0.1 dstport 4789 ttl 5 nolearning",
	"ip link add vx1 type vxlan id 43 dstport 4790 ttl inherit",
	"ip link set vx0 up",
	"bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.0.0.3",
	"bridge fdb add 02:00:00:00:00:98 dev vx0 dst 10.0.0.4",
	"ip link add mv0 link v0 type macvlan mode bridge",
	"ip link set mv0 up",
	"ip maddr add 33:33:00:00:12:34 dev v0",
	"ip link set mv0 gso_max_size 30000 gso_max_segs 20",
	"ip link add ifb9 type ifb",
	"ip link set ifb9 up",
	"tc qdisc add dev ifb9 root pfifo limit 77",
	"tc qdisc add dev vx1 root tbf rate 1mbit burst 10k latency 50ms",
	"tc qdisc add dev v0 ingress",
	"tc qdisc add dev v0 root handle 1: htb default 10",
	"tc class add dev v0 parent 1: classid 1:1 htb rate 6mbit burst 15k",
	"tc class add dev v0 parent 1:1 classid 1:10 htb rate 5mbit ceil 6mbit prio 3",
	"tc class add dev v0 parent 1:1 classid 1:11 htb rate 1mbit",
	"tc qdisc add dev v0 parent 1:10 handle 20: bfifo limit 5000",
	"ip nexthop add id 5 via 10.0.0.2 dev v0",
	"ip nexthop add id 6 via 10.0.0.3 dev v0",
	"ip nexthop add id 3 group 5/6,2",
	"ip nexthop add id 7 blackhole",
	"ip route add 10.5.0.0/16 nhid 3",
	"ip route add 10.6.0.0/16 nhid 7",
	"ip route add 10.9.0.0/16 dev v0 table 100",
	"ip route add default via 10.0.0.2 table 200",
	"ip rule add fwmark 7 lookup 200 prio 50",
	"ip neigh add 10.0.0.5 lladdr 02:00:00:00:00:05 dev v0 nud permanent",
	"ip neigh add 10.0.0.6 lladdr 02:00:00:00:00:06 dev v0 nud stale",
	"ip neigh add proxy 10.0.0.77 dev v0",
	"ip addrlabel add prefix fd01::/16 label 77",
	"ip addrlabel del prefix 2002::/16 label 2",
};

static const char *questions[] = {
	"ip -d link show | grep -v -e hello_timer -e hold_timer",
	"ip addr show dev v0 | grep 'inet '",
	"bridge fdb show br br0 | grep static",
	"bridge fdb show dev vx0 | sort",
	"bridge -d link show dev v1",
	"tc qdisc show dev ifb9; tc qdisc show dev vx1; tc qdisc show dev v0 | sed 's/direct_packets_stat [0-9]*//' | sort; tc class show dev v0 | sort",
	"ip nexthop show; ip route show table all | sort; ip rule",
	"ip neigh show nud permanent; ip neigh show nud stale; ip neigh show proxy",
	"ip addrlabel | sort",
	"ip maddr show dev v0 | grep static",
};

#define QUESTIONS (int)(sizeof questions / sizeof *questions)

static void ask(const char *question, char *out, int size)
{
	FILE *f = popen(question, "r");
	CHECK(f, "%s", question);
	int n = fread(out, 1, size - 1, f);
	out[n] = 0;
	CHECK(!pclose(f) && n, "%s", question);
}

static char before[QUESTIONS][1 << 14], after[1 << 14];

int main(void)
{
	CHECK(!unshare(CLONE_NEWNET), "unshare");
	for (int i = 0; i < (int)(sizeof setup / sizeof *setup); i++)
		CHECK(!system(setup[i]), "%s", setup[i]);
	for (int i = 0; i < QUESTIONS; i++)
		ask(questions[i], before[i], sizeof before[i]);
	ready();
	for (int i = 0; i < QUESTIONS; i++) {
		ask(questions[i], after, sizeof after);
		if (strcmp(before[i], after))
			fprintf(stderr, "before:\n%s\nafter:\n%s\n", before[i], after);
		CHECK(!strcmp(before[i], after), "%s: it is different", questions[i]);
	}
	pass();
}
