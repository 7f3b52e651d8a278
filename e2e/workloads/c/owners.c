/* Owners of signals: O_ASYNC on a pipe, F_SETOWN of a process, a group and a thread, F_SETSIG, the owner's user ids. */
#include "workload.h"
#include <sys/prctl.h>

static volatile int got, got_fd;
static void on_io(int sig, siginfo_t *si, void *c)
{
	(void)sig;
	(void)c;
	got++;
	got_fd = si->si_fd;
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_io, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGRTMIN + 2, &sa, NULL);
	int p[2], q[2], s[2];
	CHECK(!pipe(p) && !pipe(q) && !pipe(s), "pipe");
	prctl(PR_SET_DUMPABLE, 1);
	CHECK(!setresuid(1234, 1235, 0), "setresuid");
	CHECK(!fcntl(p[0], F_SETOWN, getpid()) && !fcntl(p[0], F_SETSIG, SIGRTMIN + 2) && !fcntl(p[0], F_SETFL, O_ASYNC | O_NONBLOCK), "F_SETOWN");
	CHECK(!setresuid(0, 0, 0), "setresuid back");
	pid_t child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		setpgid(0, 0);
		pause();
		_exit(1);
	}
	setpgid(child, child);
	struct f_owner_ex group = {F_OWNER_PGRP, child}, thread = {F_OWNER_TID, getpid()}, o;
	CHECK(!fcntl(q[0], F_SETOWN_EX, &group) && !fcntl(s[0], F_SETOWN_EX, &thread), "F_SETOWN_EX");
	ready();
	CHECK(fcntl(p[0], F_GETOWN) == getpid() && fcntl(p[0], F_GETSIG) == SIGRTMIN + 2, "owner");
	CHECK((fcntl(p[0], F_GETFL) & (O_ASYNC | O_NONBLOCK)) == (O_ASYNC | O_NONBLOCK), "flags");
	uid_t ids[2];
	CHECK(fcntl(p[0], 17 /* F_GETOWNER_UIDS */, ids) || (ids[0] == 1234 && ids[1] == 1235), "ids of the owner are %d %d", ids[0], ids[1]);
	CHECK(!fcntl(q[0], F_GETOWN_EX, &o) && o.type == F_OWNER_PGRP && o.pid == child, "group");
	CHECK(!fcntl(s[0], F_GETOWN_EX, &o) && o.type == F_OWNER_TID && o.pid == getpid(), "thread");
	CHECK(got == 0, "a signal of the move");
	CHECK(!setresuid(1234, 1235, 0), "setresuid again");
	CHECK(write(p[1], "x", 1) == 1 && got == 1 && got_fd == p[0], "%d signals, of descriptor %d", got, got_fd);
	CHECK(!setresuid(0, 0, 0), "setresuid back");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	pass();
}
