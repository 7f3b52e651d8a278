/* Orphans below a subreaper: of sessions whose leader has ended, in groups whose leader has ended, one in a group that
 * another has left, and a daemon by double fork. */
#include "workload.h"
#include <sys/prctl.h>

enum { many = 6 };
static struct seen {
	pid_t pid, ppid, sid, pgid;
	int ok;
} *seen;

static pid_t top;

static void member(int i)
{
	struct seen me = {getpid(), getppid(), getsid(0), getpgrp(), 0};
	sigset_t s;
	int sig;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	while (getppid() != top && i != 5)
		usleep(500); /* until it is an orphan */
	me.ppid = getppid();
	seen[i] = me;
	sigwait(&s, &sig);
	seen[i].ok = getpid() == me.pid && getppid() == me.ppid && getsid(0) == me.sid && getpgrp() == me.pgid;
	_exit(40 + i);
}

static pid_t make(int first)
{
	pid_t leader = fork();
	if (leader)
		return leader;
	setsid();
	if (!fork())
		member(first); /* in the session of a leader that ends */
	if (!fork()) {
		setpgid(0, 0);
		if (!fork()) /* in a group of a leader that ends, too */
			member(first + 1);
		_exit(0);
	}
	_exit(0);
}

int main(void)
{
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	top = getpid();
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper");
	pid_t a = make(0), b = make(2);
	CHECK(waitpid(a, NULL, 0) == a && waitpid(b, NULL, 0) == b, "leaders");
	pid_t d = fork();
	if (!d) { /* a daemon by double fork, whose group is that of a process that has moved on */
		setpgid(0, 0);
		if (!fork())
			member(4);
		_exit(0);
	}
	CHECK(waitpid(d, NULL, 0) == d, "double fork");
	pid_t left = fork();
	if (!left) { /* the leader of a group that has left it */
		setpgid(0, 0);
		pid_t c = fork();
		if (!c)
			member(5);
		setpgid(0, getppid());
		sigset_t s;
		int sig;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR2);
		sigprocmask(SIG_BLOCK, &s, NULL);
		put_file("left", "up");
		sigwait(&s, &sig);
		int st;
		kill(c, SIGUSR1);
		_exit(waitpid(c, &st, 0) == c && WEXITSTATUS(st) == 45 && getpgrp() == getppid() ? 7 : 8);
	}
	for (int i = 0; i < many; i++)
		while (!((volatile struct seen *)seen)[i].pid)
			usleep(500);
	while (access("left", F_OK))
		usleep(500);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	ready();
	for (int i = 0; i < many; i++) {
		int st;
		if (i == 5) {
			CHECK(!kill(left, SIGUSR2) && waitpid(left, &st, 0) == left && WEXITSTATUS(st) == 7, "the one that left: %x", st);
		} else {
			CHECK(!kill(seen[i].pid, SIGUSR1), "kill %d", i);
			CHECK(waitpid(seen[i].pid, &st, 0) == seen[i].pid && WEXITSTATUS(st) == 40 + i, "member %d: %x", i, st);
		}
		CHECK(seen[i].ok, "member %d: not where it was", i);
	}
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "somebody else is left");
	pass();
}
