/*
 * Sockets whose file has been deleted, replaced or renamed since, is relative to a directory that the process has left, or is in a
 * directory that is gone.
 */
#include "unixsock.h"

int main(void)
{
	int gone = listener(SOCK_STREAM, "gone"), c = client(SOCK_STREAM, "gone", NULL), s = accept(gone, NULL, NULL), w = client(SOCK_STREAM, "gone", NULL);
	CHECK(!unlink("gone"), "unlink");
	int twice = listener(SOCK_STREAM, "gone");
	int dgram = bound(SOCK_DGRAM, "dgone"), to_gone = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!to(to_gone, "dgone") && !unlink("dgone"), "dgone");
	say(to_gone, "to the ghost");
	CHECK(!mkdir("sub", 0700) && !chdir("sub"), "sub");
	int sub = listener(SOCK_STREAM, "insub"), up = listener(SOCK_STREAM, "../up");
	CHECK(!chdir("..") && !mkdir("lost", 0700) && !chdir("lost"), "lost");
	int lost = bound(SOCK_DGRAM, "inlost"), to_lost = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!to(to_lost, "inlost") && !unlink("inlost") && !chdir("..") && !rmdir("lost"), "lost");
	int old = listener(SOCK_STREAM, "oldname");
	CHECK(!rename("oldname", "newname"), "rename");
	/* the listener is closed, two connections remain */
	int closed = listener(SOCK_SEQPACKET, "closed"), c1 = client(SOCK_SEQPACKET, "closed", NULL), s1 = accept(closed, NULL, NULL);
	int c2 = client(SOCK_SEQPACKET, "closed", "mine"), s2 = accept(closed, NULL, NULL);
	close(closed);
	ready();
	struct stat st;
	CHECK(stat("dgone", &st) && errno == ENOENT && stat("lost", &st) && errno == ENOENT && stat("oldname", &st) && errno == ENOENT, "a file came back");
	is_called(gone, "gone");
	is_called(s, "gone");
	peer_is(c, "gone");
	say(c, "x");
	hear(s, "x");
	int sw = accept(gone, NULL, NULL);
	CHECK(sw >= 0, "accept");
	say(sw, "waited");
	hear(w, "waited");
	c = client(SOCK_STREAM, "gone", NULL);
	CHECK(c >= 0 && accept(twice, NULL, NULL) >= 0, "the second of the name");
	hear(dgram, "to the ghost");
	say(to_gone, "again");
	hear(dgram, "again");
	peer_is(to_gone, "dgone");
	is_called(sub, "insub");
	client(SOCK_STREAM, "sub/insub", NULL);
	CHECK(accept(sub, NULL, NULL) >= 0, "sub");
	is_called(up, "../up");
	client(SOCK_STREAM, "up", NULL);
	CHECK(accept(up, NULL, NULL) >= 0, "up");
	is_called(lost, "inlost");
	say(to_lost, "lost");
	hear(lost, "lost");
	is_called(old, "oldname");
	client(SOCK_STREAM, "newname", NULL);
	CHECK(accept(old, NULL, NULL) >= 0, "renamed");
	is_called(s1, "closed");
	is_called(s2, "closed");
	peer_is(c1, "closed");
	peer_is(s2, "mine");
	say(c2, "y");
	hear(s2, "y");
	say(s1, "z");
	hear(c1, "z");
	CHECK(to(socket(AF_UNIX, SOCK_SEQPACKET, 0), "closed") < 0 && errno == ECONNREFUSED, "the closed listener listens");
	pass();
}
