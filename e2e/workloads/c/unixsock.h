/* Small calls on unix sockets. A name that begins with @ is an abstract one. */
#ifndef UNIXSOCK_H
#define UNIXSOCK_H
#include "workload.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static inline socklen_t address(struct sockaddr_un *a, const char *name)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	if (!name)
		return offsetof(struct sockaddr_un, sun_path);
	strncpy(a->sun_path, name, sizeof a->sun_path - 1);
	if (name[0] != '@')
		return sizeof *a;
	a->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + strlen(name);
}

/* name_from writes the name in the same form. */
static inline void name_from(const struct sockaddr_un *a, socklen_t len, char *out)
{
	size_t n = len > offsetof(struct sockaddr_un, sun_path) ? len - offsetof(struct sockaddr_un, sun_path) : 0;
	memcpy(out, a->sun_path, n);
	out[n] = 0;
	if (n && !out[0])
		out[0] = '@';
}

static inline void name_of(int fd, char *out)
{
	struct sockaddr_un a;
	socklen_t len = sizeof a;
	CHECK(!getsockname(fd, (struct sockaddr *)&a, &len), "getsockname");
	name_from(&a, len, out);
}

static inline void is_called(int fd, const char *want)
{
	char name[128];
	name_of(fd, name);
	CHECK(!strcmp(name, want), "it is called \"%s\", was \"%s\"", name, want);
}

static inline void peer_is(int fd, const char *want)
{
	struct sockaddr_un a;
	socklen_t len = sizeof a;
	char name[128];
	CHECK(!getpeername(fd, (struct sockaddr *)&a, &len), "getpeername, was \"%s\"", want);
	name_from(&a, len, name);
	CHECK(!strcmp(name, want), "its peer is \"%s\", was \"%s\"", name, want);
}

static inline int type_of(int fd)
{
	int t = 0;
	socklen_t n = sizeof t;
	CHECK(!getsockopt(fd, SOL_SOCKET, SO_TYPE, &t, &n), "SO_TYPE");
	return t;
}

static inline int bound(int type, const char *name)
{
	struct sockaddr_un a;
	int fd = socket(AF_UNIX, type, 0);
	socklen_t len = address(&a, name);
	CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&a, len), "bind to %s", name);
	return fd;
}

static inline int listener(int type, const char *name)
{
	int fd = bound(type, name);
	CHECK(!listen(fd, 7), "listen on %s", name);
	return fd;
}

static inline int to(int fd, const char *name)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);
	return connect(fd, (struct sockaddr *)&a, len);
}

static inline int client(int type, const char *name, const char *own)
{
	int fd = own ? bound(type, own) : socket(AF_UNIX, type, 0);
	CHECK(fd >= 0 && !to(fd, name), "connect to %s", name);
	return fd;
}

static inline void say(int fd, const char *text)
{
	CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "send \"%s\"", text);
}

static inline void say_to(int fd, const char *name, const char *text)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);
	CHECK(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&a, len) == (ssize_t)strlen(text), "send \"%s\" to %s", text, name);
}

/* hear does not wait: what was sent is there. */
static inline void hear(int fd, const char *want)
{
	char buf[256];
	ssize_t n = recv(fd, buf, sizeof buf - 1, MSG_DONTWAIT);
	CHECK(n == (ssize_t)strlen(want) && !memcmp(buf, want, n), "received %zd bytes \"%.*s\", want \"%s\"", n, (int)(n > 0 ? n : 0), buf, want);
}

static inline void hear_from(int fd, const char *want, const char *from)
{
	struct sockaddr_un a;
	socklen_t len = sizeof a;
	char buf[256], name[128];
	ssize_t n = recvfrom(fd, buf, sizeof buf - 1, MSG_DONTWAIT, (struct sockaddr *)&a, &len);
	CHECK(n == (ssize_t)strlen(want) && !memcmp(buf, want, n), "received %zd bytes \"%.*s\", want \"%s\"", n, (int)(n > 0 ? n : 0), buf, want);
	name_from(&a, len, name);
	CHECK(!strcmp(name, from), "\"%s\" came from \"%s\", want \"%s\"", want, name, from);
}

static inline void end(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);
	CHECK(n == 0, "%zd instead of the end", n);
}

/* Descriptors that are kept over the move, to be found again in the same order. */
static struct kept {
	const char *what;
	int a, b, n;
} kept[64];
static int nkept, nfound;

static inline void keep(const char *what, int a, int b)
{
	kept[nkept++] = (struct kept){what, a, b, 0};
}

static inline struct kept *next(const char *what)
{
	struct kept *k = &kept[nfound++];
	CHECK(!strcmp(k->what, what), "%s comes before %s", k->what, what);
	return k;
}

#endif
