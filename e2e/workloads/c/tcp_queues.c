/*
 * Connections to another process with full queues in both directions and shut windows, one that is corked, one that was shut down
 * with data unsent (FIN_WAIT1), and one that three processes share.
 */
#include "tcp.h"
#include <linux/sockios.h>

enum { PLAIN, CORKED, CLOSING, SHARED, N };

static char data[1 << 20], got[1 << 20];

static int fill_up(int fd)
{
	int sent = 0, n;
	for (int quiet = 0; quiet < 20; usleep(2000))
		if ((n = send(fd, data + sent, sizeof data - sent, MSG_DONTWAIT)) > 0)
			sent += n, quiet = 0;
		else
			quiet++;
	return sent;
}

int main(void)
{
	int s[N], l = listen_on(AF_INET, N), small = 50000, p[2], ack[2];
	CHECK(!setsockopt(l, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), "SO_RCVBUF");
	put_number("port", port_of(l));
	for (int i = 0; i < N; i++)
		CHECK((s[i] = accept(l, NULL, NULL)) >= 0, "accept");
	set_option(s[PLAIN], SOL_SOCKET, SO_SNDBUF, 30000);
	set_option(s[CLOSING], SOL_SOCKET, SO_SNDBUF, 30000);
	fill(data, sizeof data, 2);
	int total = fill_up(s[PLAIN]), sent = await_number("peer/sent");
	set_option(s[CORKED], IPPROTO_TCP, TCP_CORK, 1);
	write_all(s[CORKED], "corked ", 7);
	int end = fill_up(s[CLOSING]);
	CHECK(!shutdown(s[CLOSING], SHUT_WR) && tcp_state(s[CLOSING]) == TCP_FIN_WAIT1, "FIN_WAIT1");
	CHECK(!pipe(p) && !pipe(ack), "pipe");
	pid_t kid[2];
	for (int i = 0; i < 2; i++)
		if (!(kid[i] = fork())) {
			char c;
			close(p[1]);
			while (read(p[0], &c, 1) == 1) {
				write_all(s[SHARED], &c, 1);
				write_all(ack[1], "", 1);
			}
			_exit(0);
		}
	int dup_of = dup(s[SHARED]);
	close(p[0]);
	int unsent = 0, outq = 0, outq_now = 0;
	CHECK(!ioctl(s[PLAIN], SIOCOUTQ, &outq), "SIOCOUTQ");
	put_number("total", total);
	ready();
	CHECK(!ioctl(s[PLAIN], SIOCOUTQ, &outq_now) && outq_now <= outq && !ioctl(s[PLAIN], SIOCOUTQNSD, &unsent) && unsent > 0, "SIOCOUTQ %d, was %d, %d not sent",
	      outq_now, outq, unsent);
	CHECK(option(s[PLAIN], SOL_SOCKET, SO_SNDBUF) == 60000, "SO_SNDBUF");
	CHECK(option(s[CORKED], IPPROTO_TCP, TCP_CORK) == 1 && tcp_state(s[CLOSING]) == TCP_FIN_WAIT1, "cork, state");
	put_number("go", 1);
	fill(data, sizeof data, 1);
	read_all(s[PLAIN], got, sent);
	CHECK(!memcmp(got, data, sent), "what came before the window was shut");
	write_all(s[CORKED], "text", 4);
	set_option(s[CORKED], IPPROTO_TCP, TCP_CORK, 0);
	put_number("end", end);
	read_all(s[CLOSING], got, 5);
	CHECK(!memcmp(got, "still", 5), "the other direction");
	for (int i = 0; i < 3; i++) {
		char c;
		write_all(p[1], &"abc"[i], 1);
		read_all(ack[0], &c, 1);
	}
	write_all(dup_of, "d", 1);
	close(p[1]);
	for (int i = 0; i < 2; i++)
		CHECK(waitpid(kid[i], NULL, 0) == kid[i], "wait");
	pass();
}
