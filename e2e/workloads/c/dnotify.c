/* F_NOTIFY: of several directories, once and again, of a process and of its child, with another signal and after F_SETOWN. */
#include "workload.h"

static volatile int got[64], other;
static void on_event(int sig, siginfo_t *si, void *c)
{
	(void)sig;
	(void)c;
	if (si->si_fd >= 0 && si->si_fd < 64)
		got[si->si_fd]++;
	else
		other++;
}

static void touch(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT, 0644);
	CHECK(fd >= 0 && write(fd, "x", 1) == 1 && !close(fd), "%s", name);
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_event, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGRTMIN + 1, &sa, NULL);
	sigaction(SIGRTMIN + 2, &sa, NULL);
	CHECK(!mkdir("again", 0755) && !mkdir("once", 0755) && !mkdir("none", 0755) && !mkdir("child", 0755), "mkdir");
	touch("again/old");
	int again = open("again", O_RDONLY | O_DIRECTORY), once = open("once", O_RDONLY | O_DIRECTORY), none = open("none", O_RDONLY | O_DIRECTORY);
	CHECK(!fcntl(again, F_SETSIG, SIGRTMIN + 1) && !fcntl(once, F_SETSIG, SIGRTMIN + 2) && !fcntl(none, F_SETSIG, SIGRTMIN + 1), "F_SETSIG");
	CHECK(!fcntl(again, F_NOTIFY, DN_CREATE | DN_DELETE | DN_MULTISHOT), "F_NOTIFY");
	CHECK(!fcntl(once, F_NOTIFY, DN_CREATE | DN_MODIFY), "F_NOTIFY once");
	CHECK(!fcntl(none, F_NOTIFY, DN_CREATE | DN_MULTISHOT) && !fcntl(none, F_NOTIFY, 0), "F_NOTIFY and not");
	int up[2], down[2];
	char b;
	CHECK(!pipe(up) && !pipe(down), "pipe");
	pid_t child = fork();
	if (!child) {
		int fd = open("child", O_RDONLY | O_DIRECTORY);
		CHECK(!fcntl(fd, F_SETSIG, SIGRTMIN + 1) && !fcntl(fd, F_NOTIFY, DN_RENAME | DN_MULTISHOT), "F_NOTIFY of the child");
		touch("child/a");
		CHECK(write(up[1], "r", 1) == 1 && read(down[0], &b, 1) == 1, "pipe of the child");
		CHECK(!got[fd], "%d signals of the move", got[fd]);
		touch("child/b");
		CHECK(!got[fd], "%d signals of what was not asked", got[fd]);
		CHECK(!rename("child/b", "child/c") && got[fd] == 1 && !rename("child/c", "child/d") && got[fd] == 2, "%d signals of renames", got[fd]);
		_exit(0);
	}
	CHECK(read(up[0], &b, 1) == 1, "the child");
	ready();
	CHECK(!got[again] && !got[once] && !got[none] && !other, "signals of the move: %d %d %d %d", got[again], got[once], got[none], other);
	touch("again/old");
	CHECK(!got[again], "a signal of what was not asked");
	touch("again/new");
	CHECK(got[again] == 1, "%d signals of a new file", got[again]);
	CHECK(!unlink("again/new") && got[again] == 2, "%d signals of a file that has gone", got[again]);
	touch("once/new");
	CHECK(got[once] == 1, "%d signals, once", got[once]);
	touch("once/new2");
	CHECK(got[once] == 1, "%d signals, once, and again", got[once]);
	touch("none/new");
	CHECK(!got[none] && !other, "%d signals of nothing", got[none]);
	int status;
	CHECK(write(down[1], "g", 1) == 1 && waitpid(child, &status, 0) == child && status == 0, "the child ended with %d", status);
	pass();
}
