/* Attributes of a process: name, personality, priorities, policies, groups, keep-caps, dumpable, parent-death signal, slack,
 * out-of-memory score, core filter, limits, of a child without privileges, too. */
#include "workload.h"
#include <grp.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

struct facts {
	int persona, nice, policy, dumpable, keep, death, slack, oom, filter, securebits, groups, io, nofile, mask, prio, thp, autogroup;
	unsigned uid, gid, group;
	char name[32];
};

static int number(const char *path, int base)
{
	char b[32] = "";
	int fd = open(path, O_RDONLY);
	if (fd >= 0 && read(fd, b, sizeof b - 1) < 0)
		b[0] = 0;
	close(fd);
	return strtol(b, NULL, base);
}

/* The nice value of the scheduler's group of the session; 0 where the kernel has none. */
static int autogroup(void)
{
	int nice = 0;
	FILE *f = fopen("/proc/self/autogroup", "r");
	if (f && fscanf(f, "/autogroup-%*d nice %d", &nice) != 1)
		nice = 0;
	if (f)
		fclose(f);
	return nice;
}

static struct facts take(void)
{
	struct facts f;
	memset(&f, 0, sizeof f);
	gid_t g[1024];
	cpu_set_t set;
	struct sched_param p;
	struct rlimit r;
	f.persona = personality(0xffffffff), f.nice = getpriority(PRIO_PROCESS, 0), f.policy = sched_getscheduler(0);
	sched_getparam(0, &p), f.prio = p.sched_priority;
	f.dumpable = prctl(PR_GET_DUMPABLE), f.keep = prctl(PR_GET_KEEPCAPS), f.slack = prctl(PR_GET_TIMERSLACK);
	prctl(PR_GET_PDEATHSIG, &f.death), prctl(PR_GET_NAME, f.name);
	f.securebits = prctl(PR_GET_SECUREBITS), f.groups = getgroups(1024, g), f.group = f.groups > 0 ? g[f.groups - 1] : 0;
	f.oom = number("/proc/self/oom_score_adj", 10), f.filter = number("/proc/self/coredump_filter", 16);
	f.io = syscall(SYS_ioprio_get, 1, 0), f.uid = geteuid(), f.gid = getegid();
	f.thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), f.autogroup = autogroup();
	getrlimit(RLIMIT_NOFILE, &r), f.nofile = r.rlim_cur;
	sched_getaffinity(0, sizeof set, &set), f.mask = CPU_COUNT(&set);
	return f;
}

static void set(void)
{
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r), r.rlim_cur = 777, setrlimit(RLIMIT_NOFILE, &r);
	personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC | UNAME26);
	setpriority(PRIO_PROCESS, 0, 5);
	struct sched_param p = {0};
	sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &p);
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6);
	prctl(PR_SET_TIMERSLACK, 123456), prctl(PR_SET_NAME, "a (name) \\ of it"), prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);
	CHECK(write(fd, "321", 3) == 3 && !close(fd), "oom");
	fd = open("/proc/self/coredump_filter", O_WRONLY);
	CHECK(write(fd, "0x5", 3) == 3 && !close(fd), "filter");
	CHECK(setsid() > 0, "setsid");
	if ((fd = open("/proc/self/autogroup", O_WRONLY)) >= 0)
		CHECK(write(fd, "7", 1) == 1 && !close(fd) && autogroup() == 7, "autogroup");
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof one, &one);
}

int main(void)
{
	int up[2], go[2], st;
	char c;
	CHECK(!pipe(up) && !pipe(go), "pipe");
	pid_t kids[3];
	for (int i = 0; i < 3; i++) {
		if ((kids[i] = fork()))
			continue;
		gid_t g[600];
		for (int k = 0; k < 600; k++)
			g[k] = 1000 + k;
		if (i == 0)
			set();
		CHECK(!setgroups(i == 1 ? 600 : 0, g), "groups");
		if (i == 1) {
			prctl(PR_SET_KEEPCAPS, 1);
			CHECK(!setresgid(11, 12, 13) && !setresuid(21, 22, 23), "ids");
			prctl(PR_SET_PDEATHSIG, SIGUSR2), prctl(PR_SET_DUMPABLE, 1);
		}
		if (i == 2) {
			struct sched_param p = {.sched_priority = 7};
			sched_setscheduler(0, SCHED_RR, &p);
			prctl(PR_SET_SECUREBITS, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6), prctl(PR_SET_DUMPABLE, 0);
		}
		struct facts f = take(), h;
		CHECK(write(up[1], "x", 1) == 1 && read(go[0], &c, 1) == 1, "child");
		h = take();
		for (size_t k = 0; k < sizeof f / 4; k++)
			if (((int *)&f)[k] != ((int *)&h)[k]) {
				printf("child %d: word %zu is %d, was %d\n", i, k, ((int *)&h)[k], ((int *)&f)[k]);
				fflush(stdout);
				_exit(9);
			}
		_exit(3);
	}
	for (int i = 0; i < 3; i++)
		CHECK(read(up[0], &c, 1) == 1, "up");
	ready();
	for (int i = 0; i < 3; i++)
		CHECK(write(go[1], "x", 1) == 1, "go");
	int bad = 0;
	for (int i = 0; i < 3; i++)
		CHECK(waitpid(kids[i], &st, 0) == kids[i] && (bad |= WEXITSTATUS(st) != 3, 1), "wait");
	CHECK(!bad, "a child is not what it was");
	pass();
}
