/* Terminals that are devices of the host: the console, a virtual terminal by a node of our own, a serial line; as far as there are any. */
#include "workload.h"
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

int main(void)
{
	mknod("vt", S_IFCHR | 0600, makedev(4, 1));
	const char *names[] = {"/dev/console", "vt", "/dev/tty0", "/dev/ttyS0"};
	int fd[4];
	struct termios t[4], now;
	struct stat st[4], s;
	for (int i = 0; i < 4; i++) {
		fd[i] = open(names[i], O_RDWR | O_NOCTTY | O_NONBLOCK);
		if (fd[i] >= 0 && (tcgetattr(fd[i], &t[i]) || fstat(fd[i], &st[i]))) {
			close(fd[i]);
			fd[i] = -1;
		}
	}
	ready();
	for (int i = 0; i < 4; i++) {
		if (fd[i] < 0)
			continue;
		CHECK(!fstat(fd[i], &s) && s.st_rdev == st[i].st_rdev && s.st_ino == st[i].st_ino, "%s is another device", names[i]);
		CHECK(!tcgetattr(fd[i], &now) && !memcmp(&now, &t[i], sizeof now), "settings of %s", names[i]);
		CHECK(isatty(fd[i]) && (fcntl(fd[i], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK), "flags of %s", names[i]);
	}
	pass();
}
