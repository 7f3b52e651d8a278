/* Packet mode with a line discipline that leaves its work to the master (EXTPROC): the status that the master has read does not come
 * again, that which it has not read does. */
#include "workload.h"
#include <sys/ioctl.h>
#include <termios.h>

static void pair(int *m, int *s, struct termios *t)
{
	char name[64];
	int one = 1;
	*m = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
	CHECK(*m >= 0 && !unlockpt(*m) && !ptsname_r(*m, name, sizeof name), "ptmx");
	*s = open(name, O_RDWR | O_NOCTTY);
	CHECK(*s >= 0 && !ioctl(*m, TIOCPKT, &one) && !tcgetattr(*s, t), "%s", name);
	t->c_lflag |= EXTPROC;
	CHECK(!tcsetattr(*s, TCSANOW, t), "EXTPROC");
}

static int status(int m)
{
	char b[8];
	ssize_t n = read(m, b, sizeof b);
	return n == 1 ? b[0] : n == -1 && errno == EAGAIN ? -1 : -2;
}

int main(void)
{
	int m[4], s[4];
	struct termios t[4], now;
	for (int i = 0; i < 4; i++) {
		pair(&m[i], &s[i], &t[i]);
		if (i % 2 == 0)
			CHECK(status(m[i]) == TIOCPKT_IOCTL, "EXTPROC is not told");
	}
	t[2].c_lflag &= ~EXTPROC; /* told once more, and read */
	t[3].c_lflag &= ~EXTPROC; /* not read */
	CHECK(!tcsetattr(s[2], TCSANOW, &t[2]) && !tcsetattr(s[3], TCSANOW, &t[3]) && status(m[2]) == TIOCPKT_IOCTL, "without EXTPROC");
	CHECK(write(m[0], "one\ntwo", 7) == 7 && write(s[1], "out", 3) == 3, "write");

	ready();

	for (int i = 0; i < 4; i++) {
		int want = i % 2 ? TIOCPKT_IOCTL : -1, is = status(m[i]);
		CHECK(is == want, "status of %d is %d, was %d", i, is, want);
		CHECK(!tcgetattr(s[i], &now) && now.c_lflag == t[i].c_lflag, "local modes of %d are 0%o, were 0%o", i, now.c_lflag, t[i].c_lflag);
	}
	char b[16];
	CHECK(read(s[0], b, sizeof b) == 7 && !memcmp(b, "one\ntwo", 7), "input");
	CHECK(read(m[1], b, sizeof b) == 4 && !memcmp(b, "\0out", 4), "output");
	pass();
}
