/* The peer of tcp_queues: reads nothing until it is told to, so that the other's queues stay as they are. */
#include "tcp.h"

enum { PLAIN, CORKED, CLOSING, SHARED, N };

int main(void)
{
	static char data[1 << 20], got[1 << 20];
	int c[N], small = 50000;
	announce();
	int port = await_number("../port");
	for (int i = 0; i < N; i++) {
		union address a;
		c[i] = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(!setsockopt(c[i], SOL_SOCKET, SO_RCVBUF, &small, sizeof small), "SO_RCVBUF");
		CHECK(!connect(c[i], &a.sa, loopback(&a, AF_INET, port)), "connect");
	}
	/* Fill the other's receive buffer until its window is shut. */
	fill(data, sizeof data, 1);
	int sent = 0, n;
	for (int quiet = 0; quiet < 20; usleep(2000))
		if ((n = send(c[PLAIN], data + sent, sizeof data - sent, MSG_DONTWAIT)) > 0)
			sent += n, quiet = 0;
		else
			quiet++;
	put_number("sent", sent);
	int total = await_number("../total");
	await_number("../go");
	fill(data, sizeof data, 2);
	read_all(c[PLAIN], got, total);
	CHECK(!memcmp(got, data, total), "what was sent into a shut window");
	read_all(c[CORKED], got, 11);
	CHECK(!memcmp(got, "corked text", 11), "corked");
	int end = await_number("../end");
	read_all(c[CLOSING], got, end);
	CHECK(!memcmp(got, data, end) && read(c[CLOSING], got, 1) == 0, "what was sent before the end");
	write_all(c[CLOSING], "still", 5);
	read_all(c[SHARED], got, 4);
	CHECK(!memcmp(got, "abcd", 4), "shared: %.4s", got);
	while (!told)
		usleep(1000);
	pass();
}
