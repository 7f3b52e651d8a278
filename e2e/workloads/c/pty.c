/* A pseudoterminal with both ends: number, settings, owner, and what waits in both directions. */
#include "workload.h"
#include <asm/termbits.h>
#include <poll.h>
#include <sys/ioctl.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static int readable(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static void expect(int fd, const char *want, size_t n)
{
	char buf[8192];
	ssize_t r = read(fd, buf, sizeof buf);
	CHECK(r == (ssize_t)n && !memcmp(buf, want, n), "read %zd bytes '%.*s', not %zu", r, (int)(r > 0 ? r : 0), buf, n);
}

int main(void)
{
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK), zero = 0, one = 1, n, v;
	CHECK(m >= 0 && !ioctl(m, TIOCSPTLCK, &zero) && !ioctl(m, TIOCGPTN, &n), "ptmx");
	char name[32];
	snprintf(name, sizeof name, "/dev/pts/%d", n);
	int s = open(name, O_RDWR | O_NOCTTY), s2 = open(name, O_RDONLY | O_NOCTTY | O_NONBLOCK), s3 = dup(s);
	CHECK(s >= 0 && s2 >= 0 && s3 >= 0, "open %s", name);
	CHECK(!fchown(s, 12, 34) && !fchmod(s, 0640), "owner of the node");
	struct winsize w = {25, 81, 3, 4}, w2;
	struct termios2 t, t2;
	CHECK(!ioctl(m, TIOCSWINSZ, &w) && !ioctl(s, TCGETS2, &t), "settings");
	t.c_lflag |= ICANON | IEXTEN;
	t.c_lflag &= ~ECHO;
	t.c_oflag |= OPOST | ONLCR;
	t.c_cc[VEOL] = ';';
	t.c_cc[VINTR] = 1;
	t.c_cflag = (t.c_cflag & ~CBAUD) | BOTHER;
	t.c_ispeed = t.c_ospeed = 12345;
	CHECK(!ioctl(s, TCSETS2, &t), "TCSETS2");
	CHECK(!ioctl(s, TIOCEXCL), "TIOCEXCL");
	/* Two lines, a literal newline in one, an additional end of line, an end of file, and a line that is not complete. */
	const char in[] = "one\ntw\x16\no\nthree;\x04part";
	CHECK(write(m, in, sizeof in - 1) == sizeof in - 1, "write");
	CHECK(write(s, "out\nput", 7) == 7, "write to the slave");
	/* A second one in packet mode, without lines, with binary input. */
	int m2 = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), n2;
	CHECK(m2 >= 0 && !ioctl(m2, TIOCSPTLCK, &zero) && !ioctl(m2, TIOCGPTN, &n2), "second ptmx");
	int p2 = ioctl(m2, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	CHECK(p2 >= 0 && !ioctl(p2, TCGETS2, &t2), "TIOCGPTPEER");
	t2.c_iflag = t2.c_oflag = t2.c_lflag = 0;
	CHECK(!ioctl(p2, TCSETS2, &t2) && !ioctl(m2, TIOCPKT, &one), "raw, packet mode");
	unsigned char binary[600];
	for (unsigned i = 0; i < sizeof binary; i++)
		binary[i] = i * 5;
	CHECK(write(m2, binary, sizeof binary) == sizeof binary && write(p2, "tuo", 3) == 3, "write to the second");
	while (!ioctl(p2, FIONREAD, &v) && v < (int)sizeof binary)
		usleep(100);
	t2.c_iflag = IXON; /* the master is told */
	CHECK(!ioctl(p2, TCSETS2, &t2), "IXON");

	ready();

	struct stat st;
	CHECK(!ioctl(m, TIOCGPTN, &v) && v == n, "the number is %d, was %d", v, n);
	CHECK(!ioctl(m2, TIOCGPTN, &v) && v == n2, "the second number is %d, was %d", v, n2);
	CHECK(!fstat(s, &st) && st.st_uid == 12 && st.st_gid == 34 && (st.st_mode & 07777) == 0640, "node of %u:%u, mode %o", st.st_uid, st.st_gid, st.st_mode);
	CHECK(!ioctl(s, TIOCGWINSZ, &w2) && !memcmp(&w, &w2, sizeof w), "window size");
	CHECK(!ioctl(s3, TCGETS2, &t2) && !memcmp(&t, &t2, sizeof t), "settings");
	CHECK(!ioctl(s, TIOCGEXCL, &v) && v == 1, "exclusive mode");
	CHECK((fcntl(m, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK) && (fcntl(s2, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK), "flags");
	CHECK(!(fcntl(s, F_GETFL) & O_NONBLOCK) && (fcntl(m2, F_GETFD) & FD_CLOEXEC), "flags of the others");
	char link[64], proc[64];
	snprintf(proc, sizeof proc, "/proc/self/fd/%d", s);
	ssize_t l = readlink(proc, link, sizeof link);
	CHECK(l == (ssize_t)strlen(name) && !memcmp(link, name, l), "path");

	expect(s, "one\n", 4);
	expect(s2, "tw\no\n", 5);
	expect(s, "three;", 6);
	expect(s, "", 0); /* the end of file */
	CHECK(!readable(s), "the line that is not complete can be read");
	CHECK(read(s2, proc, 1) == -1 && errno == EAGAIN, "O_NONBLOCK of the slave");
	CHECK(write(m, "ial\x7f\x7f!\n", 7) == 7, "completing the line");
	expect(s, "parti!\n", 7);
	expect(m, "out\r\nput", 8);
	CHECK(read(m, proc, 1) == -1 && errno == EAGAIN, "more output");

	CHECK(!ioctl(m2, TIOCGPKT, &v) && v == 1, "packet mode");
	char packet[8];
	CHECK(read(m2, packet, 8) == 1 && packet[0] == TIOCPKT_DOSTOP, "packet status 0x%x", packet[0]);
	CHECK(read(m2, packet, 8) == 4 && !memcmp(packet, "\0tuo", 4), "packet");
	expect(p2, (char *)binary, sizeof binary);
	CHECK(!close(m) && !readable(m2), "close");
	CHECK(read(s, proc, 1) == 0 && ioctl(s, TCGETS2, &t2) == -1 && errno == EIO, "the slave does not hang up");
	pass();
}
