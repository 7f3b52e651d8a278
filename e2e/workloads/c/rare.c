/* What few programs set: the time stamp counter and cpuid forbidden, machine-check policy, memory policy, speculation, a local
 * descriptor table, the audit login id; and SIGTRAP pending for the process and for a thread. */
#include "workload.h"
#include <sys/prctl.h>
#ifdef __x86_64__
#include <asm/ldt.h>
#endif

static volatile int traps[2];
static void on_trap(int sig, siginfo_t *i, void *u)
{
	(void)sig, (void)u;
	traps[i->si_value.sival_int & 1]++;
}

static void login(char *buf, size_t n)
{
	int fd = open("/proc/self/loginuid", O_RDONLY);
	memset(buf, 0, n);
	if (fd >= 0 && read(fd, buf, n - 1) < 0)
		buf[0] = 0;
	close(fd);
}

int main(void)
{
	int fd = open("/proc/self/loginuid", O_WRONLY);
	if (fd >= 0 && write(fd, "4242", 4) != 4)
		perror("loginuid");
	close(fd);
	char before[16], after[16];
	login(before, sizeof before);
	int tsc = 0, has_tsc = !prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
	int mce = !prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	unsigned long nodes = 1, got_nodes[16];
	int policy = 0, has_policy = !syscall(SYS_set_mempolicy, 2 /* MPOL_BIND */, &nodes, 64);
	int spec = !prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
	int was = prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0);
#ifdef __x86_64__
	int no_cpuid = !syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, 0);
	static unsigned char ldt[256], now[256];
	struct user_desc d = {.entry_number = 5, .base_addr = (unsigned long)0x12345000, .limit = 0xfedc, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
	int has_ldt = !syscall(SYS_modify_ldt, 0x11, &d, sizeof d);
	d.entry_number = 2, d.contents = 1, d.read_exec_only = 1, d.limit_in_pages = 0;
	if (has_ldt)
		CHECK(!syscall(SYS_modify_ldt, 0x11, &d, sizeof d), "modify_ldt");
	int n = syscall(SYS_modify_ldt, 0, ldt, sizeof ldt);
#endif
	struct sigaction sa = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
	sigaction(SIGTRAP, &sa, NULL);
	sigset_t trap;
	sigemptyset(&trap);
	sigaddset(&trap, SIGTRAP);
	sigprocmask(SIG_BLOCK, &trap, NULL);
	union sigval v = {.sival_int = 0};
	CHECK(!sigqueue(getpid(), SIGTRAP, v), "sigqueue");
	siginfo_t si = {.si_signo = SIGTRAP, .si_code = SI_QUEUE, .si_pid = getpid(), .si_value = {.sival_int = 1}};
	CHECK(!syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGTRAP, &si), "tgsigqueueinfo");
	ready();
	login(after, sizeof after);
#ifdef __x86_64__
	CHECK(!no_cpuid || !syscall(SYS_arch_prctl, 0x1011 /* ARCH_GET_CPUID */, 0), "cpuid is allowed");
#endif
	CHECK(!strcmp(before, after), "login id %s, was %s", after, before);
	CHECK(!has_tsc || (!prctl(PR_GET_TSC, &tsc) && tsc == PR_TSC_SIGSEGV), "the time stamp counter: %d", tsc);
	CHECK(!mce || prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "machine checks");
	CHECK(!has_policy || (!syscall(SYS_get_mempolicy, &policy, got_nodes, 1024, 0, 0) && policy == 2 && got_nodes[0] == 1), "memory policy %d", policy);
	CHECK(!spec || prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0) == was, "speculation");
#ifdef __x86_64__
	if (has_ldt)
		CHECK(syscall(SYS_modify_ldt, 0, now, sizeof now) == n && !memcmp(ldt, now, sizeof now), "local descriptors");
#endif
	sigprocmask(SIG_UNBLOCK, &trap, NULL);
	CHECK(traps[0] == 1 && traps[1] == 1, "SIGTRAP came %d and %d times", traps[0], traps[1]);
	pass();
}
