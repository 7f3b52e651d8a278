/* A session with a controlling terminal whose master the parent holds: the leader, a foreground job, a background job that was
 * stopped for reading, and one that has given up the terminal; a descriptor of /dev/tty. */
#include "workload.h"
#include <sys/ioctl.h>
#include <termios.h>

static int tty_nr(pid_t pid)
{
	char path[64], buf[512];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, buf, sizeof buf - 1);
	close(fd);
	CHECK(n > 0, "%s", path);
	buf[n] = 0;
	int nr = -1;
	CHECK(sscanf(strrchr(buf, ')') + 1, " %*c %*d %*d %*d %d", &nr) == 1, "stat");
	return nr;
}

static volatile sig_atomic_t hup;
static void on_hup(int sig) { (void)sig; hup = 1; }

static void wait_for(pid_t pid, int what)
{
	siginfo_t si;
	CHECK(!waitid(P_PID, pid, &si, what | WNOWAIT), "waitid");
}

/* The leader tells its findings by its exit code. */
static int leader(int m, const char *name, int report)
{
	close(m);
	if (setsid() < 0)
		return 10;
	int s = open(name, O_RDWR); /* becomes the controlling terminal */
	int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
	if (s < 0 || tty < 0)
		return 11;
	struct sigaction sa = {.sa_handler = on_hup};
	sigaction(SIGHUP, &sa, NULL);
	signal(SIGTTOU, SIG_IGN);
	pid_t job[3];
	int gate[2];
	if (pipe(gate))
		return 12;
	for (int i = 0; i < 3; i++) {
		job[i] = fork();
		if (!job[i]) {
			close(gate[1]);
			setpgid(0, 0);
			char c;
			if (i == 2)
				_exit(ioctl(tty, TIOCNOTTY) || read(gate[0], &c, 1) != 0);
			signal(SIGHUP, SIG_DFL);
			if (i == 1)
				_exit(read(s, &c, 1) == 1 ? 3 : 4); /* SIGTTIN */
			for (;;)
				pause();
		}
		setpgid(job[i], job[i]);
	}
	if (tcsetpgrp(s, job[0]))
		return 13;
	wait_for(job[1], WSTOPPED);
	while (tty_nr(job[2]) != 0)
		usleep(100);
	close(s);
	pid_t report_jobs[3] = {job[0], job[1], job[2]};
	if (write(report, report_jobs, sizeof report_jobs) != sizeof report_jobs)
		return 14;
	int st;
	if (waitpid(job[0], &st, 0) != job[0] || !WIFSIGNALED(st) || WTERMSIG(st) != SIGINT)
		return 20;
	int again = open("/dev/tty", O_RDWR);
	if (again < 0 || tcgetpgrp(again) != job[0] || tcgetsid(tty) != getpid())
		return 21;
	if (tcsetpgrp(tty, job[1]) || kill(-job[1], SIGCONT) || waitpid(job[1], &st, 0) != job[1] || !WIFEXITED(st) || WEXITSTATUS(st) != 3)
		return 22;
	if (tcsetpgrp(tty, getpgrp()) || tty_nr(job[2]) != 0)
		return 23;
	close(gate[1]);
	if (waitpid(job[2], &st, 0) != job[2] || st)
		return 24;
	if (write(report, "", 1) != 1)
		return 25;
	while (!hup)
		usleep(1000);
	char c;
	return read(tty, &c, 1) == 0 ? 7 : 26;
}

int main(void)
{
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY), report[2];
	CHECK(m >= 0 && !grantpt(m) && !unlockpt(m) && !pipe(report), "ptmx");
	char name[64];
	CHECK(!ptsname_r(m, name, sizeof name), "name");
	pid_t pid = fork();
	CHECK(pid >= 0, "fork");
	if (!pid)
		_exit(leader(m, name, report[1]));
	close(report[1]);
	pid_t job[3];
	ssize_t n = read(report[0], job, sizeof job);
	if (n != sizeof job) {
		int st = 0;
		waitpid(pid, &st, 0);
		fail("the leader ended with 0x%x", st);
	}
	int nr = tty_nr(pid);
	CHECK(nr && tty_nr(job[0]) == nr && tty_nr(job[1]) == nr && tty_nr(job[2]) == 0, "terminals at the start");

	ready();

	CHECK(tty_nr(pid) == nr && tty_nr(job[0]) == nr && tty_nr(job[1]) == nr && tty_nr(job[2]) == 0 && tty_nr(getpid()) == 0,
	      "terminals are 0x%x, 0x%x, 0x%x, 0x%x", tty_nr(pid), tty_nr(job[0]), tty_nr(job[1]), tty_nr(job[2]));
	CHECK(tcgetpgrp(m) == job[0], "the foreground group is %d, was %d", tcgetpgrp(m), job[0]);
	CHECK(tcgetsid(m) == pid, "the session is %d", tcgetsid(m));
	CHECK(write(m, "\003", 1) == 1, "interrupt character");
	char c;
	CHECK(write(m, "x\n", 2) == 2, "input for the stopped job");
	int st = 0;
	if (read(report[0], &c, 1) != 1) {
		waitpid(pid, &st, 0);
		fail("the leader found something else: 0x%x", st);
	}
	close(m);
	CHECK(waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 7, "the leader ended with 0x%x", st);
	pass();
}
