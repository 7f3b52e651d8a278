/* Connections that ended by a reset: the error is seen once, after what had been received, and connecting that was refused. */
#include "tcp.h"

static int reset_by_peer(int family, const char *data, int fin)
{
	int l = listen_on(family, 1), c = connect_to(family, port_of(l)), s = accept(l, NULL, NULL);
	struct linger now = {1, 0};
	CHECK(s >= 0, "accept");
	write_all(c, data, strlen(data));
	await_queued(s, strlen(data));
	if (fin) {
		shutdown(c, SHUT_WR);
		await_state(s, TCP_CLOSE_WAIT);
	}
	CHECK(!setsockopt(c, SOL_SOCKET, SO_LINGER, &now, sizeof now), "SO_LINGER");
	close(c);
	await_state(s, TCP_CLOSE);
	close(l);
	return s;
}

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, fresh[2], data[2], seen[2], pipe[2], refused[2];
	char c;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < 2; i++) {
		fresh[i] = reset_by_peer(family[i], "", 0);
		data[i] = reset_by_peer(family[i], "data", 0);
		seen[i] = reset_by_peer(family[i], "", 0);
		pipe[i] = reset_by_peer(family[i], "", 1);
		CHECK(read(seen[i], &c, 1) < 0 && errno == ECONNRESET, "reset");
		int l = listen_on(family[i], 1), port = port_of(l);
		close(l);
		union address a;
		socklen_t len = loopback(&a, family[i], port);
		refused[i] = socket(family[i], SOCK_STREAM | SOCK_NONBLOCK, 0);
		CHECK(connect(refused[i], &a.sa, len) < 0, "nobody listens");
	}
	ready();
	for (int i = 0; i < 2; i++) {
		struct pollfd p = {.fd = fresh[i], .events = POLLIN | POLLOUT | POLLRDHUP};
		CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP), "poll %x", p.revents);
		CHECK(read(fresh[i], &c, 1) < 0 && errno == ECONNRESET, "reset");
		CHECK(read(fresh[i], &c, 1) == 0, "then the end");
		CHECK(write(fresh[i], &c, 1) < 0 && errno == EPIPE, "no way to write");
		char got[4];
		read_all(data[i], got, 4);
		CHECK(!memcmp(got, "data", 4) && option(data[i], SOL_SOCKET, SO_ERROR) == ECONNRESET, "data, then the error");
		CHECK(read(seen[i], &c, 1) == 0, "an error that was seen");
		CHECK(option(pipe[i], SOL_SOCKET, SO_ERROR) == EPIPE, "EPIPE");
		int e = option(refused[i], SOL_SOCKET, SO_ERROR);
		CHECK(e == ECONNREFUSED || e == 0, "refused: %d", e);
	}
	pass();
}
