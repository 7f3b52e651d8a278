/*
 * Every state of a connection, both ends in the process, v4 and v6: half closed with data in both directions, closed and still held,
 * and what is read and written afterwards.
 */
#include "tcp.h"

struct pair { int c, s; };

static struct pair connected(int family)
{
	struct pair p;
	int l = listen_on(family, 1);
	p.c = connect_to(family, port_of(l));
	CHECK((p.s = accept(l, NULL, NULL)) >= 0, "accept");
	close(l);
	return p;
}

static void ends(int fd, const char *what)
{
	char c;
	CHECK(read(fd, &c, 1) == 0, "end of %s", what);
}

static void gets(int fd, const char *want, const char *what)
{
	char got[16] = {0};
	read_all(fd, got, strlen(want));
	CHECK(!strcmp(got, want), "%s: %s", what, got);
}

int main(void)
{
	int family[] = {AF_INET, AF_INET6};
	struct pair half[2], both[2], quiet[2], last[2], rd[2];
	char c;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < 2; i++) {
		/* One direction closed: FIN_WAIT2 and CLOSE_WAIT. */
		half[i] = connected(family[i]);
		write_all(half[i].c, "last words", 10);
		write_all(half[i].s, "unread", 6);
		shutdown(half[i].c, SHUT_WR);
		await_state(half[i].c, TCP_FIN_WAIT2);
		await_state(half[i].s, TCP_CLOSE_WAIT);
		/* Both closed in turn: CLOSE (TIME_WAIT is nobody's any more), with unread data. */
		both[i] = connected(family[i]);
		write_all(both[i].c, "one", 3);
		write_all(both[i].s, "two", 3);
		shutdown(both[i].c, SHUT_WR);
		await_state(both[i].s, TCP_CLOSE_WAIT);
		shutdown(both[i].s, SHUT_WR);
		await_state(both[i].c, TCP_CLOSE);
		await_state(both[i].s, TCP_CLOSE);
		/* The same, read to the end. */
		quiet[i] = connected(family[i]);
		shutdown(quiet[i].c, SHUT_WR);
		await_state(quiet[i].s, TCP_CLOSE_WAIT);
		shutdown(quiet[i].s, SHUT_WR);
		await_state(quiet[i].c, TCP_CLOSE);
		await_state(quiet[i].s, TCP_CLOSE);
		ends(quiet[i].c, "quiet");
		/* The peer closed its descriptor in FIN_WAIT2. */
		last[i] = connected(family[i]);
		write_all(last[i].c, "bye", 3);
		close(last[i].c);
		await_state(last[i].s, TCP_CLOSE_WAIT);
		/* Reading shut down. */
		rd[i] = connected(family[i]);
		shutdown(rd[i].s, SHUT_RD);
	}
	ready();
	for (int i = 0; i < 2; i++) {
		CHECK(tcp_state(half[i].c) == TCP_FIN_WAIT2 && tcp_state(half[i].s) == TCP_CLOSE_WAIT, "half closed");
		CHECK(write(half[i].c, "x", 1) < 0 && errno == EPIPE, "write after shutdown");
		gets(half[i].s, "last words", "half closed");
		ends(half[i].s, "half closed");
		write_all(half[i].s, " data", 5);
		gets(half[i].c, "unread data", "the other half");
		shutdown(half[i].s, SHUT_WR);
		ends(half[i].c, "the other half");

		CHECK(tcp_state(both[i].c) == TCP_CLOSE && tcp_state(both[i].s) == TCP_CLOSE, "closed");
		struct pollfd p = {.fd = both[i].c, .events = POLLIN | POLLRDHUP | POLLOUT};
		CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLRDHUP | POLLHUP | POLLOUT), "poll %x", p.revents);
		CHECK(remote_port(both[i].c) < 0 && errno == ENOTCONN, "no peer");
		gets(both[i].c, "two", "closed");
		gets(both[i].s, "one", "closed");
		ends(both[i].c, "closed");
		ends(both[i].s, "closed");
		CHECK(write(both[i].c, "x", 1) < 0 && errno == EPIPE, "write after the end");
		CHECK(option(both[i].c, SOL_SOCKET, SO_ERROR) == 0, "no error");

		ends(quiet[i].c, "quiet");
		ends(quiet[i].s, "quiet");
		union address a;
		CHECK(connect(quiet[i].c, &a.sa, loopback(&a, family[i], 9)) && errno == EISCONN, "connect again");

		CHECK(tcp_state(last[i].s) == TCP_CLOSE_WAIT, "close wait");
		gets(last[i].s, "bye", "closed peer");
		ends(last[i].s, "closed peer");

		write_all(rd[i].c, "y", 1);
		await_queued(rd[i].s, 1); /* it is read all the same */
		CHECK(read(rd[i].s, &c, 1) == 1, "shut down for reading");
		ends(rd[i].s, "shut down for reading");
		write_all(rd[i].s, "z", 1);
		gets(rd[i].c, "z", "written after SHUT_RD");
	}
	pass();
}
