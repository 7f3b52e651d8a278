/* Connections that wait to be accepted, from another process and from this one: in their order, with what was sent meanwhile. */
#include "tcp.h"

static void echo(int s, int n)
{
	static char got[100000];
	read_all(s, got, n);
	write_all(s, got, n);
}

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, l[2], own, own_c, port[2];
	static char data[50000], got[sizeof data];
	fill(data, sizeof data, 3);
	for (int i = 0; i < 2; i++) {
		l[i] = listen_on(family[i], 5);
		put_number(i ? "port6" : "port4", port[i] = port_of(l[i]));
	}
	own = listen_on(AF_INET6, 3);
	own_c = connect_to(AF_INET6, port_of(own));
	write_all(own_c, "inside", 6);
	await_number("peer/done");
	usleep(20000);
	ready();
	for (int i = 0; i < 2; i++) {
		struct tcp_info info;
		socklen_t len = sizeof info;
		CHECK(!getsockopt(l[i], IPPROTO_TCP, TCP_INFO, &info, &len) && info.tcpi_unacked == 3, "%u are waiting", info.tcpi_unacked);
		int s = accept(l[i], NULL, NULL);
		CHECK(s >= 0 && port_of(s) == port[i], "accept");
		echo(s, 4);
		s = accept(l[i], NULL, NULL);
		CHECK(s >= 0, "accept");
		read_all(s, got, sizeof got);
		CHECK(!memcmp(got, data, sizeof got), "data");
		echo(s, sizeof data);
		s = accept(l[i], NULL, NULL);
		CHECK(s >= 0 && tcp_state(s) == TCP_CLOSE_WAIT, "accept");
		read_all(s, got, 3);
		CHECK(read(s, got + 3, 1) == 0, "end");
		write_all(s, got, 3);
		close(s);
	}
	int s = accept(own, NULL, NULL);
	CHECK(s >= 0, "accept");
	echo(s, 6);
	read_all(own_c, got, 6);
	CHECK(!memcmp(got, "inside", 6), "inside");
	pass();
}
