/* A child with UTS and IPC namespaces of its own, a second process in them, and a grandchild that is at home again. */
#include "workload.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

#define KEY 0x51ab

static int checked(const char *host, int value)
{
	char name[65] = "";
	int sem = semget(KEY, 0, 0);
	if (gethostname(name, sizeof name) || strcmp(name, host))
		return 1;
	if (value < 0)
		return sem >= 0 ? 2 : 0;
	return sem < 0 || semctl(sem, 0, GETVAL) != value ? 3 : 0;
}

static volatile int *go;
static void await(int tell)
{
	if (write(tell, "x", 1) != 1)
		_exit(90);
	while (!*go)
		usleep(1000);
}

int main(void)
{
	char home[65] = "";
	int p[2], set[2];
	go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(go != MAP_FAILED && !gethostname(home, sizeof home) && !pipe(p) && !pipe(set), "set up");
	int old = semget(KEY, 0, 0);
	CHECK(old < 0, "the key is in use");
	pid_t a = fork();
	if (!a) {
		int uts = open("/proc/self/ns/uts", O_RDONLY), ipc = open("/proc/self/ns/ipc", O_RDONLY);
		if (unshare(CLONE_NEWUTS | CLONE_NEWIPC) || sethostname("inside", 6))
			_exit(91);
		int sem = semget(KEY, 2, IPC_CREAT | 0600), q = msgget(KEY, IPC_CREAT | 0600);
		struct {
			long type;
			char text[8];
		} m = {7, "message"};
		if (sem < 0 || semctl(sem, 0, SETVAL, 5) || q < 0 || msgsnd(q, &m, sizeof m.text, 0))
			_exit(92);
		pid_t g = fork();
		if (!g) {
			if (setns(uts, CLONE_NEWUTS) || setns(ipc, CLONE_NEWIPC))
				_exit(93);
			await(p[1]);
			_exit(checked(home, -1));
		}
		if (write(set[1], "x", 1) != 1)
			_exit(94);
		await(p[1]);
		memset(&m, 0, sizeof m);
		if (checked("inside", 5) || msgrcv(msgget(KEY, 0), &m, sizeof m.text, 7, IPC_NOWAIT) != sizeof m.text || strcmp(m.text, "message"))
			_exit(95);
		int status;
		_exit(waitpid(g, &status, 0) == g && !status ? 0 : 96);
	}
	char c;
	CHECK(read(set[0], &c, 1) == 1, "the first child");
	pid_t b = fork();
	if (!b) {
		char name[64];
		snprintf(name, sizeof name, "/proc/%d/ns/uts", a);
		int uts = open(name, O_RDONLY);
		snprintf(name, sizeof name, "/proc/%d/ns/ipc", a);
		int ipc = open(name, O_RDONLY);
		if (uts < 0 || ipc < 0 || setns(uts, CLONE_NEWUTS) || setns(ipc, CLONE_NEWIPC))
			_exit(97);
		await(p[1]);
		_exit(checked("inside", 5));
	}
	for (int i = 0; i < 3; i++)
		CHECK(read(p[0], &c, 1) == 1, "a child");
	ready();
	*go = 1;
	int sa, sb;
	CHECK(waitpid(b, &sb, 0) == b && waitpid(a, &sa, 0) == a, "wait");
	CHECK(!WEXITSTATUS(sa) && WIFEXITED(sa), "the first child: %d", WEXITSTATUS(sa));
	CHECK(!WEXITSTATUS(sb) && WIFEXITED(sb), "the second child: %d", WEXITSTATUS(sb));
	CHECK(!checked(home, -1), "at home");
	pass();
}
