/* Locks of files: flock, POSIX and of open file descriptions, for reading and writing, of parent and child, on parts of a
 * file and to its end, and a child that waits for one. */
#include "workload.h"
#include <sys/file.h>

static int lock(int fd, int cmd, short type, off_t start, off_t len)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
	return fcntl(fd, cmd, &l);
}

/* held tells the type of the lock that stands in the way of a write lock, and in whose name. */
static int held(int fd, off_t at, pid_t *who)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
	CHECK(!fcntl(fd, F_GETLK, &l), "F_GETLK");
	*who = l.l_pid;
	return l.l_type;
}

static int file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT, 0666);
	CHECK(fd >= 0, "%s", name);
	return fd;
}

int main(void)
{
	int posix = file("posix"), ofd = file("ofd"), ofd2 = file("ofd"), fl = file("flock"), fl2 = dup(fl), share = file("share"), share2 = file("share");
	int wait = file("wait"), up[2];
	CHECK(!pipe(up), "pipe");
	CHECK(!lock(posix, F_SETLK, F_WRLCK, 0, 10) && !lock(posix, F_SETLK, F_RDLCK, 20, 10) && !lock(posix, F_SETLK, F_RDLCK, 100, 0), "posix");
	CHECK(!lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 5) && !lock(ofd2, F_OFD_SETLK, F_RDLCK, 10, 0) && !lock(ofd, F_OFD_SETLK, F_RDLCK, 10, 5), "ofd");
	CHECK(!flock(fl, LOCK_EX) && !flock(share, LOCK_SH) && !flock(share2, LOCK_SH), "flock");
	CHECK(!lock(wait, F_SETLK, F_WRLCK, 0, 0), "wait");
	pid_t child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		CHECK(!lock(posix, F_SETLK, F_WRLCK, 50, 10), "of the child");
		CHECK(write(up[1], "u", 1) == 1, "pipe");
		CHECK(!lock(wait, F_SETLKW, F_WRLCK, 0, 0), "the wait for the lock was broken off");
		_exit(write(up[1], "l", 1) == 1 ? 7 : 8);
	}
	char b;
	CHECK(read(up[0], &b, 1) == 1, "read");
	await_asleep(child, child); /* for its lock */
	ready();
	pid_t who;
	CHECK(held(posix, 50, &who) == F_WRLCK && who == child, "the child's lock is that of %d", who);
	CHECK(held(posix, 0, &who) == F_UNLCK, "one's own lock");
	pid_t prober = fork();
	if (!prober) {
		int o = file("ofd"), f = file("flock"), s = file("share");
		CHECK(held(posix, 5, &who) == F_WRLCK && who == getppid(), "posix write");
		CHECK(held(posix, 10, &who) == F_UNLCK && held(posix, 25, &who) == F_RDLCK && held(posix, 30, &who) == F_UNLCK, "posix read");
		CHECK(held(posix, 99, &who) == F_UNLCK && held(posix, 1L << 40, &who) == F_RDLCK, "to the end");
		CHECK(held(o, 4, &who) == F_WRLCK && who == -1 && held(o, 5, &who) == F_UNLCK && held(o, 1000, &who) == F_RDLCK, "ofd");
		CHECK(flock(f, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK, "flock");
		CHECK(!flock(s, LOCK_SH | LOCK_NB) && flock(s, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK, "shared flock");
		CHECK(!lock(ofd2, F_OFD_SETLK, F_UNLCK, 0, 0) && held(o, 1000, &who) == F_UNLCK && held(o, 12, &who) == F_RDLCK, "each description has its own");
		_exit(0);
	}
	int st;
	CHECK(waitpid(prober, &st, 0) == prober && !st, "prober: status %x", st);
	CHECK(!flock(fl2, LOCK_UN), "unlock by the duplicate");
	int again = file("flock");
	CHECK(!flock(again, LOCK_EX | LOCK_NB), "the duplicate did not unlock");
	CHECK(waitpid(child, &st, WNOHANG) == 0, "the child did not wait: status %x", st);
	CHECK(!lock(wait, F_SETLK, F_UNLCK, 0, 0) && read(up[0], &b, 1) == 1 && b == 'l', "the child has its lock");
	CHECK(waitpid(child, &st, 0) == child && WEXITSTATUS(st) == 7, "child: status %x", st);
	pass();
}
