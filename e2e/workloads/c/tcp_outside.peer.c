/* The peer of tcp_outside: sends while its peer may be gone, and is answered. */
#include "tcp.h"

int main(void)
{
	static char data[200000], got[sizeof data];
	int family[] = {AF_INET, AF_INET6}, c[2];
	announce();
	int port[] = {await_number("../port4"), await_number("../port6")};
	for (int i = 0; i < 2; i++) {
		c[i] = connect_to(family[i], port[i]);
		fill(data, sizeof data, i);
		write_all(c[i], data, 5000);
	}
	await_number("../ready");
	for (int i = 0; i < 2; i++) {
		fill(data, sizeof data, i);
		write_all(c[i], data + 5000, sizeof data - 5000);
		read_all(c[i], got, sizeof got);
		CHECK(!memcmp(data, got, sizeof got), "echo %d", i);
		CHECK(read(c[i], got, 1) == 0, "end %d", i);
	}
	while (!told)
		usleep(1000);
	pass();
}
