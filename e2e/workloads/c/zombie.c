/* Children that have ended and were not waited for: one by exit, one by a signal. */
#include "workload.h"

int main(void)
{
	pid_t a = fork();
	if (!a)
		_exit(42);
	pid_t b = fork();
	if (!b) {
		raise(SIGKILL);
		_exit(1);
	}
	siginfo_t si;
	CHECK(!waitid(P_PID, a, &si, WEXITED | WNOWAIT) && !waitid(P_PID, b, &si, WEXITED | WNOWAIT), "waitid");
	ready();
	int st;
	CHECK(waitpid(a, &st, 0) == a && WIFEXITED(st) && WEXITSTATUS(st) == 42, "the first child: %x", st);
	CHECK(waitpid(b, &st, 0) == b && WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL, "the second child: %x", st);
	pass();
}
