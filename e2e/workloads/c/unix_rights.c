/*
 * Descriptors in flight over unix sockets of all types: files, pipes, sockets, sockets inside sockets, epoll sets, listeners, a socket
 * sent over itself, and a byte out of band.
 */
#include "unixsock.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static void send_fds(int over, const char *text, int n, const int *fds)
{
	char control[CMSG_SPACE(16 * sizeof(int))] = {0};
	struct iovec iov = {(char *)text, strlen(text)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(n * sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	CHECK(sendmsg(over, &m, 0) == (ssize_t)strlen(text), "send \"%s\" with descriptors", text);
}

static void take_fds(int from, const char *want, int n, int *fds)
{
	char control[CMSG_SPACE(16 * sizeof(int))], buf[64];
	struct iovec iov = {buf, sizeof buf};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t got = recvmsg(from, &m, MSG_DONTWAIT);
	CHECK(got == (ssize_t)strlen(want) && !memcmp(buf, want, got), "received %zd bytes \"%.*s\", want \"%s\"", got, (int)(got > 0 ? got : 0), buf, want);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (!n) {
		CHECK(!c, "descriptors came with \"%s\"", want);
		return;
	}
	CHECK(c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(n * sizeof(int)), "not %d descriptors with \"%s\"", n, want);
	memcpy(fds, CMSG_DATA(c), n * sizeof(int));
}

int main(void)
{
	static const int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
	int p[3][2];
	for (int i = 0; i < 3; i++) {
		CHECK(!socketpair(AF_UNIX, types[i], 0, p[i]), "socketpair");
		int file = open("shared-file", O_RDWR | O_CREAT, 0600), kept_file = dup(file), pi[2], in[2], deep[2];
		CHECK(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 3, SEEK_SET) == 3 && !pipe(pi), "file, pipe");
		CHECK(write(pi[1], "piped", 5) == 5, "pipe");
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, in) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, deep), "socketpair");
		int ev = eventfd(5, EFD_NONBLOCK), ep = epoll_create1(0), kept_ev = eventfd(1, 0);
		struct epoll_event e = {.events = EPOLLIN, .data.u64 = 77};
		CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, kept_ev, &e), "epoll_ctl");
		int l = listener(SOCK_STREAM, i == 0 ? "@l0" : i == 1 ? "@l1" : "@l2");
		/* a socket with a file inside, that is inside another one */
		send_fds(deep[0], "deep", 1, &pi[0]);
		send_fds(in[0], "inner", 2, deep);
		say(p[i][0], "before");
		send_fds(p[i][0], "first", 3, (int[]){file, pi[1], in[1]});
		send_fds(p[i][0], "second", 4, (int[]){ev, ep, l, in[0]});
		say(p[i][0], "after");
		close(file), close(pi[0]), close(pi[1]), close(in[0]), close(in[1]), close(deep[0]), close(deep[1]), close(ev), close(ep), close(l);
		keep("type", kept_file, kept_ev);
	}
	/* over itself, and a ring of two */
	int self[2], ring[2], oob[2];
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, self) && !socketpair(AF_UNIX, SOCK_STREAM, 0, ring) && !socketpair(AF_UNIX, SOCK_STREAM, 0, oob), "socketpair");
	send_fds(self[0], "self", 2, self);
	send_fds(ring[0], "ring", 1, &ring[0]);
	send_fds(ring[1], "ring", 1, &ring[1]);
	close(ring[1]);
	say(oob[0], "abc");
	CHECK(send(oob[0], "X", 1, MSG_OOB) == 1, "MSG_OOB");
	say(oob[0], "def");
	ready();
	for (int i = 0; i < 3; i++) {
		struct kept *k = next("type");
		int a[3], b[4], d[2], r;
		char buf[64];
		if (types[i] == SOCK_STREAM) {
			take_fds(p[i][1], "beforefirst", 3, a);
			take_fds(p[i][1], "second", 4, b);
		} else {
			take_fds(p[i][1], "before", 0, NULL);
			take_fds(p[i][1], "first", 3, a);
			take_fds(p[i][1], "second", 4, b);
		}
		take_fds(p[i][1], "after", 0, NULL);
		CHECK(read(a[0], buf, 2) == 2 && !memcmp(buf, "34", 2) && lseek(k->a, 0, SEEK_CUR) == 5, "the file is not the one that is shared");
		take_fds(a[2], "inner", 2, d);
		take_fds(d[1], "deep", 1, &r);
		CHECK(read(r, buf, sizeof buf) == 5 && !memcmp(buf, "piped", 5), "the pipe's contents");
		CHECK(write(a[1], "more", 4) == 4 && read(r, buf, sizeof buf) == 4, "the pipe");
		say(b[3], "to the inner");
		hear(a[2], "to the inner");
		uint64_t n;
		struct epoll_event e;
		CHECK(read(b[0], &n, 8) == 8 && n == 5 && read(b[0], &n, 8) < 0 && errno == EAGAIN, "eventfd");
		CHECK(epoll_wait(b[1], &e, 1, 0) == 1 && e.data.u64 == 77, "epoll set");
		CHECK(read(k->b, &n, 8) == 8 && epoll_wait(b[1], &e, 1, 0) == 0, "epoll set watches another one");
		int c = client(SOCK_STREAM, i == 0 ? "@l0" : i == 1 ? "@l1" : "@l2", NULL);
		CHECK(accept(b[2], NULL, NULL) >= 0, "the listener, with %d", c);
	}
	int s[2], x;
	take_fds(self[1], "self", 2, s);
	say(s[0], "through itself");
	hear(self[1], "through itself");
	take_fds(ring[0], "ring", 1, &x);
	take_fds(x, "ring", 1, &x);
	say(x, "around");
	int at = -1;
	char c;
	hear(oob[1], "abc");
	CHECK(sockatmark(oob[1]) == 1 && recv(oob[1], &c, 1, MSG_OOB) == 1 && c == 'X', "out of band: %c, mark %d", c, at);
	hear(oob[1], "def");
	pass();
}
