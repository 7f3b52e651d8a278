/* What the TCP workloads share: a port passed by a file, and connections over loopback. */
#ifndef TCP_H
#define TCP_H
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

union address {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static inline socklen_t loopback(union address *a, int family, int port)
{
	memset(a, 0, sizeof *a);
	a->sa.sa_family = family;
	if (family == AF_INET) {
		a->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		a->in.sin_port = htons(port);
		return sizeof a->in;
	}
	a->in6.sin6_addr = in6addr_loopback;
	a->in6.sin6_port = htons(port);
	return sizeof a->in6;
}

static inline int port_of(int fd)
{
	union address a;
	socklen_t len = sizeof a;
	CHECK(!getsockname(fd, &a.sa, &len), "getsockname");
	return ntohs(a.in.sin_port);
}

static inline int remote_port(int fd)
{
	union address a;
	socklen_t len = sizeof a;
	return getpeername(fd, &a.sa, &len) ? -1 : ntohs(a.in.sin_port);
}

static inline int listen_on(int family, int backlog)
{
	union address a;
	socklen_t len = loopback(&a, family, 0);
	int fd = socket(family, SOCK_STREAM, 0);
	CHECK(fd >= 0 && !bind(fd, &a.sa, len) && !listen(fd, backlog), "listen");
	return fd;
}

static inline int connect_to(int family, int port)
{
	union address a;
	socklen_t len = loopback(&a, family, port);
	int fd = socket(family, SOCK_STREAM, 0);
	CHECK(fd >= 0 && !connect(fd, &a.sa, len), "connect to port %d", port);
	return fd;
}

static inline void put_number(const char *name, int n)
{
	char text[16];
	snprintf(text, sizeof text, "%d\n", n);
	put_file(name, text);
}

/* await_number waits for the file that the other program writes, and ends with it. */
static inline int await_number(const char *name)
{
	for (int fd;; usleep(2000)) {
		if ((fd = open(name, O_RDONLY)) < 0)
			continue;
		char text[16] = {0};
		CHECK(read(fd, text, sizeof text - 1) > 0, "%s is empty", name);
		close(fd);
		return atoi(text);
	}
}

static inline void fill(char *p, int n, int seed)
{
	for (int i = 0; i < n; i++)
		p[i] = i * 31 + i / 256 + seed;
}

static inline void read_all(int fd, char *p, int n)
{
	for (int k; n > 0; p += k, n -= k)
		CHECK((k = read(fd, p, n)) > 0, "read: %d, %d bytes are missing", k, n);
}

static inline void write_all(int fd, const char *p, int n)
{
	for (int k; n > 0; p += k, n -= k)
		CHECK((k = write(fd, p, n)) > 0, "write: %d, %d bytes are left", k, n);
}

static inline int tcp_state(int fd)
{
	struct tcp_info i;
	socklen_t len = sizeof i;
	CHECK(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &len), "TCP_INFO");
	return i.tcpi_state;
}

/* await_state waits until a connection has come to a state. */
static inline void await_state(int fd, int state)
{
	while (tcp_state(fd) != state)
		usleep(1000);
}

static inline int queued(int fd)
{
	int n = -1;
	CHECK(!ioctl(fd, FIONREAD, &n), "FIONREAD");
	return n;
}

static inline void await_queued(int fd, int n)
{
	while (queued(fd) < n)
		usleep(1000);
}

static inline int option(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof v;
	CHECK(!getsockopt(fd, level, name, &v, &len), "getsockopt %d %d", level, name);
	return v;
}

static inline void set_option(int fd, int level, int name, int v)
{
	CHECK(!setsockopt(fd, level, name, &v, sizeof v), "setsockopt %d %d", level, name);
}
#endif
