/* Connections whose peer closed without having read all, or whose listener closed before it accepted: with what is left to be read. */
#include "unixsock.h"

int main(void)
{
	static const int types[2] = {SOCK_STREAM, SOCK_SEQPACKET};
	for (int i = 0; i < 2; i++) {
		int p[2], l = listener(types[i], i ? "@l" : "l"), c = client(types[i], i ? "@l" : "l", NULL);
		CHECK(!socketpair(AF_UNIX, types[i], 0, p), "socketpair");
		say(p[0], "never read");
		say(p[1], "last words");
		close(p[1]);
		close(l);
		keep("pair", p[0], c);
	}
	ready();
	for (int i = 0; i < 2; i++) {
		struct kept *k = next("pair");
		int err = 0;
		socklen_t n = sizeof err;
		CHECK(!getsockopt(k->a, SOL_SOCKET, SO_ERROR, &err, &n) && err == ECONNRESET, "the error is %d", err);
		hear(k->a, "last words");
		end(k->a);
		peer_is(k->b, i ? "@l" : "l");
		char c;
		CHECK(recv(k->b, &c, 1, 0) < 0 && errno == ECONNRESET, "the closed listener");
	}
	pass();
}
