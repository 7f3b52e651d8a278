/* A descriptor of a socket's file (O_PATH), and a socket that is another user's. */
#include "unixsock.h"

int main(void)
{
	int l = listener(SOCK_STREAM, "file"), o = open("file", O_PATH), own[2];
	CHECK(!seteuid(77) && !socketpair(AF_UNIX, SOCK_STREAM, 0, own) && !seteuid(0), "socketpair");
	struct stat a, b;
	CHECK(!fstat(own[0], &a) && a.st_uid == 77 && !fchmod(own[0], 0600), "owner");
	ready();
	CHECK(!fstat(own[0], &a) && a.st_uid == 77 && (a.st_mode & 0777) == 0600, "the socket is of user %d, mode %o", a.st_uid, a.st_mode);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", o);
	CHECK(!fstat(o, &a) && !stat("file", &b) && a.st_ino == b.st_ino, "another file");
	client(SOCK_STREAM, path, NULL);
	CHECK(accept(l, NULL, NULL) >= 0, "accept");
	pass();
}
