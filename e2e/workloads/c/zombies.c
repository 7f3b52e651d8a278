/* Zombies of all kinds, about which the parent has heard already: one killed with a core dump, one that leads a session
 * with a member, one that leads a group with a member. */
#include "workload.h"
#include <sys/prctl.h>
#include <sys/resource.h>

static volatile sig_atomic_t heard;
static void on_chld(int sig) { (void)sig; heard++; }

static pid_t leader(int session)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	session ? setsid() : setpgid(0, 0);
	if (!fork()) {
		while (getppid() == getpgrp())
			usleep(500);
		put_file(session ? "smember" : "gmember", "up");
		for (;;)
			pause();
	}
	_exit(3 + session);
}

int main(void)
{
	struct rlimit r;
	getrlimit(RLIMIT_CORE, &r);
	int core = r.rlim_max > 0;
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper");
	pid_t a = fork();
	if (!a) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_CORE, &r);
		abort();
	}
	pid_t s = leader(1), g = leader(0);
	siginfo_t si;
	CHECK(!waitid(P_PID, a, &si, WEXITED | WNOWAIT), "waitid");
	core = core && si.si_code == CLD_DUMPED;
	CHECK(!waitid(P_PID, s, &si, WEXITED | WNOWAIT) && !waitid(P_PID, g, &si, WEXITED | WNOWAIT), "waitid");
	while (access("smember", F_OK) || access("gmember", F_OK))
		usleep(500);
	signal(SIGCHLD, on_chld);
	ready();
	CHECK(heard == 0, "SIGCHLD came %d times again", heard);
	int st;
	CHECK(waitpid(a, &st, 0) == a && WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT && !!WCOREDUMP(st) == core, "the one that aborted: %x", st);
	CHECK(getsid(s) == s && getpgid(g) == g && getsid(g) == getsid(0), "session %d, group %d", getsid(s), getpgid(g));
	CHECK(!kill(-s, SIGKILL) && !kill(-g, SIGKILL), "members");
	CHECK(waitpid(s, &st, 0) == s && WEXITSTATUS(st) == 4 && waitpid(g, &st, 0) == g && WEXITSTATUS(st) == 3, "leaders: %x", st);
	CHECK(waitpid(-1, &st, 0) > 0 && WTERMSIG(st) == SIGKILL && waitpid(-1, &st, 0) > 0 && WTERMSIG(st) == SIGKILL, "members: %x", st);
	pass();
}
