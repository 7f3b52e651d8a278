/* A program whose own controlling terminal is a pseudoterminal of which it holds the master, with no slave open; and a child in
 * another session that holds the master of that session's terminal only. */
#include "workload.h"
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t winch, interrupted;
static void on_winch(int sig) { (void)sig; winch++; }
static void on_int(int sig) { (void)sig; interrupted++; }

static int master(char name[64])
{
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	CHECK(m >= 0 && !unlockpt(m) && !ptsname_r(m, name, 64), "ptmx");
	return m;
}

int main(void)
{
	char name[64], other[64];
	int m = master(name), m2 = master(other), gate[2];
	CHECK(getsid(0) == getpid() && !pipe(gate), "it leads no session");
	signal(SIGHUP, SIG_IGN);
	signal(SIGWINCH, on_winch);
	signal(SIGINT, on_int);
	int s = open(name, O_RDWR);
	CHECK(s >= 0 && tcgetsid(s) == getpid() && !close(s), "controlling terminal");
	pid_t child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		signal(SIGHUP, SIG_DFL);
		close(gate[0]);
		close(m2);
		int t;
		if (setsid() < 0 || (t = open(other, O_RDWR)) < 0 || tcgetpgrp(t) != getpid() || write(gate[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause(); /* until its master is closed */
	}
	char c;
	close(gate[1]);
	CHECK(read(gate[0], &c, 1) == 1, "the child has no terminal");
	ready();
	int tty = open("/dev/tty", O_RDWR | O_NONBLOCK);
	CHECK(tty >= 0 && tcgetsid(tty) == getpid() && tcgetpgrp(m) == getpgrp(), "controlling terminal afterwards");
	CHECK(!winch && !interrupted, "signals that nobody sent");
	struct winsize w = {10, 20, 0, 0};
	CHECK(!ioctl(m, TIOCSWINSZ, &w) && winch == 1, "no SIGWINCH");
	CHECK(write(m, "\003", 1) == 1, "write");
	for (int i = 0; i < 10000 && !interrupted; i++)
		usleep(100);
	CHECK(interrupted == 1, "no SIGINT");
	int st;
	CHECK(waitpid(child, &st, WNOHANG) == 0 && tcgetsid(m2) == child, "the child is gone, or its terminal");
	close(m2);
	CHECK(waitpid(child, &st, 0) == child && WIFSIGNALED(st) && WTERMSIG(st) == SIGHUP, "the child ended with 0x%x", st);
	CHECK(!ioctl(tty, TIOCNOTTY) && open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "the terminal stays");
	pass();
}
