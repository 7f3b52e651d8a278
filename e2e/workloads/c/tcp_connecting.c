/* Sockets that are connecting (SYN_SENT), one of them in a thread that waits for it: they go on to connect. */
#include "tcp.h"
#include <pthread.h>

static int blocking, port4;

static void *connecting(void *arg)
{
	union address a;
	loopback(&a, AF_INET, port4);
	CHECK(!connect(blocking, &a.sa, sizeof a.in), "blocking connect");
	return arg;
}

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, c[2], local[2];
	int port[] = {port4 = await_number("peer/port4"), await_number("peer/port6")};
	for (int i = 0; i < 2; i++) {
		union address a;
		socklen_t len = loopback(&a, family[i], port[i]);
		c[i] = socket(family[i], SOCK_STREAM | SOCK_NONBLOCK, 0);
		set_option(c[i], IPPROTO_TCP, TCP_NODELAY, 1);
		CHECK(connect(c[i], &a.sa, len) && errno == EINPROGRESS, "connect");
		CHECK(tcp_state(c[i]) == TCP_SYN_SENT, "state %d", tcp_state(c[i]));
		local[i] = port_of(c[i]);
	}
	blocking = socket(AF_INET, SOCK_STREAM, 0);
	pthread_t t;
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	CHECK(!pthread_create(&t, NULL, connecting, NULL), "thread");
	pthread_sigmask(SIG_UNBLOCK, &term, NULL);
	await_state(blocking, TCP_SYN_SENT);
	ready();
	for (int i = 0; i < 2; i++)
		CHECK(tcp_state(c[i]) == TCP_SYN_SENT && port_of(c[i]) == local[i], "state %d, port %d", tcp_state(c[i]), port_of(c[i]));
	put_number("go", 1);
	CHECK(!pthread_join(t, NULL), "join");
	char got[5];
	read_all(blocking, got, 5);
	CHECK(write(blocking, "b", 1) == 1, "write");
	for (int i = 0; i < 2; i++) {
		struct pollfd p = {.fd = c[i], .events = POLLOUT};
		CHECK(poll(&p, 1, 30000) == 1 && p.revents == POLLOUT, "poll: %x", p.revents);
		CHECK(option(c[i], SOL_SOCKET, SO_ERROR) == 0 && option(c[i], IPPROTO_TCP, TCP_NODELAY) == 1, "SO_ERROR");
		CHECK(fcntl(c[i], F_SETFL, 0) == 0, "F_SETFL");
		read_all(c[i], got, 5);
		CHECK(!memcmp(got, "hello", 5) && write(c[i], "n", 1) == 1, "exchange");
	}
	pass();
}
