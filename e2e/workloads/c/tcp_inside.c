/* TCP over loopback with both ends in the process, v4 and v6, data in both queues, options; and the listener. */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static void pair(int family, int *listener, int *client, int *server)
{
	union { struct sockaddr sa; struct sockaddr_in in; struct sockaddr_in6 in6; } a = {0};
	socklen_t len = sizeof a;
	a.sa.sa_family = family;
	if (family == AF_INET)
		a.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		a.in6.sin6_addr = in6addr_loopback;
	*listener = socket(family, SOCK_STREAM, 0);
	CHECK(!bind(*listener, &a.sa, family == AF_INET ? sizeof a.in : sizeof a.in6) && !listen(*listener, 7), "listen");
	CHECK(!getsockname(*listener, &a.sa, &len), "getsockname");
	*client = socket(family, SOCK_STREAM, 0);
	CHECK(!connect(*client, &a.sa, len), "connect");
	*server = accept4(*listener, NULL, NULL, SOCK_NONBLOCK);
	CHECK(*server >= 0, "accept");
}

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, l[2], c[2], s[2], one = 1, idle = 77;
	char out[50000], in[50000];
	for (int i = 0; i < (int)sizeof out; i++)
		out[i] = i * 13;
	for (int i = 0; i < 2; i++) {
		pair(family[i], &l[i], &c[i], &s[i]);
		setsockopt(c[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		setsockopt(s[i], SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
		setsockopt(s[i], IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
		CHECK(write(c[i], out, sizeof out) == sizeof out && write(s[i], "answer", 6) == 6, "write");
	}
	ready();
	for (int i = 0; i < 2; i++) {
		int v = 0;
		socklen_t len = sizeof v;
		CHECK(!getsockopt(c[i], IPPROTO_TCP, TCP_NODELAY, &v, &len) && v, "nodelay %d", i);
		CHECK(!getsockopt(s[i], IPPROTO_TCP, TCP_KEEPIDLE, &v, &len) && v == 77, "keepidle %d", v);
		CHECK(!getsockopt(s[i], SOL_SOCKET, SO_KEEPALIVE, &v, &len) && v, "keepalive %d", i);
		CHECK(fcntl(s[i], F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
		fcntl(s[i], F_SETFL, 0);
		for (int n = 0, k; n < (int)sizeof in; n += k)
			CHECK((k = read(s[i], in + n, sizeof in - n)) > 0, "read %d", i);
		CHECK(!memcmp(in, out, sizeof in), "data %d", i);
		CHECK(read(c[i], in, 100) == 6 && !memcmp(in, "answer", 6), "answer %d", i);
		CHECK(write(s[i], "more", 4) == 4 && read(c[i], in, 100) == 4 && !memcmp(in, "more", 4), "more %d", i);
		union { struct sockaddr sa; struct sockaddr_in6 in6; } a;
		socklen_t al = sizeof a;
		int n = socket(family[i], SOCK_STREAM, 0), m;
		CHECK(!getsockname(l[i], &a.sa, &al) && !connect(n, &a.sa, al) && (m = accept(l[i], NULL, NULL)) >= 0, "the listener");
		close(c[i]);
		CHECK(read(s[i], in, 1) == 0, "end of file %d", i);
	}
	pass();
}
