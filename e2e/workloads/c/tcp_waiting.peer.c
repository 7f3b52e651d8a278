/* The peer of tcp_waiting: connections that nobody has accepted yet, with data, with the end of the stream, and one that goes on. */
#include "tcp.h"

int main(void)
{
	static char data[50000], got[sizeof data];
	int family[] = {AF_INET, AF_INET6}, c[2][3];
	fill(data, sizeof data, 3);
	announce();
	int port[] = {await_number("../port4"), await_number("../port6")};
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < 3; k++)
			c[i][k] = connect_to(family[i], port[i]);
		write_all(c[i][1], data, sizeof data);
		write_all(c[i][2], "bye", 3);
		shutdown(c[i][2], SHUT_WR);
	}
	put_number("done", 1);
	await_number("../ready");
	for (int i = 0; i < 2; i++) {
		write_all(c[i][0], "late", 4);
		write_all(c[i][1], data, sizeof data);
		read_all(c[i][0], got, 4);
		CHECK(!memcmp(got, "late", 4), "late");
		read_all(c[i][1], got, sizeof got);
		CHECK(!memcmp(data, got, sizeof got), "data");
		read_all(c[i][2], got, 3);
		CHECK(!memcmp(got, "bye", 3) && read(c[i][2], got, 1) == 0, "bye");
	}
	while (!told)
		usleep(1000);
	pass();
}
