/* Pseudoterminals with more than a line discipline holds in both directions, every byte value in it, and output that is held
 * up by the stop character and by a call. */
#include "workload.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static void raw(int fd, int iflag)
{
	struct termios t;
	CHECK(!tcgetattr(fd, &t), "tcgetattr");
	cfmakeraw(&t);
	t.c_iflag |= iflag;
	CHECK(!tcsetattr(fd, TCSANOW, &t), "tcsetattr");
}

static void pair(int *m, int *s, int iflag)
{
	char name[64];
	*m = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
	CHECK(*m >= 0 && !unlockpt(*m) && !ptsname_r(*m, name, sizeof name), "ptmx");
	*s = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK);
	CHECK(*s >= 0, "%s", name);
	raw(*s, iflag);
}

static int fill(int fd)
{
	int n = 0;
	for (unsigned char c = 0; n < 20000; n++, c++)
		if (write(fd, &c, 1) != 1)
			break;
	return n;
}

static int drained(int fd)
{
	int n = 0;
	for (;;) {
		unsigned char buf[512];
		struct pollfd p = {fd, POLLIN, 0};
		if (poll(&p, 1, 100) <= 0)
			return n;
		ssize_t r = read(fd, buf, sizeof buf);
		CHECK(r > 0, "read after %d", n);
		for (int i = 0; i < r; i++, n++)
			CHECK(buf[i] == (unsigned char)n, "byte %d is %d", n, buf[i]);
	}
}

static int writable(int fd)
{
	struct pollfd p = {fd, POLLOUT, 0};
	return poll(&p, 1, 0) == 1;
}

int main(void)
{
	int m, s, mx, sx, mo, so, v;
	pair(&m, &s, 0);
	int in = fill(m), out = fill(s);
	CHECK(in > 4096 && out > 4096, "%d, %d bytes", in, out);
	pair(&mx, &sx, IXON);
	CHECK(write(sx, "said", 4) == 4 && write(mx, "typed\023", 6) == 6, "stop character");
	while (writable(sx))
		usleep(100);
	pair(&mo, &so, 0);
	CHECK(!tcflow(so, TCOOFF) && !writable(so), "TCOOFF");
	while (!ioctl(sx, FIONREAD, &v) && v < 5)
		usleep(100);
	ready();
	CHECK(drained(s) == in, "input is not %d bytes", in);
	CHECK(drained(m) == out, "output is not %d bytes", out);
	char buf[16];
	CHECK(!writable(sx) && !writable(so), "output is not held up");
	CHECK(read(sx, buf, 16) == 5 && !memcmp(buf, "typed", 5) && read(mx, buf, 16) == 4 && !memcmp(buf, "said", 4), "what waits beside");
	CHECK(write(mx, "\021", 1) == 1, "start character");
	for (int i = 0; i < 10000 && !writable(sx); i++)
		usleep(100);
	CHECK(writable(sx), "the start character starts nothing");
	CHECK(!tcflow(so, TCOON) && writable(so), "TCOON");
	pass();
}
