/* Ids, groups, capabilities, no_new_privs, limits, niceness, affinity, name, parent-death signal, dumpable. */
#include "workload.h"
#include <grp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

int main(void)
{
	gid_t groups[] = {10, 20, 30}, back[8];
	CHECK(!setgroups(3, groups) && !setresgid(1000, 1001, 1002), "groups");
	prctl(PR_SET_KEEPCAPS, 1);
	CHECK(!setresuid(2000, 2001, 2002), "setresuid");
	struct rlimit l = {100, 200}, m;
	CHECK(!setrlimit(RLIMIT_NOFILE, &l), "setrlimit");
	CHECK(!setpriority(PRIO_PROCESS, 0, 5), "setpriority");
	prctl(PR_SET_NAME, "named");
	prctl(PR_SET_PDEATHSIG, SIGURG);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_TIMERSLACK, 70000);
	cpu_set_t one, got;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	CHECK(!sched_setaffinity(0, sizeof one, &one), "affinity");
	ready();
	uid_t r, e, s;
	CHECK(!getresuid(&r, &e, &s) && r == 2000 && e == 2001 && s == 2002, "uids %d %d %d", r, e, s);
	CHECK(!getresgid(&r, &e, &s) && r == 1000 && e == 1001 && s == 1002, "gids %d %d %d", r, e, s);
	CHECK(getgroups(8, back) == 3 && back[0] == 10 && back[2] == 30, "groups");
	CHECK(!getrlimit(RLIMIT_NOFILE, &m) && m.rlim_cur == 100 && m.rlim_max == 200, "limits");
	CHECK(getpriority(PRIO_PROCESS, 0) == 5, "nice");
	char name[16];
	prctl(PR_GET_NAME, name);
	CHECK(!strcmp(name, "named"), "name %s", name);
	int sig = 0;
	prctl(PR_GET_PDEATHSIG, &sig);
	CHECK(sig == SIGURG, "PDEATHSIG %d", sig);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs");
	CHECK(prctl(PR_GET_TIMERSLACK) == 70000, "timer slack");
	CHECK(!sched_getaffinity(0, sizeof got, &got) && CPU_EQUAL(&one, &got), "affinity");
	pass();
}
