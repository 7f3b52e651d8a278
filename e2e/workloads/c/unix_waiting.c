/*
 * Connections that wait to be accepted, with what their clients have sent: little, much, a descriptor; by clients that are
 * still there, half-closed and closed.
 */
#include "unixsock.h"

static char big[3000];

static void fd_along(int over, const char *text, int fd)
{
	char control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec iov = {(char *)text, strlen(text)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	CHECK(sendmsg(over, &m, 0) == (ssize_t)strlen(text), "send a descriptor");
}

static void set_up(int type, const char *name)
{
	int l = listener(type, name), a = client(type, name, NULL), b = client(type, name, "@waiting-b"), c = client(type, name, NULL), d = client(type, name, NULL), f;
	say(a, "hello");
	say(a, "again");
	CHECK(send(b, big, sizeof big, 0) == (ssize_t)sizeof big && !shutdown(b, SHUT_WR), "send much");
	say(c, "bye");
	close(c);
	CHECK((f = open("file", O_RDWR | O_CREAT, 0600)) >= 0, "file");
	fd_along(d, "file", f);
	int e = client(type, name, NULL);
	close(e);
	keep("listener", l, f);
	keep("clients", a, b);
	keep("client", d, -1);
}

static void check(int type, const char *name)
{
	struct kept *l = next("listener"), *k = next("clients"), *d = next("client");
	int s = accept(l->a, NULL, NULL);
	if (type == SOCK_STREAM) {
		hear(s, "helloagain");
	} else {
		hear(s, "hello");
		hear(s, "again");
	}
	say(s, "answer");
	hear(k->a, "answer");
	peer_is(k->a, name);
	s = accept(l->a, NULL, NULL);
	peer_is(s, "@waiting-b");
	static char buf[sizeof big];
	CHECK(recv(s, buf, sizeof buf, MSG_WAITALL * (type == SOCK_STREAM)) == (ssize_t)sizeof buf && !memcmp(buf, big, sizeof big), "much");
	end(s);
	say(s, "still");
	hear(k->b, "still");
	s = accept(l->a, NULL, NULL);
	hear(s, "bye");
	end(s);
	s = accept(l->a, NULL, NULL);
	char control[64], text[16];
	struct iovec iov = {text, sizeof text};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	CHECK(recvmsg(s, &m, MSG_DONTWAIT) == 4, "the fourth connection");
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	CHECK(c && c->cmsg_type == SCM_RIGHTS, "no descriptor");
	int fd;
	struct stat x, y;
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	CHECK(!fstat(fd, &x) && !fstat(l->b, &y) && x.st_ino == y.st_ino, "another file");
	say(d->a, "later");
	hear(s, "later");
	s = accept(l->a, NULL, NULL);
	end(s);
}

int main(void)
{
	for (size_t i = 0; i < sizeof big; i++)
		big[i] = i * 7 + i / 251;
	set_up(SOCK_STREAM, "path");
	set_up(SOCK_SEQPACKET, "@abstract");
	ready();
	check(SOCK_STREAM, "path");
	check(SOCK_SEQPACKET, "@abstract");
	pass();
}
