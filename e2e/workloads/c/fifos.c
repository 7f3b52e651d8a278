/* FIFOs: with contents, each end alone, both ends in one description, deleted, and a child that waits in open(2). */
#include "workload.h"
#include <poll.h>

static int fifo(const char *name, int flags)
{
	if (mkfifo(name, 0644) && errno != EEXIST)
		fail("mkfifo %s", name);
	int fd = open(name, flags);
	CHECK(fd >= 0, "open %s %o", name, flags);
	return fd;
}
static int events(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
	CHECK(poll(&p, 1, 0) >= 0, "poll");
	return p.revents;
}

int main(void)
{
	char b[64];
	int both = fifo("both", O_RDWR), ro = fifo("ro", O_RDONLY | O_NONBLOCK), pr = fifo("pair", O_RDONLY | O_NONBLOCK), pw = fifo("pair", O_WRONLY);
	int hr = fifo("half", O_RDONLY | O_NONBLOCK), hw = fifo("half", O_WRONLY), wo, left;
	CHECK(write(both, "both", 4) == 4 && write(pw, "pair of ends", 12) == 12 && read(pr, b, 5) == 5, "write");
	CHECK(write(hw, "left behind", 11) == 11 && !close(hw), "half");
	left = fifo("left", O_RDWR);
	wo = fifo("left", O_WRONLY | O_NONBLOCK);
	CHECK(write(wo, "lost", 4) == 4 && !close(left), "writer alone");
	int gr = fifo("ghost", O_RDWR), gw = fifo("ghost", O_WRONLY);
	CHECK(write(gw, "ghost", 5) == 5 && !unlink("ghost"), "ghost");
	int or = fifo("other", O_RDONLY | O_NONBLOCK), ow = fifo("other", O_WRONLY);
	CHECK(write(ow, "other", 5) == 5 && !unlink("other") && !close(ow), "other");
	CHECK(fcntl(both, F_SETPIPE_SZ, 1 << 17) == 1 << 17 && !fcntl(pr, F_SETFL, 0), "settings");
	CHECK(!mkfifo("blocked", 0644), "mkfifo");
	pid_t child = fork();
	if (!child) {
		int fd = open("blocked", O_WRONLY); /* until somebody reads */
		_exit(fd >= 0 && write(fd, "here", 4) == 4 ? 7 : 8);
	}
	await_asleep(child, child);
	ready();
	CHECK(read(both, b, sizeof b) == 4 && !memcmp(b, "both", 4) && fcntl(both, F_GETPIPE_SZ) == 1 << 17, "both");
	CHECK(read(ro, b, 1) == 0 && !(events(ro) & POLLHUP), "reader without a writer: events %x", events(ro));
	int w = fifo("ro", O_WRONLY);
	CHECK(write(w, "r", 1) == 1 && read(ro, b, 1) == 1 && !close(w) && read(ro, b, 1) == 0, "a later writer");
	CHECK(read(pr, b, sizeof b) == 7 && !memcmp(b, "of ends", 7) && !(fcntl(pr, F_GETFL) & O_NONBLOCK), "pair");
	CHECK(read(hr, b, sizeof b) == 11 && !memcmp(b, "left behind", 11) && read(hr, b, 1) == 0 && (events(hr) & POLLHUP), "what was left");
	signal(SIGPIPE, SIG_IGN);
	CHECK((events(wo) & POLLERR) && write(wo, "x", 1) == -1 && errno == EPIPE, "writer without a reader");
	int r = fifo("left", O_RDONLY | O_NONBLOCK);
	CHECK(write(wo, "now", 3) == 3 && read(r, b, sizeof b) == 7 && !memcmp(b, "lostnow", 7), "writer with a new reader");
	CHECK(read(gr, b, sizeof b) == 5 && !memcmp(b, "ghost", 5) && write(gw, "again", 5) == 5 && read(gr, b, sizeof b) == 5, "ghost");
	CHECK(read(or, b, sizeof b) == 5 && read(or, b, 1) == 0, "other");
	struct stat st, st2;
	CHECK(!fstat(gr, &st) && !fstat(gw, &st2) && st.st_ino == st2.st_ino && st.st_nlink == 0 && access("ghost", F_OK), "names of the ghost");
	int status;
	CHECK(waitpid(child, &status, WNOHANG) == 0, "the child did not wait: %x", status);
	int br = open("blocked", O_RDONLY);
	CHECK(br >= 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7 && read(br, b, sizeof b) == 4, "child: %x", status);
	pass();
}
