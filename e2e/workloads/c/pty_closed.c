/* Pseudoterminals of which one end is closed or was never open: slaves whose master is gone, a master whose slave is closed, and
 * one whose slave was never open and is still locked, with input and its echo. */
#include "workload.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int master(int *n)
{
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK), zero = 0;
	CHECK(m >= 0 && !ioctl(m, TIOCSPTLCK, &zero) && !ioctl(m, TIOCGPTN, n), "ptmx");
	return m;
}

static int slave(int n, int flags)
{
	char name[32];
	snprintf(name, sizeof name, "/dev/pts/%d", n);
	int s = open(name, flags | O_NOCTTY);
	CHECK(s >= 0, "open %s", name);
	return s;
}

static int events(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	CHECK(poll(&p, 1, 0) >= 0, "poll");
	return p.revents;
}

int main(void)
{
	char buf[64];
	int n, n2, n3, v, one = 1;
	int m = master(&n), s = slave(n, O_RDWR), s2 = slave(n, O_RDONLY);
	close(m); /* s and s2 lead nowhere now */
	struct stat before, after;
	CHECK(!fstat(s, &before), "fstat");
	int m2 = master(&n2);
	int t = slave(n2, O_RDWR);
	CHECK(write(t, "bye", 3) == 3 && !close(t), "slave that is closed");
	int m3 = master(&n3);
	CHECK(write(m3, "line\nrest", 9) == 9 && !ioctl(m3, TIOCSPTLCK, &one), "master whose slave was never open");
	while (!ioctl(m3, FIONREAD, &v) && v < 10)
		usleep(100); /* the echo */

	ready();

	CHECK(!fstat(s, &after) && after.st_rdev == before.st_rdev, "device of the hung-up slave");
	CHECK(read(s, buf, 1) == 0 && write(s, "x", 1) == -1 && errno == EIO, "the first slave is not hung up");
	CHECK(read(s2, buf, 1) == 0 && (events(s2) & POLLHUP), "the second slave is not hung up");
	CHECK(events(m2) == (POLLIN | POLLHUP), "events of the master: 0x%x", events(m2));
	CHECK(read(m2, buf, sizeof buf) == 3 && !memcmp(buf, "bye", 3), "what the slave said");
	CHECK(read(m2, buf, 1) == -1 && errno == EIO, "the slave is not closed");
	t = slave(n2, O_RDWR);
	CHECK(events(m2) == 0, "events of the master with a new slave: 0x%x", events(m2));
	CHECK(!ioctl(m3, TIOCGPTN, &v) && v == n3, "number");
	CHECK(!ioctl(m3, TIOCGPTLCK, &v) && v == 1, "it is not locked");
	CHECK(events(m3) == POLLIN, "events of the lone master: 0x%x", events(m3));
	ssize_t r = read(m3, buf, sizeof buf);
	CHECK(r == 10 && !memcmp(buf, "line\r\nrest", 10), "echo of %zd bytes", r);
	CHECK(events(m3) == 0 && read(m3, buf, 1) == -1 && errno == EAGAIN, "more echo");
	int zero = 0;
	CHECK(!ioctl(m3, TIOCSPTLCK, &zero), "unlock");
	t = slave(n3, O_RDWR | O_NONBLOCK);
	CHECK(read(t, buf, sizeof buf) == 5 && !memcmp(buf, "line\n", 5), "line");
	CHECK(read(t, buf, sizeof buf) == -1 && errno == EAGAIN, "more input");
	CHECK(write(m3, "\n", 1) == 1 && read(t, buf, sizeof buf) == 5 && !memcmp(buf, "rest\n", 5), "rest");
	pass();
}
