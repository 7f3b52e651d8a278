/* A tree: children, a grandchild, a session and groups of its own, an orphan of a session, exit codes, parent ids. */
#include "workload.h"

static void child_main(int i)
{
	sigset_t s;
	int sig;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	char name[16];
	pid_t pid = getpid(), parent = getppid(), grand = 0;
	if (i == 1)
		CHECK(setsid() == pid, "setsid");
	if (i == 2)
		CHECK(!setpgid(0, 0), "setpgid");
	if (i == 1 && !(grand = fork())) {
		pid_t p = getppid(), sid = getsid(0);
		put_file("grand", "up");
		sigwait(&s, &sig);
		_exit(getppid() == p && getsid(0) == sid && getpgrp() == sid ? 21 : 22);
	}
	snprintf(name, sizeof name, "child%d", i);
	put_file(name, "up");
	sigwait(&s, &sig);
	int ok = getpid() == pid && getppid() == parent;
	if (i == 1) {
		int st;
		ok = ok && getsid(0) == pid && !kill(grand, SIGUSR1) && waitpid(grand, &st, 0) == grand && WEXITSTATUS(st) == 21;
	}
	if (i == 2)
		ok = ok && getpgrp() == pid && getsid(0) != pid;
	_exit(ok ? 10 + i : 50 + i);
}

int main(void)
{
	pid_t c[3];
	for (int i = 0; i < 3; i++)
		if (!(c[i] = fork()))
			child_main(i);
	while (access("child0", F_OK) || access("child1", F_OK) || access("child2", F_OK) || access("grand", F_OK))
		usleep(1000);
	ready();
	for (int i = 0; i < 3; i++) {
		int st;
		CHECK(!kill(c[i], SIGUSR1), "kill %d", i);
		CHECK(waitpid(c[i], &st, 0) == c[i] && WIFEXITED(st) && WEXITSTATUS(st) == 10 + i, "child %d: status %x", i, st);
	}
	pass();
}
