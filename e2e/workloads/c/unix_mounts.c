/*
 * Socket files that are mounted elsewhere: by themselves, with their directory, on a tmpfs, read-only, in a mount namespace of a child's own
 * and in that of the host; one that was bound by a path through such a mount. Whoever connects by any of the paths finds the listener.
 */
#include "unixsock.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

static void file(const char *name)
{
	int fd = open(name, O_WRONLY | O_CREAT, 0644);
	CHECK(fd >= 0 && !close(fd), "%s", name);
}

static int reaches(const char *name, int type, int l)
{
	int c = socket(AF_UNIX, type, 0), s = -1;
	int ok = !to(c, name) && (type == SOCK_DGRAM || (s = accept(l, NULL, NULL)) >= 0);
	close(s);
	close(c);
	return ok;
}

/* It has a mount namespace for itself. */
static int child(int said, int go)
{
	char b;
	if (unshare(CLONE_NEWNS) || mount("", "/", "", MS_REC | MS_PRIVATE, NULL) || mount("a", "b", NULL, MS_BIND, NULL) || mount("t", "tmp", "tmpfs", 0, NULL))
		return 2;
	int l = listener(SOCK_STREAM, "a/own"), through = listener(SOCK_SEQPACKET, "b/through"), d = bound(SOCK_DGRAM, "tmp/dgram");
	if (mount("a/own", "x", NULL, MS_BIND, NULL) || mount("b/through", "y", NULL, MS_BIND, NULL) || mount("tmp/dgram", "z", NULL, MS_BIND, NULL) ||
	    mount("", "y", "", MS_SHARED, NULL) || mount("", "x", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC, NULL))
		return 3;
	if (write(said, "x", 1) != 1 || read(go, &b, 1) != 1)
		return 4;
	if (!reaches("a/own", SOCK_STREAM, l) || !reaches("b/own", SOCK_STREAM, l))
		return 5;
	if (!reaches("x", SOCK_STREAM, l))
		return 6;
	if (!reaches("a/through", SOCK_SEQPACKET, through) || !reaches("b/through", SOCK_SEQPACKET, through) || !reaches("y", SOCK_SEQPACKET, through))
		return 7;
	if (!reaches("tmp/dgram", SOCK_DGRAM, d) || !reaches("z", SOCK_DGRAM, d))
		return 8;
	struct statvfs v, w;
	if (statvfs("x", &v) || statvfs("y", &w) || (v.f_flag & (ST_RDONLY | ST_NOEXEC)) != (ST_RDONLY | ST_NOEXEC) || w.f_flag & ST_NOEXEC || umount("x") || umount("y") || umount("z"))
		return 9;
	return 1;
}

int main(void)
{
	int said[2], go[2], st;
	char b;
	CHECK(!pipe(said) && !pipe(go) && !mkdir("a", 0755) && !mkdir("b", 0755) && !mkdir("tmp", 0755), "directories");
	file("x");
	file("y");
	file("z");
	file("here");
	int l = listener(SOCK_STREAM, "a/host");
	pid_t pid = fork();
	if (!pid)
		_exit(child(said[1], go[0]));
	CHECK(read(said[0], &b, 1) == 1 && !mount("a/host", "here", NULL, MS_BIND, NULL), "mount");
	ready();
	int found = reaches("here", SOCK_STREAM, l);
	CHECK(!umount("here"), "umount");
	CHECK(found, "connecting by the mount of the host");
	CHECK(reaches("a/host", SOCK_STREAM, l), "connecting by the name");
	CHECK(write(go[1], "x", 1) == 1 && waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 1, "child: status %x", st);
	pass();
}
