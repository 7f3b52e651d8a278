/*
 * Unix sockets in many states: names of all kinds, connections through listeners, waiting connections, closed peers, half-closed
 * connections, datagrams from several senders.
 */
#include "unixsock.h"
#include <sys/ioctl.h>

static void stream_pair(int type)
{
	int p[2], h[2], o[2], f[2];
	CHECK(!socketpair(AF_UNIX, type, 0, p) && !socketpair(AF_UNIX, type, 0, h) && !socketpair(AF_UNIX, type, 0, o) && !socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, f), "pairs");
	say(p[0], "to one");
	say(p[1], "to zero");
	say(h[0], "last");
	CHECK(!shutdown(h[0], SHUT_WR), "shutdown");
	say(o[1], "left behind");
	close(o[1]);
	keep("pair", p[0], p[1]);
	keep("half", h[0], h[1]);
	keep("orphan", o[0], -1);
	char buf[1000] = "full";
	int n = 0;
	while (send(f[0], buf, sizeof buf, MSG_NOSIGNAL) == (ssize_t)sizeof buf)
		n++;
	keep("full", f[0], f[1]);
	kept[-1 + nkept].n = n;
}

static void check_pair(int type)
{
	struct kept *k = next("pair");
	hear(k->b, "to one");
	hear(k->a, "to zero");
	say(k->a, "again");
	hear(k->b, "again");
	k = next("half");
	hear(k->b, "last");
	end(k->b);
	say(k->b, "back");
	hear(k->a, "back");
	CHECK(send(k->a, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "write after shutdown");
	k = next("orphan");
	hear(k->a, "left behind");
	end(k->a);
	CHECK(send(k->a, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "write to a closed peer");
	k = next("full");
	char buf[1000];
	int held = 0, room = 0;
	socklen_t len = sizeof room;
	ioctl(k->a, TIOCOUTQ, &held);
	getsockopt(k->a, SOL_SOCKET, SO_SNDBUF, &room, &len);
	CHECK(send(k->a, buf, sizeof buf, MSG_NOSIGNAL) < 0 && errno == EAGAIN, "type %d: the queue is not full: %d of %d", type, held, room);
	for (int i = 0; i < k->n; i++)
		CHECK(recv(k->b, buf, sizeof buf, MSG_WAITALL * (type == SOCK_STREAM)) == (ssize_t)sizeof buf, "%d of %d", i, k->n);
	CHECK(recv(k->b, buf, sizeof buf, 0) < 0 && errno == EAGAIN, "more than was sent");
}

static void connections(int type, const char *name)
{
	int l = listener(type, name), c = client(type, name, NULL), s = accept(l, NULL, NULL);
	int c2 = client(type, name, "@named-client"), s2 = accept(l, NULL, NULL);
	int gone = client(type, name, NULL), s3 = accept(l, NULL, NULL), c4 = client(type, name, NULL), s4 = accept(l, NULL, NULL);
	CHECK(s >= 0 && s2 >= 0 && s3 >= 0 && s4 >= 0, "accept");
	say(c, "from client");
	say(s, "from server");
	say(gone, "gone client");
	close(gone);
	say(s4, "gone server");
	close(s4);
	int w1 = client(type, name, NULL), w2 = client(type, name, "@waiting");
	keep("listener", l, -1);
	keep("connection", c, s);
	keep("named", c2, s2);
	keep("gone client", s3, -1);
	keep("gone server", c4, -1);
	keep("waiting", w1, w2);
}

static void check_connections(const char *name)
{
	struct kept *l = next("listener"), *k = next("connection");
	hear(k->b, "from client");
	hear(k->a, "from server");
	is_called(k->b, name);
	peer_is(k->a, name);
	peer_is(k->b, "");
	k = next("named");
	peer_is(k->b, "@named-client");
	k = next("gone client");
	is_called(k->a, name);
	hear(k->a, "gone client");
	end(k->a);
	k = next("gone server");
	peer_is(k->a, name);
	hear(k->a, "gone server");
	end(k->a);
	k = next("waiting");
	int s1 = accept(l->a, NULL, NULL), s2 = accept(l->a, NULL, NULL);
	CHECK(s1 >= 0 && s2 >= 0, "accept what waited");
	peer_is(s1, "");
	peer_is(s2, "@waiting");
	say(k->a, "one");
	hear(s1, "one");
	say(s2, "two");
	hear(k->b, "two");
	peer_is(k->a, name);
	fcntl(l->a, F_SETFL, O_NONBLOCK);
	CHECK(accept(l->a, NULL, NULL) < 0 && errno == EAGAIN, "one more waits");
	fcntl(l->a, F_SETFL, 0);
	int c = client(type_of(l->a), name, NULL), s = accept(l->a, NULL, NULL);
	CHECK(c >= 0 && s >= 0, "a new connection");
}

static void datagrams(void)
{
	int r = bound(SOCK_DGRAM, "dgram"), a = bound(SOCK_DGRAM, "@sender-a"), b = bound(SOCK_DGRAM, "sender-b"), u = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!to(a, "dgram") && !to(u, "dgram"), "connect");
	say(a, "one");
	say(u, "two");
	say_to(b, "dgram", "three");
	int gone = bound(SOCK_DGRAM, "@gone");
	say_to(gone, "dgram", "four");
	close(gone);
	int m = bound(SOCK_DGRAM, "@mutual-1"), n = bound(SOCK_DGRAM, "@mutual-2");
	CHECK(!to(m, "@mutual-2") && !to(n, "@mutual-1"), "connect");
	for (int i = 0; i < 5; i++)
		say(m, "mutual");
	int dead = bound(SOCK_DGRAM, "@dead"), d = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!to(d, "@dead"), "connect");
	close(dead);
	int p[2], q[2];
	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, p) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, q), "pairs");
	say(p[0], "");
	say(p[0], "pair");
	say(q[1], "orphan");
	close(q[1]);
	keep("receiver", r, a);
	keep("others", b, u);
	keep("mutual", m, n);
	keep("dead", d, -1);
	keep("dpair", p[0], p[1]);
	keep("dorphan", q[0], -1);
}

static void check_datagrams(void)
{
	struct kept *k = next("receiver"), *o = next("others");
	hear_from(k->a, "one", "@sender-a");
	hear_from(k->a, "two", "");
	hear_from(k->a, "three", "sender-b");
	hear_from(k->a, "four", "@gone");
	say(k->b, "new");
	hear_from(k->a, "new", "@sender-a");
	say(o->b, "newer");
	hear_from(k->a, "newer", "");
	peer_is(o->b, "dgram");
	k = next("mutual");
	for (int i = 0; i < 5; i++)
		hear_from(k->b, "mutual", "@mutual-1");
	say(k->b, "back");
	hear(k->a, "back");
	k = next("dead");
	peer_is(k->a, "@dead");
	CHECK(send(k->a, "x", 1, 0) < 0 && errno == ECONNREFUSED, "send to the dead");
	k = next("dpair");
	hear(k->b, "");
	hear(k->b, "pair");
	say(k->b, "back");
	hear(k->a, "back");
	k = next("dorphan");
	hear(k->a, "orphan");
	CHECK(send(k->a, "x", 1, 0) < 0 && errno == ECONNREFUSED, "send to a closed end");
}

int main(void)
{
	static const int types[2] = {SOCK_STREAM, SOCK_SEQPACKET};
	for (int i = 0; i < 2; i++) {
		stream_pair(types[i]);
		connections(types[i], i ? "@abstract" : "path");
	}
	datagrams();
	int plain = socket(AF_UNIX, SOCK_STREAM, 0), own = bound(SOCK_STREAM, "own"), bare = bound(SOCK_STREAM, NULL);
	CHECK(chmod("own", 0640) == 0 && chown("own", 7, 8) == 0, "owner");
	char was[32], is[32];
	name_of(bare, was);
	ready();
	for (int i = 0; i < 2; i++) {
		check_pair(types[i]);
		check_connections(i ? "@abstract" : "path");
	}
	check_datagrams();
	CHECK(send(plain, "x", 1, MSG_NOSIGNAL) < 0 && errno == ENOTCONN, "a plain socket");
	CHECK(!to(plain, "path"), "connect a plain socket");
	CHECK(!listen(own, 1) && client(SOCK_STREAM, "own", NULL) >= 0, "listen on a bound socket");
	struct stat st;
	CHECK(!stat("own", &st) && st.st_mode == (S_IFSOCK | 0640) && st.st_uid == 7 && st.st_gid == 8, "mode %o, owner %d, %d", st.st_mode, st.st_uid, st.st_gid);
	name_of(bare, is);
	CHECK(!strcmp(was, is) && strlen(is) == 6, "autobound to %s, was %s", is, was);
	pass();
}
